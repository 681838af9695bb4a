"""What goes wrong while a model is served, servers behind it, and its parts."""

# ruff: noqa: F811 (fixtures are those of test_serve.py)

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import tomllib

import numpy as np
import pytest
import serving
from commands import HASTY, Commands
from conftest import ROOT
from hub.hardware import HARDWARE
from hubs import ADA, event
from huggingface_hub import HfApi
from huggingface_hub.hf_api import JobHardwareInfo
from safetensors.numpy import save_file
from starlette.testclient import TestClient
from test_serve import QUESTION, SERVING, TOKENS, ada, asking, models, on_hub, serving_python  # noqa: F401
from tiny_models import shape_of_a_model
from unsloth_jobs.errors import UserError
from unsloth_jobs.estimate.flavors import as_flavor
from unsloth_jobs.estimate.serving import CONTEXT, VLLM, Served, choose
from unsloth_jobs.jobs.serving import GGUF_LIBRARIES, LLAMA_LIBRARY, PORT
from unsloth_jobs.lookup.model_info import Model


@pytest.mark.hub(model="shape", rows=False)
def test_what_cannot_be_served_is_refused_before_anything_is_paid(hub, commands, tmp_path):
    def add(name: str, **how: object) -> None:
        folder = tmp_path / name
        files = how.pop("files", {})
        shape_of_a_model(folder, **how) if how else folder.mkdir()
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        hub.add_repo(f"ada/{name}", folder)

    lora = {"peft_type": "LORA", "r": 8}
    for name, base in (("lost", "ada/nowhere"), ("gated-base", "meta/gated"), ("no-base", "/home/x"), ("fits", "ada/tiny")):
        add(name, files={"adapter_config.json": lora | {"base_model_name_or_path": base}, "adapter_model.safetensors": ""})
    add("encoder", files={}, layers=1)
    config = json.loads((tmp_path / "encoder" / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config))
    hub.add_repo("ada/encoder", tmp_path / "encoder")
    hub.add_repo("meta/gated", tmp_path / "model", gated="manual")
    add("large", layers=40, hidden=8192, held=False, intermediate_size=8192, num_attention_heads=64)
    assert on_hub(commands, "ada/missing", code=1) == "not_found"
    assert on_hub(commands, "ada/lost", code=1) == "not_found"
    assert on_hub(commands, "ada/gated-base", code=1) == "gated"
    assert on_hub(commands, "ada/no-base", code=1) == "no_base_model"
    assert on_hub(commands, "ada/fits", "--base-model", "ada/large", code=2) == "base_conflict"
    assert on_hub(commands, "ada/encoder", code=1) == "not_served"
    assert on_hub(commands, "ada/large", "--flavor", "t4-small", code=2) == "flavor_misfit"
    assert on_hub(commands, "ada/fits", "--flavor", "cpu-basic", "--engine", "vllm", code=2) == "flavor_misfit"
    assert on_hub(commands, "ada/fits", "--flavor", "quantum", code=2) == "unknown_flavor"
    assert on_hub(commands, str(tmp_path / "model"), code=1) == "not_a_file"
    assert on_hub(commands, "model-Q4_K_M.gguf", code=2) == "gguf_job"
    assert on_hub(commands, "model-Q4_K_M.gguf", "--where", "local", code=1) == "not_found"
    assert on_hub(commands, "ada/fits", "--where", "moon", code=2) == "bad_place"
    assert on_hub(commands, "ada/fits", "--yes", code=2) == "no_ceiling"
    assert on_hub(commands, "ada/fits", "--chat", code=2) == "bad_arguments"
    assert on_hub(commands, "ada/large", "--max-usd", "0.1", code=3) == "over_budget"
    assert on_hub(commands, "6871f2a0b0c4d5e6f7a8b9c0", code=1) == "unknown_job"
    assert not list(hub.jobs)


