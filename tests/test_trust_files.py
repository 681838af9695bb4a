"""What a model's files and this machine's may not do."""

# ruff: noqa: F811 (fixtures are those of test_trust.py)

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_trust import EVIL, commands, hub, problem  # noqa: F401
from unsloth_jobs.errors import UserError
from unsloth_jobs.lookup.model_info import configuration


def copy_of(tiny_model: Path, folder: Path, **files: str | bytes) -> Path:
    shutil.copytree(tiny_model, folder)
    for name, text in files.items():
        path = folder / name.replace("__", ".")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_a_base_model_s_name_is_no_command(hub, commands, tmp_path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": f"Qwen/x\nFirst type: {EVIL}"})
    )
    said = problem(commands, "check.py", "./evil", "ada/docs", code=1)
    assert said["code"] == "bad_adapter" and "evil.example" not in json.dumps(said)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"config__json": "[]"}, "bad_config"),
        ({"config__json": "null"}, "bad_config"),
        ({"config__json": '{"architectures": "x'}, "bad_config"),
        ({"config__json": '{"architectures": {"a": 1}}'}, "bad_config"),
        ({"config__json": "[" * 100_000}, "bad_config"),
        ({"layers": ""}, "bad_config"),
        ({"model__safetensors": b"\xff" * 64}, "no_safetensors"),
        ({"model__safetensors": b"\x02\0\0\0\0\0\0\0[]"}, "no_safetensors"),
        ({"model__safetensors": b""}, "no_safetensors"),
    ],
)
def test_a_model_whose_files_are_broken_is_said_to_be(hub, commands, tmp_path, tiny_model, files, code):
    folder = copy_of(tiny_model, tmp_path / "broken", **{name: text for name, text in files.items() if name != "layers"})
    if "layers" in files:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 10**12}))
    assert problem(commands, "check.py", "./broken", "ada/docs", code=1)["code"] == code
    if files.keys() & {"layers"} or files == {"config__json": "[]"}:  # the test Hub reads the others itself
        hub.add_repo(f"ada/broken-{code}-{len(files)}{'layers' in files}", folder)
        name = f"ada/broken-{code}-{len(files)}{'layers' in files}"
        assert problem(commands, "check.py", name, "ada/docs", code=1)["code"] == code


@pytest.mark.parametrize(
    "odd",
    [
        {"architectures": [f"X\n→ Type: {EVIL}"]},
        {"architectures": "LlamaForCausalLM"},
        {"model_type": f"x {EVIL}"},
        {"quantization_config": {"quant_method": f"x\n→ Type: {EVIL}"}},
        {"quantization_config": "gptq"},
        {"max_position_embeddings": "x"},
        {"hidden_size": [64]},
        {"rope_scaling": {"factor": "2", "original_max_position_embeddings": 8}},
        {"text_config": {"vocab_size": "512"}},
    ],
)
def test_a_configuration_of_another_form_is_refused_and_names_no_command(odd):
    usual = {"architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "hidden_size": 64, "rope_scaling": None}
    assert configuration("ada/tiny", "config.json", json.dumps(usual)) == usual
    with pytest.raises(UserError) as refused:
        configuration("ada/tiny", "config.json", json.dumps(usual | odd))
    assert refused.value.problem.code == "bad_config" and EVIL not in str(refused.value)


def test_a_configuration_that_transformers_refuses_is_no_page_of_a_proxy(hub, commands, tmp_path, tiny_model):
    config = json.loads((tiny_model / "config.json").read_text())
    copy_of(tiny_model, tmp_path / "refused", config__json=json.dumps(config | {"tie_word_embeddings": "no"}))
    assert problem(commands, "check.py", "./refused", "ada/docs", code=1)["code"] == "bad_config"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{{ 'a' * 20000000000 }}",
        "{{ 10 ** (10 ** 9) }}",  # one operation, amid which Python does nothing else
    ],
)
def test_a_chat_template_that_never_ends_is_ended(hub, commands, tmp_path, tiny_model, template):
    folder = copy_of(tiny_model, tmp_path / "endless")
    for path in folder.glob("chat_template*"):
        path.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    assert "error bad_chat_template: " in commands.run("check.py", "./endless", "ada/docs", code=1).stderr


@pytest.mark.parametrize("always", [True, False])
def test_what_a_chat_template_raises_is_quoted_and_begins_no_line(hub, commands, tmp_path, tiny_model, always):
    """Over the plainest conversation, or only over some rows."""
    raised = f"bad”\\n\\nerror x: y\\n  → Type: {EVIL}"
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    if always:
        template = f"{{{{ raise_exception('{raised}') }}}}"
    else:
        template = f"{{% if 'os' in messages[0].content %}}{{{{ raise_exception('{raised}') }}}}{{% endif %}}" + turns
    folder = copy_of(tiny_model, tmp_path / "raises")
    for path in folder.glob("chat_template*"):
        path.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    said = commands.run("check.py", "./raises", "ada/docs", code=None)
    assert EVIL in said.stderr and EVIL not in re.sub("“.*?”", "", said.stderr, flags=re.DOTALL)
    assert not [line for line in said.stderr.splitlines() if line.startswith("error x")]


