"""An adapter becomes a merged model and GGUF files: real PEFT, real llama.cpp, and a Hub that they come back out of.

The model is a tiny Llama with a sentencepiece tokenizer: llama.cpp's converter takes byte-level tokenizers, such as the
tiny LFM2's, only where it knows them by the hash of what they do to a certain text.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import export
import openai
import pytest
import tiny_models
from commands import Commands
from conftest import ROOT, ROWS, SFT, UV, python_of
from hub import Hub
from hubs import ADA, hub_of_ada
from test_documents import header

EXPORT, SERVING = (ROOT / "templates" / f"{name}.py" for name in ("export", "serving"))
ASKED = "What does bisect.insort do?"


@pytest.fixture(scope="module")
def export_python() -> str:
    """The interpreter of the template's own environment. The first time, llama.cpp is built for it: minutes."""
    return python_of(EXPORT)


@pytest.fixture(scope="module")
def llama(training_python, tmp_path_factory) -> Path:
    return tiny_models.llama(training_python, tmp_path_factory.mktemp("model") / "tiny-llama", ROWS)


@pytest.fixture(scope="module")
def hub(training_python, llama, tiny_model, tmp_path_factory):
    """A Hub with a base model and an adapter of it, ada/tuned, that templates/sft.py trained."""
    folder = tmp_path_factory.mktemp("export")
    row = {
        "messages": [
            {"role": "user", "content": ASKED},
            {"role": "assistant", "content": "Insert an item in a list, keep it sorted."},
        ]
    }
    (folder / "rows.jsonl").write_text((json.dumps(row) + "\n") * 100)
    with hub_of_ada(folder / "hub", execute_jobs=True, scheduling=0.1) as hub:
        hub.add_repo("ada/tiny-llama", llama)
        hub.add_repo("ada/tiny-lfm2", tiny_model)
        words = ["--base-model", "ada/tiny-llama", "--output-repo", "ada/tuned", "--load-in-16bit", "--learning-rate", "1e-2"]
        train(hub, training_python, folder, *words, "--max-steps", "20")
        yield hub