@pytest.mark.hub(model="none", rows=False)
def test_a_larger_model_is_planned_on_a_gpu_with_vllm_in_its_own_image(hub, commands, tmp_path):
    """The command itself cannot run here: what the job is told to do is compared word by word."""
    base = shape_of_a_model(
        tmp_path / "base", layers=16, hidden=4096, held=False, num_attention_heads=32, num_key_value_heads=8
    )
    hub.add_repo("ada/base", base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 24, "base_model_name_or_path": "ada/base"})
    )
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    hub.add_repo("ada/adapter", adapter)
    shown = commands.json("serve.py", "ada/adapter", "--flavor", "l4x1", code=3)
    assert shown["summary"]["engine"].startswith(f"vllm {VLLM}, in vllm/vllm-openai:v{VLLM}")
    cheapest = commands.json("serve.py", "ada/adapter", code=3)["plan"]
    assert cheapest["flavor"] == "t4-small" and "--engine=transformers" in cheapest["arguments"]  # no bf16
    commands.run(
        "serve.py", "ada/adapter", "--flavor", "l4x1", "--approve", shown["plan_id"], code=None
    )  # it has ended at once
    [job] = hub.jobs
    spec = job.spec
    assert spec["dockerImage"] == f"vllm/vllm-openai:v{VLLM}" and spec["expose"]["ports"] == [8000]
    hub.jobs.set(job.id, stage="COMPLETED", message=None, logs=["a log without events"])
    assert "To serve it again" in commands.json("status.py", job.id)["next"]
    assert spec["command"][:2] == ["python3", "/data/serving.py"] and "--engine=vllm" in spec["command"]
    one = serving.Contender("base", "ada/base", "c0ffee", base)
    words = serving.vllm_command(
        "base", one, serving.Contender("ada/adapter", "ada/base", "c0ffee", base, adapter), 9, 8192, False
    )
    told = dict(zip(words, words[1:], strict=False))
    assert words[:3] == ["vllm", "serve", "ada/base"] and told["--revision"] == "c0ffee" and told["--host"] == "127.0.0.1"
    assert (
        told["--max-lora-rank"] == "32"
        and told["--lora-modules"] == f"tuned={adapter}"
        and told["--served-model-name"] == "base"
    )


@pytest.mark.hub(model="none", rows=False)
def test_a_whole_model_is_served_beside_the_one_that_its_card_names(hub, commands, tmp_path):
    hub.add_repo("ada/base", shape_of_a_model(tmp_path / "base"))
    whole = shape_of_a_model(tmp_path / "whole")
    (whole / "README.md").write_text("---\nbase_model: ada/base\n---\n")
    hub.add_repo("ada/whole", whole)
    (whole / "README.md").write_text("---\nbase_model: ada/gone\n---\n")
    hub.add_repo("ada/orphan", whole)
    both = commands.json("serve.py", "ada/whole", code=3)
    assert both["summary"]["beside"].startswith("base: ada/base at ") and "--base-model=ada/base" in both["plan"]["arguments"]
    for words in (["ada/whole", "--base-model", "none"], ["ada/orphan"]):
        alone = commands.json("serve.py", *words, code=3)
        assert alone["summary"]["beside"] == "base: none: tuned answers alone" and "--base-model=ada" not in str(
            alone["plan"]["arguments"]
        )


def test_a_gguf_file_is_served_by_the_versions_of_the_templates():
    pinned = tomllib.loads((ROOT / "recipes" / "versions.toml").read_text())["packages"]
    for library in (*GGUF_LIBRARIES, LLAMA_LIBRARY):
        name, version = library.split("==")
        assert pinned[name] == version


def test_what_is_planned_is_what_the_template_does_by_itself():
    alone = serving.Settings(model="x")
    assert (alone.context, alone.port) == (CONTEXT, PORT)


