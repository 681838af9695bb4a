"""check.py and estimate.py against the test Hub: what they find is true, and differs as the runs do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import HASTY, Commands
from conftest import ROWS, make_tokenizer
from hub import Hub, Organization
from hubs import ADA, BOB, hub_of_ada
from safetensors.numpy import save_file
from tiny_models import wide_model

CHECK_KEYS = {
    "ok": None,
    "problems": None,
    "model": {"id", "revision", "architecture", "parameters", "context_length", "gated"},
    "dataset": {"id", "revision", "config", "split", "rows", "bytes", "format", "columns", "unused"},
    "tokens": {"sampled", "mean", "p50", "p95", "max", "total", "total_low", "total_high"},
    "mask": {"supervised_fraction", "rows_without_answer", "sample"},
    "lora": {"target_modules", "coverage", "linear_share"},
}
FLAVOR_KEYS = {"flavor", "fits", "vram_gb", "needed_gb", "hours_low", "hours_high", "usd_low", "usd_high"}


@pytest.fixture
def hub(hub: Hub, tiny_model: Path) -> Hub:
    """Bob has no access to Ada's gated model."""
    hub.add_user("bob", token=BOB)
    hub.add_repo("ada/gated", tiny_model, gated="manual")
    return hub


class Checker(Commands):
    """check.py in one environment; each call answers with the JSON and the exit code."""

    def __call__(self, *words: str, token: str = ADA) -> dict[str, Any]:
        self.env["HF_TOKEN"] = token
        said = self.run("check.py", *words, "--json", code=None)
        assert ADA not in said.stderr and "hf_" not in said.stderr
        found = said.json
        assert all(problem["message"] and problem["fix"] for problem in found["problems"])
        codes = {problem["code"]: problem for problem in found["problems"]}
        return found | {"exit_code": said.returncode, "codes": codes, "stderr": said.stderr, "held": said.held}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Hub]:
    """A Hub for checks that only read; each test adds what it looks at."""
    root = tmp_path_factory.mktemp("shared")
    rows = write_rows(root / "docs", {"train.jsonl": [json.loads(line) for line in ROWS.read_text().splitlines()]})
    with hub_of_ada(root, model=tiny_model, rows=rows) as hub:
        yield hub