def train(hub: Hub, python: str, folder: Path, *words: str) -> None:
    """On rows.jsonl of the folder, briefly."""
    words += ("--dataset", "rows.jsonl", "--batch-size", "4", "--gradient-accumulation", "1", "--max-seq-length", "128")
    words += ("--eval-split", "0.02", "--save-steps", "1000", "--early-stopping", "0")
    done = subprocess.run([python, str(SFT), *words], env=environment(hub), cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


# Of questions that it was not trained on, random weights in 4 bits hold 78 to 84%, by the processor's own kernels.
LENIENT = ["--min-agreement", "0.7"]


def environment(hub: Hub, **more: str) -> dict[str, str]:
    return {**os.environ, **hub.env(token=ADA), **more}


def run_export(hub: Hub, folder: Path, python: str, *arguments: str, **env: str) -> tuple[int, list[dict]]:
    """Exit code and events of the template by itself, as `uv run templates/export.py` starts it."""
    done = subprocess.run(
        [python, str(EXPORT), *arguments], env=environment(hub, **env), cwd=folder, capture_output=True, text=True
    )
    assert done.stdout, done.stderr
    return done.returncode, [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("EVENT ")]


def commit(hub: Hub, name: str) -> str:
    return hub.store.repos["model", name].head.sha


def test_a_job_makes_a_merged_model_and_gguf_files_that_answer_like_the_adapter(hub, llama, export_python, tmp_path):
    commands, adapter = Commands(hub.env(token=ADA), tmp_path), commit(hub, "ada/tuned")
    words = ["submit.py", str(EXPORT), "--flavor", "cpu-upgrade", "--timeout", "30m"]
    arguments = ["--", "--adapter", "ada/tuned", "--quantizations", "q4_k_m,q8_0", *LENIENT]

    shown = commands.json(*words, *arguments, code=3)
    job = commands.json(*words, "--approve", shown["plan_id"], *arguments)
    log = "\n".join(line.text for line in hub.jobs.wait(job["job_id"], timeout=900).logs)
    status = commands.json("status.py", job["job_id"], code=None)
    said = [json.loads(line.split("EVENT ", 1)[1]) for line in log.splitlines() if "EVENT {" in line]

    assert status["stage"] == "COMPLETED", log[-3000:]
    # Each conversion was compared, in this order, and picks the adapter's tokens.
    compared = {event["what"]: event for event in said if event["event"] == "compared"}
    assert list(compared) == ["merged", "bf16", "q4_k_m", "q8_0"]
    assert compared["merged"]["agreement"] >= 0.9
    assert compared["bf16"]["agreement"] >= 0.9
    assert compared["q8_0"]["agreement"] >= 0.9
    assert "Insert an item" in compared["q4_k_m"]["example"]["converted"]
    assert not [event for event in said if event.get("code") == "tokens_differ"]
    # The card's held-out question is among those that were asked.
    record = json.loads(hub.files("ada/tuned-merged")["export.json"].read_text())
    assert ASKED in record["reference"]["asked"]
    # The merged model has the base's tokenizer and chat template, byte for byte.
    merged, ggufs = hub.files("ada/tuned-merged"), hub.files("ada/tuned-GGUF")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert merged[name].read_bytes() == (llama / name).read_bytes()
    assert "model.safetensors" in merged
    # The cards' commands name files that are there; nothing but what was asked for is.
    assert {name for name in ggufs if name.endswith(".gguf")} == {"tuned-Q4_K_M.gguf", "tuned-Q8_0.gguf"}
    card = ggufs["README.md"].read_text()
    for command in (
        "llama-cli -hf ada/tuned-GGUF:Q4_K_M",
        "ollama run hf.co/ada/tuned-GGUF:Q4_K_M",
        "lms import tuned-Q4_K_M.gguf",
    ):
        assert command in card
    # Ollama is told the template and what ends an answer; with that, llama.cpp gave the answer of the comparison.
    [ollama] = [event for event in said if event["event"] == "ollama"]
    assert ollama["example"]["answer"] == compared["bf16"]["example"]["converted"]
    modelfile = ggufs["Modelfile"].read_text()
    assert modelfile == f'FROM ./tuned-Q4_K_M.gguf\nTEMPLATE """{ggufs["template"].read_text()}"""\nPARAMETER stop "</s>"\n'
    assert "[INST] {{ .Content }} [/INST]" in modelfile
    assert json.loads(ggufs["params"].read_text()) == {"stop": ["</s>"]}
    assert "| in 16 bits, not kept |" in card and f"{compared['bf16']['agreement']:.1%}" in card
    # Each card says what comes next.
    adapter_card, merged_card = hub.files("ada/tuned")["README.md"].read_text(), merged["README.md"].read_text()
    for text in (adapter_card, merged_card):
        assert "hf endpoints deploy tuned --repo ada/tuned-merged" in text
    assert "serve.py ada/tuned --chat" in adapter_card and "The GGUF file: q4_k_m, about 1 MB: " in adapter_card
    assert "mlx_lm.convert --hf-path ada/tuned-merged" in merged_card
    assert "base_model: ada/tuned-merged" in card
    assert "base_model: ada/tiny-llama" in merged["README.md"].read_text()
    assert f"{compared['q8_0']['agreement']:.1%}" in card
    # Private, the adapter as it was, and no token in clear anywhere.
    assert all(hub.store.repos["model", name].private for name in ("ada/tuned-merged", "ada/tuned-GGUF"))
    assert commit(hub, "ada/tuned") == adapter
    assert hub.leaks(ADA) == []


def test_what_is_pushed_is_not_made_again(hub, export_python, tmp_path):
    """After the test above, on another machine: one more file is asked for."""
    arguments = ["--adapter", "ada/tuned", "--quantizations", "q4_k_m,q8_0,q6_k", *LENIENT]
    earlier = len(hub.journal.requests())
    code, said = run_export(hub, tmp_path, export_python, *arguments, HF_HOME=str(tmp_path / "home"))
    assert code == 0, said[-1]
    assert [event["what"] for event in said if event["event"] == "converted"] == ["bf16", "q6_k"]
    assert hub.files("ada/tuned-GGUF")["Modelfile"].read_text().startswith("FROM ./tuned-Q4_K_M.gguf\n")
    assert [event["what"] for event in said if event["event"] == "pushed"] == ["q6_k"]
    assert set(said[-1]["made"]) == {"merged", "q4_k_m", "q8_0", "q6_k"}
    assert not [r for r in hub.journal.requests()[earlier:] if "tiny-llama/resolve" in r.path and "safetensors" in r.path]


def test_an_adapter_that_went_on_from_another_is_exported_whole(hub, training_python, export_python, tmp_path):
    """It holds both trainings, on the base of the first: nothing of it is missing in the merged model."""
    row = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Insert an item, and I."}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 100)
    train(hub, training_python, tmp_path, "--base-model", "ada/tuned", "--output-repo", "ada/further", "--max-steps", "4")
    code, said = run_export(hub, tmp_path, export_python, "--adapter", "ada/further", "--quantizations", "none")
    [compared] = [event for event in said if event["event"] == "compared"]
    assert code == 0 and compared["agreement"] >= 0.9
    assert "base_model: ada/tiny-llama" in hub.files("ada/further-merged")["README.md"].read_text()


def test_a_conversion_that_disagrees_is_not_pushed(hub, export_python, tmp_path):
    arguments = ["--adapter", "ada/tuned", "--quantizations", "q2_k", "--min-agreement", "1"]
    code, said = run_export(hub, tmp_path, export_python, *arguments)
    assert (code, said[-1]["event"], said[-1]["code"]) == (1, "failed", "conversion_disagrees")
    assert "--min-agreement" in said[-1]["fix"]
    assert "tuned-Q2_K.gguf" not in hub.files("ada/tuned-GGUF")


@pytest.mark.parametrize(
    ("arguments", "env", "code"),
    [
        (["--adapter", "ada/nothing"], {}, "not_found"),
        (["--adapter", "ada/tiny-llama"], {}, "no_adapter"),
        (["--adapter", "ada/tuned", "--base-model", "tiny"], {}, "no_base_model"),
        (["--adapter", "ada/tuned", "--base-model", "four-bit"], {}, "quantized_base"),
        (["--adapter", "ada/tuned", "--output-repo", "microsoft/phi"], {}, "push_denied"),
        (["--adapter", "local"], {"JOB_ID": "1"}, "no_output_repo"),
        (["--adapter", "ada/tuned", "--base-model", "ada/tiny-lfm2", "--output-repo", "ada/lfm"], {}, "unknown_tokenizer"),
    ],
)
def test_it_stops_before_any_heavy_work_and_says_what_to_do(hub, llama, export_python, tmp_path, arguments, env, code):
    (tmp_path / "four-bit").mkdir()
    (tmp_path / "four-bit" / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(llama)})
    )
    (tmp_path / "local" / "adapter_model.safetensors").write_bytes(b"")
    exit_code, said = run_export(hub, tmp_path, export_python, *arguments, **env)
    assert (exit_code, said[-1]["event"], said[-1]["code"]) == (1, "failed", code)
    assert said[-1]["fix"]
    assert not [event for event in said if event["event"] in ("reference", "merged")]