@pytest.mark.hub(model="none", rows=False)
def test_a_port_that_never_answers_ends_the_job(hub, commands, monkeypatch):
    """The job says that it answers, and nothing does: it would be paid for until its timeout."""
    api = HfApi(endpoint=hub.url, token=ADA)
    job = api.run_job(image="x", command=["serve"], expose=[8000], flavor="cpu-basic", namespace="ada").id
    hub.jobs.set(job, stage="RUNNING", logs=[event("plan"), event("serving", models=["base", "tuned"], requests=0)])
    hasty = HASTY | {"chat.address:ANSWERS_WITHIN_S": 0.2, "chat.address:LOOKS_EVERY_S": {"hf": 0.1}}
    said = Commands(commands.env, commands.cwd, settings=hasty).run("serve.py", job, "--wait", "--json", code=1)
    assert said.problem == "unreachable" and "502" in said.stdout and hub.jobs.get(job).stage == "CANCELED"


@pytest.mark.hub(model="none", rows=False)
def test_a_job_that_fails_before_it_answers_is_diagnosed(hub, commands):
    api = HfApi(endpoint=hub.url, token=ADA)
    job = api.run_job(image="x", command=["serve"], expose=[8000], flavor="cpu-basic", namespace="ada").id
    failed = event("failed", code="engine_failed", message="vllm ended with exit code 1", fix="x")
    logs = [event("plan"), event("listening", models=["tuned"]), failed]
    hub.jobs.set(job, stage="ERROR", message="Job failed with exit code: 1", logs=logs)
    said = commands.run("serve.py", job, "--json", code=1)
    assert said.problem == "engine_failed" and "vllm ended" in said.stdout and "--engine transformers" in said.stdout