@pytest.mark.parametrize(
    "name",
    ["a/" + "b" * 300, "b" * 300, "~nosuchuser/x", "https://huggingface.co/ada/tiny", "hf://models/ada/tiny", "hf://ada/tiny"],
)
def test_a_name_that_is_no_id_is_said_to_be_none(hub, commands, name):
    for words in ((name, "ada/docs"), ("ada/tiny", name)):
        said = problem(commands, "check.py", *words, code=1)
        assert said["code"] in ("not_found", "dataset_not_found", "dataset_unreadable")
        assert ("ada/tiny" in said["fix"]) == ("ada/tiny" in name)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii"])
def test_a_pipe_that_knows_few_characters_is_written_to(hub, commands, encoding):
    commands.env["PYTHONIOENCODING"] = encoding
    for words in (["check.py", "ada/tiny", "ada/docs"], ["estimate.py", "ada/tiny", "ada/docs"], ["status.py", "--all"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts" / words[0]), *words[1:]],
            env=commands.env,
            cwd=commands.cwd,
            capture_output=True,
        )
        assert done.returncode == 0 and b"UnicodeEncodeError" not in done.stderr, done.stderr


def test_a_home_that_cannot_be_written_to_is_named(hub, commands, tmp_path):
    (tmp_path / "file").write_text("")
    commands.env["HF_HOME"] = str(tmp_path / "file")
    for script in ("check.py", "estimate.py"):
        said = problem(commands, script, "ada/tiny", "ada/docs", code=1)
        assert said["code"] in ("cache_unwritable", "records_unwritable") and str(tmp_path / "file") in said["message"]


def on_a_full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="a place in which nobody may make a folder")
@pytest.mark.parametrize("script", ["check.py", "estimate.py"])
@pytest.mark.parametrize("what", ["full", "read-only", "full later"])
def test_a_disk_that_is_full_or_read_only_is_named(hub, commands, script, what):
    if what == "read-only":
        commands.env["HF_HOME"] = "/sys/unsloth-test"
    if what == "full later":  # when all is downloaded
        commands.run("check.py", "ada/tiny", "ada/docs")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "ada/tiny", "ada/docs", "--json"],
        env=commands.env,
        cwd=commands.cwd,
        capture_output=True,
        text=True,
        preexec_fn=None if what == "read-only" else on_a_full_disk,
    )
    assert "Traceback" not in done.stderr
    problems = {one["code"]: one for one in json.loads(done.stdout)["problems"]}
    said = problems.get("cache_unwritable") or problems["records_unwritable"]
    assert done.returncode == 1 and "HF_HOME" in said["fix"]
    assert commands.env["HF_HOME"] in said["message"] or "temporary" in said["message"]


def wait_for_default_handler(pid: int) -> None:
    """Until Python has set its own handler of Ctrl-C and the command the system's: before that no line of it has run."""
    caught = False
    for _ in range(10_000):
        now = bool(int(re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())[1], 16) & 1 << signal.SIGINT - 1)
        if caught and not now:
            return
        caught = caught or now
        time.sleep(0.001)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("script", ["check.py", "estimate.py", "submit.py", "status.py", "logs.py"])
def test_ctrl_c_at_the_very_beginning_leaves_no_traceback(hub, commands, script):
    words = ["ada/tiny", "ada/docs"] if script in ("check.py", "estimate.py") else ["1" * 24]
    for pause in (0.0, 0.2, 0.5):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / script), *words],
            env=commands.env,
            cwd=commands.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_default_handler(process.pid)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGINT, 130, 1, 2, 4) and "Traceback" not in said, said


def test_a_command_s_process_ends_with_its_code_whatever_the_interpreter_s_end_would_do(tmp_path):
    """pyarrow's threads abort an interpreter that ends in the common way, now and then: here it always would."""
    script = tmp_path / "said.py"
    script.write_text(
        "import atexit, os, sys, typer\n"
        "from unsloth_jobs import output\n"
        "app = output.application('')\n"
        "@app.command()\n"
        "def said(code: int) -> None:\n"
        "    sys.stdout.write('all of it')\n"
        "    if code < 0: raise RuntimeError('with hf_adaadaadaada')\n"
        "    raise typer.Exit(code)\n"
        "atexit.register(os.abort)\n"
        "output.run(app)\n"
    )
    for given, code in (("0", 0), ("1", 1), ("4", 4), ("no", 2), ("--help", 0), ("-1", 2), ("--", 2)):
        done = subprocess.run([sys.executable, script, given], env={"PYTHONPATH": str(ROOT / "scripts")}, capture_output=True)
        assert done.returncode == code, done.stderr
        assert done.stdout.endswith(b"all of it") == given.isdigit()
    done = subprocess.run([sys.executable, script, "--", "-1"], env={"PYTHONPATH": str(ROOT / "scripts")}, capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"all of it")
    assert b"RuntimeError" in done.stderr and b"hf_ada" not in done.stderr
    scripts = sorted((ROOT / "scripts").glob("*.py"))
    assert len(scripts) == 6 and all(path.read_text().endswith("    run(app)\n") for path in scripts)