def test_a_full_disk_is_seen_before_the_step(tmp_path):
    export.require_disk(tmp_path, 1, "Merging")
    with pytest.raises(export.Stop, match="Merging needs 1000000.0 GB"):
        export.require_disk(tmp_path, 10**15, "Merging")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--adapter", "a/b", "--quantizations", "q4"],
        ["--adapter", "a/b", "--min-agreement", "2"],
        ["--adapter", "a/b", "--output-repo", "b"],
        ["--adapter", "a/b", "--prompts", "no-such-file"],
    ],
)
def test_wrong_flags_are_named(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        export.parse_args(words)
    assert "error: --" in capsys.readouterr().err


def test_the_card_s_questions_are_asked_without_the_chat_s_own_words(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(
        "# x\n\n## Held-out questions\n\nAnswered greedily.\n\n> user  \n> What is &lt;b&gt;?  \n> assistant  \n\n| Base |\n|---|\n\n"
        "> [INST] Why? [/INST]  \n\n| Base |\n\n## How it was made\n\n> not asked\n"
    )
    assert export.card_questions(card) == ["What is <b>?", "Why?"]
    assert export.card_questions(tmp_path / "none.md") == []


def test_the_help_needs_no_library():
    done = subprocess.run(
        [UV, "run", "--no-project", "--isolated", "python", "-I", str(EXPORT), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--quantizations" in done.stdout


def test_its_versions_are_pinned_and_are_those_that_trained():
    pinned, trained = header(EXPORT), set(header(SFT)["dependencies"])
    assert all("==" in dependency for dependency in pinned["dependencies"])
    shared = {one for one in trained if one.split("==")[0] in ("torch", "transformers", "peft", "huggingface_hub")}
    assert len(shared) == 4 and shared <= set(pinned["dependencies"])
    assert pinned["tool"]["uv"]["exclude-newer"] == header(SFT)["tool"]["uv"]["exclude-newer"]


def test_a_machine_that_cannot_hold_the_export_is_seen_before_the_download(tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    settings = export.parse_args(["--adapter", "a/b", "--quantizations", "q4_k_m,q8_0"])
    adapter = export.Adapter(tmp_path, str(base), None, "x")
    free = shutil.disk_usage(tmp_path).free

    def stop(size: float) -> export.Stop | None:
        with (base / "model.safetensors").open("wb") as file:
            file.truncate(int(size))  # a file with a hole: it takes no room
        try:
            export.require_room(adapter, base, tmp_path, settings.wanted)
        except export.Stop as found:
            return found

    assert stop(1e6) is None
    full = stop(free / 2.5)  # merged, in bf16, in q4_k_m and in q8_0: 2.8 times
    assert full and full.code == "disk_full" and "This export needs" in full.message
    monkeypatch.setattr(export, "memory_bytes", lambda: 1.5e9)
    small = stop(1e9)
    assert small and small.code == "too_little_memory" and "about 2.1 GB of memory" in small.message
    (base / "config.json").write_text('{"torch_dtype": "float32"}')  # half of it in 16 bits
    monkeypatch.setattr(export, "memory_bytes", lambda: 2e9)
    assert stop(1e9) is None
    monkeypatch.undo()
    assert 1e8 < export.memory_bytes() < 1e14
    assert all(export.gguf_bytes(1e9, name) for name in export.QUANTIZATIONS)


def test_a_gguf_file_is_served_by_llama_cpp(hub, export_python, tmp_path):
    """One that the job above has made, by llama-cpp-python of the template's own environment."""
    file = shutil.copy(hub.files("ada/tuned-GGUF")["tuned-Q8_0.gguf"], tmp_path / "tuned-Q8_0.gguf")
    python, libraries = python_of(SERVING), Path(export_python).parent.parent / "lib"
    [packages] = libraries.glob("python*/site-packages")
    command = [python, str(SERVING), "--model", str(file), "--port", "0", "--context", "256", "--idle", "5"]
    # Without llama.cpp's own server, which a machine may have.
    env = {**os.environ, "PYTHONPATH": str(packages), "PATH": str(Path(python).parent)}
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = (json.loads(line[6:]) for line in server.stdout if line.startswith("EVENT "))
            ready = next(event for event in said if event["event"] in ("serving", "failed"))
            create = openai.OpenAI(base_url=f"{ready['url']}/v1", api_key="none").chat.completions.create
            asked = {"model": "tuned", "messages": [{"role": "user", "content": ASKED}], "max_tokens": 20, "temperature": 0}
            assert "Insert an item" in create(**asked).choices[0].message.content
            *chunks, last = create(**asked, stream=True, stream_options={"include_usage": True})
            assert "Insert an item" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert last.usage.completion_tokens > 3 and last.usage.prompt_tokens > 3
            with pytest.raises(openai.BadRequestError, match="context window"):
                create(**asked | {"messages": [{"role": "user", "content": "word " * 300}]})
        finally:
            server.terminate()
            last_words = "".join(server.stdout)  # to their end: a pipe that nobody reads would fail it
    assert server.returncode == 0 and '"reason": "cancelled"' in last_words