def test_the_adapter_of_another_model_ends_the_server_with_a_reason(serving_python, models, tiny_model, tmp_path):
    wrong = shutil.copytree(models.folder, tmp_path / "wrong")
    tensors = {"base_model.model.model.layers.0.feed_forward.w1.lora_A.weight": np.zeros((8, 3), np.float32)}
    save_file(tensors, wrong / "adapter_model.safetensors")
    command = [serving_python, str(SERVING), "--model", str(wrong), "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and '"code": "adapter_misfit"' in done.stdout, done.stdout[-2000:]


def test_a_server_behind_it_is_asked_counted_and_ended(serving_python, models, tmp_path):
    port = serving.free_port()
    command = [serving_python, str(SERVING), "--model", str(models.folder), "--port", str(port)]
    upstream = serving.Upstream(command, port, "/health")
    tally = serving.Tally({}, 600, None)
    try:
        upstream.wait_until_ready("it")
        both = serving.Upstreams({"base": upstream, "tuned": upstream})
        body = {"model": "tuned", "messages": asking(), "max_tokens": TOKENS}
        chunks = list(both.stream(body | {"stream": True}, tally, threading.Event()))
        said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert said == models.said["tuned"] and {chunk["model"] for chunk in chunks} == {"tuned"}
        assert both.complete(body | {"model": "base"}, tally)["choices"][0]["message"]["content"] == models.said["base"]
        assert (tally.requests, tally.tokens) == (2, 2 * TOKENS) and tally.prompt_tokens > 20
        with pytest.raises(serving.BadRequest) as refused:
            both.complete(body | {"max_tokens": 0}, tally)
        assert refused.value.status == 400 and "max_tokens" in refused.value.message
        given_up = threading.Event()
        given_up.set()
        assert len(list(both.stream(body | {"stream": True}, tally, given_up))) == 0
    finally:
        upstream.close()
    assert upstream.process.wait(10) == 0  # ended from outside is an end, of which it says what it has answered
    for one in threading.enumerate():
        if getattr(one, "_target", None) == upstream.read_output:
            one.join(10)
    assert any('"event": "done", ' in line and '"reason": "cancelled"' in line for line in upstream.lines), upstream.lines
    broken = serving.Upstream([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], port, "/health")
    with pytest.raises(serving.Stop, match="exit code 3 before it answered: no such model"):
        broken.wait_until_ready("vllm")


class Broken:
    """An engine that fails before its first word, with the question in its mouth, or says nothing."""

    def __init__(self, *words: str):
        self.words = words

    def stream(self, body, tally, given_up):
        for word in self.words:
            raise RuntimeError(f"{word} {body['messages'][0]['content']}")
        yield from ()

    complete = stream


@pytest.mark.parametrize("engine", [Broken("no memory for"), Broken()])
def test_an_engine_that_fails_says_so_to_who_asked_and_quotes_nothing_in_the_log(engine, capfd):
    server = serving.ChatServer(["tuned"], serving.Tally({}, 600, None), lambda: engine, only_loopback=False)
    server.engine = engine
    client = TestClient(server.app())
    body = {"model": "tuned", "messages": [{"role": "user", "content": "my secret"}], "stream": True}
    answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failed")
    said = capfd.readouterr()
    assert "in stream" in said.err or not engine.words
    assert "secret" not in said.out + said.err + answer.text


def pieces_of(texts: list[str], stop: tuple[str, ...] = ()) -> tuple[list[str], serving.Pieces]:
    """What a client is sent of an answer that has grown to these texts, one after the other."""
    pieces = serving.Pieces(None, set(), stop, threading.Event())
    for text in texts:
        pieces.show(text)
    pieces.show(texts[-1], is_last=True)
    pieces.end()
    return list(pieces), pieces


def test_an_answer_is_sent_in_whole_characters_and_stops_before_its_stop_word():
    assert pieces_of(["caf", "caf\ufffd", "café"])[0] == ["caf", "é"]
    assert pieces_of(["ab\ufffd"])[0] == ["ab\ufffd"]  # the model's own
    sent, pieces = pieces_of(["one", "one <", "one <e", "one <en", "one <end> two"], ("<end>",))
    assert "".join(sent) == "one " and pieces.finish == "stop" and pieces.is_over
    assert "".join(pieces_of(["one", "one <e", "one <ea"], ("<end>",))[0]) == "one <ea"


def test_an_answer_is_ended_on_the_device_that_it_is_written_on(serving_python):
    """What generate joins with its own criteria: on a GPU, a tensor of the CPU ends every answer with an error."""
    code = (
        "import threading, torch, serving; pieces = serving.Pieces(None, set(), ('end',), threading.Event()); "
        "over = lambda device: pieces.over(torch.zeros(2, 3, dtype=torch.long, device=device)); "
        "print(over('meta').device, over('cpu').tolist(), pieces.show('the end'), over('cpu').tolist())"
    )
    done = subprocess.run([serving_python, "-c", code], capture_output=True, text=True, cwd=SERVING.parent)
    assert done.stdout.split() == ["meta", "[False,", "False]", "None", "[True,", "True]"], done.stderr


def test_the_cheapest_machine_that_holds_the_model_is_chosen():
    flavors = [as_flavor(JobHardwareInfo(**machine.info())) for machine in HARDWARE.values()]

    def model(billions: float, architecture: str = "LlamaForCausalLM", **config: object) -> Model:
        width = 2048
        shape = (round(billions * 1e9 / width), width)
        told = {"num_hidden_layers": 24, "hidden_size": width, "num_attention_heads": 16, "num_key_value_heads": 4} | config
        return Model("x/y", "c", architecture, told, False, {"model.embed_tokens.weight": ("BF16", shape)})

    def chosen(*models: Model, engine: str = "auto") -> tuple[str, str]:
        found = choose(flavors, Served(models), engine, None)
        return found.flavor.name, found.engine

    assert chosen(model(0.135)) == ("cpu-basic", "transformers")
    assert chosen(model(1.2)) == ("t4-small", "transformers")
    assert chosen(model(1.2), engine="vllm") == ("t4-small", "vllm")
    assert chosen(model(1.2, model_type="gemma3_text")) == ("l4x1", "vllm")  # fp16 would overflow
    assert chosen(model(8)) == ("l4x1", "vllm")
    assert chosen(model(8, "StrangeForCausalLM")) == ("l4x1", "transformers")
    assert chosen(model(8), model(8)) == ("l40sx1", "vllm")  # two whole models
    assert chosen(model(30)) == ("a100-large", "vllm")
    with pytest.raises(UserError, match="No machine holds"):
        chosen(model(400))