@pytest.fixture(scope="module")
def check(shared: Hub, tmp_path_factory: pytest.TempPathFactory) -> Checker:
    env = shared.env(token=ADA) | {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    return Checker(env, tmp_path_factory.mktemp("checks"), settings=HASTY)


def write_rows(folder: Path, files: dict[str, list[dict]]) -> Path:
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_a_sound_run_is_described_by_its_contract(hub, commands):
    found = commands.json("check.py", "ada/tiny", "ada/docs", "--max-length", "256")
    assert found["ok"] is True
    for part, keys in CHECK_KEYS.items():
        assert part in found
        assert keys is None or keys <= found[part].keys(), part
    assert found["model"]["parameters"] == 772_416  # as transformers counts them when the model is made
    assert found["model"]["revision"] == hub.store.repos["model", "ada/tiny"].head.sha
    assert (found["dataset"]["rows"], found["dataset"]["format"]) == (320, "messages")
    assert found["tokens"]["total"] == pytest.approx(found["tokens"]["mean"] * 320, rel=0.01)
    assert (found["lora"]["coverage"], found["lora"]["linear_share"], found["model"]["context_length"]) == (1.0, 1.0, 512)
    chosen = {"config": "default", "split": "train", "bytes": ROWS.stat().st_size, "unused": ["source"]}
    assert found["dataset"] == found["dataset"] | chosen
    rights = {"owner": "ada", "may_write": True, "may_start_jobs": True, "payers": ["ada"]}
    assert found["identity"] == found["identity"] | rights
    text = ROWS.read_text().splitlines()[0]
    learned = [part["text"] for part in found["mask"]["sample"] if part["learned"]]
    assert learned == [json.loads(text)["messages"][1]["content"] + "<|im_end|>"]
    assert len(hub.journal.requests(path=r"whoami")) == 1
    assert not [
        r for r in hub.journal.requests(method="GET", path="ada/tiny/resolve/.*safetensors") if "range" not in r.headers
    ]


def test_a_person_sees_what_is_learned(commands):
    shown = commands.run("check.py", "ada/tiny", "ada/docs").stdout
    assert "772,416 parameters" in shown
    assert "<|im_start|>assistant" in shown
    assert "Sound." in shown


@pytest.mark.parametrize(
    ("model", "dataset", "codes"),
    [
        ("ada/tinny", "ada/docs", {"not_found"}),
        ("ada/tiny", "ada/dogs", {"not_found"}),
        ("ada/tinny", "ada/dogs", {"not_found"}),
        ("./nowhere", "ada/docs", {"not_found"}),
        ("ada/tiny", "ada/docs --split trian", {"unknown_split"}),
        ("ada/tiny", "ada/docs --target-modules q_proj,gate_proj", {"unknown_target"}),
        ("ada/tiny", "ada/docs --max-length 8", {"nothing_supervised"}),
    ],
)
def test_what_is_wrong_is_said_with_its_fix(check, model, dataset, codes):
    found = check(model, *dataset.split())
    assert found["exit_code"] == 1
    assert found["ok"] is False
    errors = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert {problem["code"] for problem in errors} == codes
    assert all(problem["fix"] for problem in errors)


def test_a_gated_model_needs_access(hub, tmp_path):
    commands = Commands(hub.env(token=BOB), tmp_path)
    found = commands.json("check.py", "ada/gated", "ada/docs", code=1)
    [problem] = [problem for problem in found["problems"] if problem["severity"] == "error"]
    assert problem["code"] == "gated"
    assert f"{hub.url}/ada/gated" in problem["fix"]


def test_part_of_the_modules_is_a_warning_with_the_share(commands):
    found = commands.json("check.py", "ada/tiny", "ada/docs", "--target-modules", "q_proj,k_proj")
    assert found["lora"]["linear_share"] < found["lora"]["coverage"] < 0.2  # narrow layers cost LoRA more than their size
    [problem] = found["problems"]
    assert problem["code"] == "low_coverage"
    [modules] = re.findall(r"--target-modules (\S+)", problem["fix"])
    mended = commands.json("check.py", "ada/tiny", "ada/docs", "--target-modules", modules)
    assert (mended["lora"]["coverage"], mended["problems"]) == (1.0, [])


def test_the_estimate_uses_the_hub_s_prices_and_ranks_by_dollars_per_run(hub, commands):
    found = commands.json("estimate.py", "ada/tiny", "ada/docs", "--epochs", "2")
    assert found["price_source"] == f"{hub.url}/api/jobs/hardware"
    assert all(one.keys() >= FLAVOR_KEYS for one in found["flavors"])
    fitting = [one for one in found["flavors"] if one["fits"]]
    assert fitting == sorted(fitting, key=lambda one: one["usd_high"])
    assert fitting[0]["flavor"] == found["recommended"]["flavor"]
    assert all(0 < one["usd_low"] < one["usd_high"] for one in fitting)
    assert found["recommended"]["timeout_s"] > fitting[0]["hours_high"] * 3600
    assert not any(one["fits"] for one in found["flavors"] if one["flavor"].startswith("cpu"))


def test_the_estimate_grows_with_the_model_and_the_work(hub, commands, tmp_path, tiny_model):
    hub.add_repo("ada/wide", wide_model(tmp_path / "wide", tiny_model, layers=8, hidden=1024))
    hub.add_repo("ada/narrow", wide_model(tmp_path / "narrow", tiny_model, layers=2, hidden=256))

    def l4(*words: str) -> dict:
        return commands.json("estimate.py", *words, "--flavor", "l4x1")["flavors"][0]

    narrow, wide, longer = (
        l4(name, "ada/docs", "--epochs", epochs)
        for name, epochs in (("ada/narrow", "900"), ("ada/wide", "900"), ("ada/wide", "90000"))
    )
    assert wide["needed_gb"] > narrow["needed_gb"]
    assert wide["hours_high"] > narrow["hours_high"]
    assert longer["seconds"]["training"] == pytest.approx([100 * end for end in wide["seconds"]["training"]], rel=0.02)
    assert longer["usd_high"] > 2 * wide["usd_high"]
    assert l4("ada/wide", "ada/docs", "--load-in-4bit")["needed_gb"] < wide["needed_gb"]
    assert l4("ada/wide", "ada/docs", "--max-steps", "3")["hours_high"] < wide["hours_high"]


def test_without_the_hub_the_dated_snapshot_is_used_and_said(tmp_path, tiny_model):
    commands = Commands({"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}, tmp_path)
    found = commands.json("estimate.py", str(tiny_model), str(ROWS))
    assert "2026-08-22" in found["price_source"]
    assert found["recommended"]["max_usd"] > 0


def test_a_csv_on_this_machine_is_a_data_set(commands, tmp_path):
    (tmp_path / "support.csv").write_text("question,answer\n" + "How do I log in?,Use the blue button.\n" * 60)
    found = commands.json("check.py", "ada/tiny", "support.csv")
    assert (found["dataset"]["format"], found["dataset"]["rows"]) == ("prompt-completion", 60)


def test_a_token_that_cannot_do_the_work_is_known_before_submit(shared, check):
    everything = ["repo.write", "job.write"]
    shared.add_user("ada", token="hf_readreadread", role="read")
    shared.add_user("ada", token="hf_nojobsnojobs", role="fineGrained", permissions=["repo.write", "repo.content.read"])
    shared.add_user("ada", token="hf_norepopaying", role="fineGrained", permissions=["job.write"])
    shared.add_user("ada", token="hf_finefinefine", role="fineGrained", permissions=everything)
    shared.add_user("eve", token="hf_eveeveeveeve", can_pay=False)
    orgs = [Organization("rich"), Organization("poor", can_pay=False), Organization("library", role="read")]
    shared.add_user("kim", token="hf_kimkimkimkim", can_pay=False, orgs=orgs)

    rights = {}

    def problem(token: str, *words: str) -> tuple[int, dict]:
        shared.journal.clear()
        found = check("ada/tiny", "ada/docs", *words, token=token)
        if identity := found["identity"]:
            rights[token] = (identity["may_write"], identity["may_start_jobs"], identity["payers"])
        assert len(shared.journal.requests(path="whoami")) == (1 if token else 0)
        return found["exit_code"], found["codes"]

    code, problems = problem("hf_readreadread")
    assert code == 4 and "write repositories" in problems["token_cannot_write"]["message"]
    code, problems = problem("hf_nojobsnojobs")
    assert code == 4 and "start jobs" in problems["token_cannot_write"]["message"]
    assert "write repositories" in problem("hf_norepopaying")[1]["token_cannot_write"]["message"]
    assert problem("hf_finefinefine") == (0, {})
    assert problem("hf_eveeveeveeve", "--namespace", "ada")[1].keys() == {"not_a_member"}
    code, problems = problem("hf_eveeveeveeve")
    assert code == 0 and problems["no_billing"]["severity"] == "warning"
    code, problems = problem("hf_kimkimkimkim")
    assert code == 0 and "--namespace rich." in problems["no_billing"]["fix"]
    assert problem("hf_kimkimkimkim", "--namespace", "rich") == (0, {})
    assert problem("hf_kimkimkimkim", "--namespace", "poor")[1].keys() == {"no_billing"}
    assert "token_cannot_write" in problem("hf_kimkimkimkim", "--namespace", "library")[1]
    code, problems = problem("")
    assert (code, problems.keys()) == (4, {"no_token"})
    assert rights["hf_readreadread"] == (False, False, [])
    assert rights["hf_nojobsnojobs"] == (True, False, [])
    assert rights["hf_norepopaying"] == (False, True, [])
    assert rights["hf_finefinefine"] == (True, True, ["ada"])
    assert rights["hf_kimkimkimkim"] == (False, False, ["rich"])  # in the library, as asked last
    code, problems = problem("hf_unknownunknown")
    assert (code, problems.keys()) == (4, {"bad_token"})


def test_an_id_that_is_almost_right_is_corrected(shared, check, tiny_model):
    for name in ("acme/LFM2-350M", "acme/LFM2-700M", "acme/other"):
        shared.add_repo(name, tiny_model)
    found = check("acme/LFM2-35M", "ada/dcos")
    fixes = [problem["fix"] for problem in found["problems"]]
    assert fixes[0].startswith("Did you mean acme/LFM2-350M or acme/LFM2-700M?") and "ada/docs" in fixes[1]
    assert "acme/LFM2-350M" in check("LFM2-350M", "ada/docs")["codes"]["not_found"]["fix"]
    assert "Did you mean" not in check("zzz/quite-different", "ada/docs")["codes"]["not_found"]["fix"]


def model_folder(folder: Path, config: dict | None, tensors: dict[str, np.ndarray] | None, tokenizer: Any = None) -> Path:
    """A model's repository of these parts; any of them can be missing."""
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def llama_tensors(hidden: int = 64, inner: int = 96, words: int = 512, packed: bool = False) -> dict[str, np.ndarray]:
    """One layer, in 16 bits or as bitsandbytes packs its linear weights."""
    tensors = {
        "model.embed_tokens.weight": np.zeros((words, hidden), np.float16),
        "model.norm.weight": np.zeros(hidden, np.float16),
    }
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden // 2, hidden), "mlp.down_proj": (hidden, inner)}
    for name, (out, into) in shapes.items():
        weight = f"model.layers.0.{name}.weight"
        if packed:
            tensors[weight] = np.zeros((out * into // 2, 1), np.uint8)
            tensors[weight + ".absmax"] = np.zeros(out * into // 64, np.uint8)
            tensors[weight + ".quant_map"] = np.zeros(16, np.float32)
            tensors[weight + ".nested_absmax"] = np.zeros(3, np.float32)
            tensors[weight + ".quant_state.bitsandbytes__nf4"] = np.zeros(80, np.uint8)
        else:
            tensors[weight] = np.zeros((out, into), np.float16)
    return tensors


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 512}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def card(info: dict) -> str:
    return f"---\n{json.dumps({'dataset_info': info})}\n---\n"


def test_a_cache_that_cannot_be_used_is_named(hub, tmp_path, tiny_model):
    (tmp_path / "file").touch()
    commands = Commands(hub.env(token=ADA) | {"HF_HOME": str(tmp_path / "file")}, tmp_path)
    done = commands.run("check.py", str(tiny_model), "ada/docs", code=1)
    assert "cache_unwritable" in done.stderr and "export HF_HOME=" in done.stderr


def test_what_is_missing_does_not_hide_what_is_there(check):
    model_only, data_only = check("ada/tiny", "ada/dogs"), check("ada/tinny", "ada/docs", "--dataset-split", "train")
    assert (model_only["dataset"], model_only["lora"]["coverage"]) == (None, 1.0)
    assert (data_only["model"], data_only["tokens"], data_only["mask"]) == (None, None, None)
    assert (data_only["dataset"]["rows"], data_only["dataset"]["format"]) == (320, "messages")
    assert check("ada/tinny", "ada/docs", "--dataset-split", "trian")["codes"].keys() == {"not_found", "unknown_split"}


def test_the_part_that_was_chosen_and_the_columns_that_are_left_are_told(shared, check, tmp_path):
    rows = [{"id": number, "question": f"What is {number}?", "answer": "A number.", "source": "me"} for number in range(60)]
    folder = write_rows(tmp_path, {"english/test.jsonl": rows})
    files = [{"split": "test", "path": "english/*"}]
    configs = [{"config_name": "english", "data_files": files}]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    shared.add_repo("data/chosen", folder, type="dataset")
    found = check("ada/tiny", "data/chosen")["dataset"]
    assert (found["config"], found["split"], found["unused"]) == ("english", "test", ["id", "source"])
    assert found["bytes"] == (folder / "english" / "test.jsonl").stat().st_size
    local = check("ada/tiny", str(folder / "english" / "test.jsonl"))["dataset"]
    assert (local["config"], local["split"], local["bytes"]) == (None, None, found["bytes"])


def test_the_total_has_an_interval_that_holds_it_and_sorted_rows_are_told(shared, check, tmp_path):
    lengths = [1 + 7 * number % 97 for number in range(400)]
    for name, order in (("mixed", lengths), ("sorted", sorted(lengths))):
        rows = [chat("word " * length, f"Number {number}.") for number, length in enumerate(order)]
        shared.add_repo(f"data/{name}", write_rows(tmp_path / name, {"train.jsonl": rows}), type="dataset")
    mixed, sort = (check("ada/tiny", f"data/{name}", "--sample", "100") for name in ("mixed", "sorted"))
    every = check("ada/tiny", "data/sorted", "--sample", "400")
    true = every["tokens"]["total"]
    assert every["tokens"]["total_low"] == true == every["tokens"]["total_high"]
    assert mixed["tokens"]["total_low"] < true < mixed["tokens"]["total_high"] < 1.3 * true
    assert [list(one["codes"]) for one in (mixed, sort, every)] == [[], ["rows_sorted"], []]
    assert "--sample 400" in sort["codes"]["rows_sorted"]["fix"]


def test_the_length_that_keeps_the_answers_is_told_and_keeps_them(shared, check, tmp_path):
    rows = [chat("word " * number, f"Yes, {number}.") for number in range(1, 101)]
    shared.add_repo("data/growing", write_rows(tmp_path, {"train.jsonl": rows}), type="dataset")
    assert check("ada/tiny", "data/growing", "--max-length", "8")["codes"]["nothing_supervised"]
    short = check("ada/tiny", "data/growing", "--max-length", "100")
    problem, mask = short["codes"]["rows_lost"], short["mask"]
    assert "answer cut away" in problem["message"]
    assert f"--max-seq-length {mask['length_for_all']}" in problem["fix"]
    most = check("ada/tiny", "data/growing", "--max-length", str(mask["length_for_95"]))["mask"]
    every = check("ada/tiny", "data/growing", "--max-length", str(mask["length_for_all"]))
    less = check("ada/tiny", "data/growing", "--max-length", str(mask["length_for_all"] - 1))["mask"]
    assert 0 < most["rows_without_answer"] <= 5
    assert (every["mask"]["rows_without_answer"], every["mask"]["eos_supervised_fraction"], every["codes"]) == (0, 1.0, {})
    assert less["eos_supervised_fraction"] == 0.99


def test_rows_that_repeat_are_counted(shared, check, tmp_path):
    rows = [chat(f"What is {number}?", "A number.") for number in range(90)]
    shared.add_repo("data/some", write_rows(tmp_path / "a", {"train.jsonl": rows + rows[:4]}), type="dataset")
    shared.add_repo("data/many", write_rows(tmp_path / "b", {"train.jsonl": rows + rows[:10]}), type="dataset")
    some, many = (check("ada/tiny", f"data/{name}") for name in ("some", "many"))
    assert (some["dataset"]["duplicates"], list(some["codes"])) == (4, [])
    assert (many["dataset"]["duplicates"], list(many["codes"])) == (10, ["duplicates"])


def test_rows_are_counted_by_the_best_source_there_is_and_only_the_sample_is_read(shared, check, tmp_path):
    lines = [chat(f"What is {number:05}?", "A number.") for number in range(400)]
    files = {f"data/train-{part:05}-of-00010.jsonl": lines for part in range(10)}
    split = {"name": "train", "num_examples": 40_000_000, "num_bytes": 1}
    huge = write_rows(tmp_path / "huge", files)
    (huge / "README.md").write_text(card({"splits": [split]}))
    shared.add_repo("data/huge", huge, type="dataset")
    shared.add_repo("data/plain", write_rows(tmp_path / "plain", files), type="dataset")

    def counted(name: str, *words: str) -> tuple[int | None, str | None]:
        dataset = check("ada/tiny", name, *words)["dataset"]
        return dataset["rows"], dataset["rows_source"]

    shared.journal.clear()
    assert counted("data/huge", "--sample", "20") == (40_000_000, "metadata")
    read = {record.path for record in shared.journal.requests("GET", r"datasets/data/huge/resolve/.*\.jsonl")}
    assert read and all("train-00000" in path for path in read)
    assert not shared.journal.requests(path="/viewer")
    assert counted("data/plain", "--sample", "20") == (4000, "viewer")
    many = {"config": "default", "split": "train", "num_rows": 90_000, "estimated_num_rows": 40_000_000}
    shared.faults.add(path="/viewer/size", status=200, body={"size": {"splits": [many]}, "partial": True})
    assert counted("data/plain", "--sample", "20") == (40_000_000, "estimated")
    shared.faults.clear()
    shared.faults.add(path="/viewer", status=500)
    try:
        assert counted("data/plain", "--sample", "20") == (4000, "estimated")
        assert counted("ada/docs", "--sample", "20")[0] == pytest.approx(320, rel=0.2)
        assert counted("ada/docs", "--sample", "320") == (320, "counted")
        assert counted(str(tmp_path / "plain" / "data" / "train-00000-of-00010.jsonl"), "--sample", "20") == (400, "counted")
    finally:
        shared.faults.clear()


FAULTS = {
    "down": ({"drop": "before"}, "hub_unreachable"),
    "slow": ({"delay": 4}, "hub_unreachable"),
    "busy": ({"status": 429, "headers": {"Retry-After": "3600"}}, "rate_limited"),
    "broken": ({"status": 500}, "hub_error"),
    "refused": ({"status": 401, "body": {"error": "Invalid credentials in Authorization header"}}, "bad_token"),
    "forbidden": ({"status": 403, "body": {"error": "Not with this token"}}, "forbidden"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hub_that_does_not_answer_ends_the_check_in_seconds_and_says_so(shared, check, fault):
    what, code = FAULTS[fault]
    for place in ("/api/whoami", "/api/models/ada/tiny", "/api/datasets/ada/docs", "ada/docs/resolve/.*jsonl"):
        shared.faults.add(path=place, **what)
        shared.journal.clear()
        found = check("ada/tiny", "ada/docs", "--sample", "5")
        shared.faults.clear()
        assert (found["exit_code"], *found["codes"]) == (4, code), place
        assert len(shared.journal.requests(path=place)) < 10  # each is waited for for 2 s, here, and 10 s elsewhere


THINKING = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}")


def test_what_the_chat_template_drops_and_rows_that_never_stop_are_told(shared, check, tmp_path):
    thought = [
        *chat("What is 2?", "<think>easy</think>Two.")["messages"],
        *chat("And 3?", "<think>hm</think>Three.")["messages"],
    ]
    rows = {"train.jsonl": [{"messages": thought}] + [chat(f"What is {number}?", "A number.") for number in range(60)]}
    shared.add_repo("data/thoughts", write_rows(tmp_path / "rows", rows), type="dataset")
    templates = {
        "forgets": THINKING,
        "keeps": CHATML,
        "endless": CHATML.replace("<|im_end|>", "").replace("<|im_start|>", "## "),
    }
    for name, template in templates.items():
        tokenizer = make_tokenizer(template)
        if name == "endless":
            tokenizer.eos_token = None
        shared.add_repo(f"masks/{name}", model_folder(tmp_path / name, LLAMA, llama_tensors(), tokenizer))
    found = {name: check(f"masks/{name}", "data/thoughts") for name in templates}
    assert {name: list(one["codes"]) for name, one in found.items()} == {
        "forgets": ["answers_changed"],
        "keeps": [],
        "endless": ["no_eos"],
    }
    assert found["forgets"]["mask"]["changed_rows"] == 1
    assert "<think>easy</think>Two." in found["forgets"]["codes"]["answers_changed"]["message"]
    assert [one["mask"]["eos_supervised_fraction"] for one in found.values()] == [1.0, 1.0, 0.0]


# ---- what people read
