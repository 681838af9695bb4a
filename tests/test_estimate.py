"""What a run will cost, and how runs that are over sharpen it: the real commands against the test Hub."""

from __future__ import annotations

import csv
import json
import math
import subprocess
from pathlib import Path

import pytest
import sft
from commands import Commands
from conftest import ROOT, ROWS, SFT
from hub import Hub
from unsloth_jobs.estimate import cost, other_jobs
from unsloth_jobs.estimate.decoding import writing_seconds
from unsloth_jobs.estimate.flavors import Flavor, snapshot_flavors
from unsloth_jobs.estimate.history import History, Range, entries
from unsloth_jobs.jobs.pricing import Priced, export_misfit, ranked, recommend
from unsloth_jobs.lookup.model_info import Model

RUN = ["ada/tiny", "ada/docs"]
TRAIN = ["--base-model", "ada/tiny", "--dataset", "ada/docs", "--num-epochs", "50"]


def estimate(commands: Commands, *words: str, code: int = 0) -> dict:
    found = commands.json("estimate.py", *RUN, "--epochs", "50", *words, code=code)
    return found | {"by": {one["flavor"]: one for one in found["flavors"]}}


def submit(commands: Commands, *options: str, code: int = 0, train=TRAIN) -> dict:
    return commands.json("submit.py", str(SFT), *options, "--", *train, code=code)


def finish(hub: Hub, commands: Commands, job: str, train_s: float) -> None:
    """Let a job end as a smoke run of 24 steps does: 23 timed steps of 16,000 tokens."""
    hub.jobs.wait(job)
    done = {"event": "done", "steps": 24, "tokens": 16_000, "timed_tokens": 15_000, "first_step_s": 40.0, "train_s": train_s}
    done |= {"evaluations": 5, "evaluation_s": 2.0, "base_loss": 2.0, "tuned_loss": 1.9, "repo": "ada/tiny-docs-smoke"}
    hub.jobs.set(job, stage="COMPLETED", logs=["EVENT " + json.dumps(done)])
    commands.json("status.py", job)


def width(one: dict) -> float:
    return one["hours_high"] / one["hours_low"]


def middle(low: float, high: float) -> float:
    return (low * high) ** 0.5


PARTS = ("weights_gb", "adapter_gb", "optimizer_gb", "activations_gb", "logits_gb", "cuda_gb")


def test_the_memory_is_the_sum_of_its_parts_and_follows_the_settings(hub, commands):
    found = estimate(commands)
    assert sum(found["memory"][part] for part in PARTS) == pytest.approx(found["memory"]["needed_gb"], abs=0.005)
    assert found["memory"]["needed_gb"] == pytest.approx(found["flavors"][0]["needed_gb"], abs=0.01)
    assert found["memory"]["flavor"] == found["recommended"]["flavor"]
    kept, offloaded = (estimate(commands, "--gradient-checkpointing", how)["memory"] for how in ("off", "offload"))
    assert (kept["checkpointing"], offloaded["checkpointing"]) == ("off", "offload")
    wider = estimate(commands, "--lora-r", "64")["memory"]
    assert wider["adapter_gb"] == pytest.approx(4 * found["memory"]["adapter_gb"], abs=0.002)
    assert estimate(commands, "--load-in-4bit")["memory"]["weights_gb"] < found["memory"]["weights_gb"]


def test_each_flavor_that_does_not_fit_says_why(hub, commands):
    found = estimate(commands, "--max-seq-length", "4000000")
    assert "of memory" in found["by"]["l4x1"]["reason"]
    assert found["by"]["cpu-basic"]["reason"] == "no GPU"
    few = estimate(commands, "--batch-size", "1", "--gradient-accumulation", "2")
    assert few["by"]["l4x4"]["code"] == "too_few_rows_a_step" and few["by"]["a10g-largex2"]["fits"]
    refused = estimate(commands, "--max-seq-length", "64000000", code=1)
    assert refused["recommended"] is None


def test_several_gpus_are_faster_and_dearer_and_chosen_only_where_time_is_asked_for():
    """A Llama of 1.2 billion weights on 10,000 rows, 64 a step."""
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")
    tensors = {f"model.layers.{n}.{name}.weight": ("BF16", (3840, 3840)) for n in range(16) for name in names}
    config = {"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 3840, "vocab_size": 32_000}
    model, flavors = Model("a/b", None, "LlamaForCausalLM", config, False, tensors), snapshot_flavors()[0]
    settings = sft.Settings(dataset="rows", num_epochs=3.0, learning_rate=2e-4, gradient_accumulation=16)
    ranked = cost.candidates(flavors, model, settings, cost.Run(10_000, 500, True), History([], "pace"))
    by = {one.flavor: one for one in ranked}
    one, four = by["l4x1"], by["l4x4"]
    assert (one.gpus, four.gpus, four.vram_gb) == (1, 4, 24)
    for one_end, four_end in zip(one.seconds["training"], four.seconds["training"], strict=True):
        assert one_end / 4.01 <= four_end < one_end
    assert four.usd_high > one.usd_high and one.steps == four.steps and one.tokens == four.tokens
    # The cheapest has one GPU. Under a ceiling the fastest; in a time the cheapest; and where there is none, none.
    fitting = {one.flavor: one for one in ranked if one.fits}
    hours = lambda found: fitting[found.flavor].hours_high  # noqa: E731
    cheapest = cost.recommend(ranked, flavors)
    faster, fastest = (cost.recommend(ranked, flavors, cost.Wish(True, max_usd=usd)) for usd in (math.inf, 1000))
    assert cheapest.gpus == 1 and hours(faster) < hours(cheapest) and faster.max_usd <= 3 * cheapest.max_usd
    assert hours(fastest) == min(one.hours_high for one in fitting.values()) and fastest.gpus == 8
    ceiling = (cheapest.max_usd + fastest.max_usd) / 2
    assert cost.recommend(ranked, flavors, cost.Wish(True, max_usd=ceiling)).max_usd <= ceiling
    soon = cost.recommend(ranked, flavors, cost.Wish(within_s=hours(faster) * 3600))
    assert hours(soon) <= hours(faster) and soon.max_usd <= faster.max_usd
    assert cost.recommend(ranked, flavors, cost.Wish(within_s=60)) is None


def test_a_run_that_no_flavor_does_in_that_time_is_told_the_nearest(hub, commands):
    refused = commands.json("estimate.py", *RUN, "--within", "1m", code=1)
    problem = refused["problems"][-1]
    assert (refused["recommended"], problem["code"]) == (None, "nothing_wished")
    assert "The fastest is" in problem["fix"] and "The cheapest is t4-small" in problem["fix"]


def test_what_was_measured_on_a_gpu_lies_within_the_estimated_range(training_python):
    """Tokens a second of the template's whole runs in benchmarks/speed.csv and several.csv, against the range for that GPU."""
    script = [training_python, str(ROOT / "tests" / "pace.py")]
    found = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert len(found) == 7 + 8
    for case in found:
        assert case["slowest"] <= case["measured"] <= case["fastest"], case


def test_the_time_in_which_answers_were_written_on_a_gpu_lies_within_the_range():
    with (ROOT / "benchmarks" / "rewards-speed.csv").open(newline="") as file:
        written = [row for row in csv.DictReader(file) if row["what"] == "write"]
    assert {row["shape"] for row in written} == {"lfm2-1.2b", "llama-1b", "qwen3-4b"}
    for row in written:
        tokens = int(row["tokens"])
        estimated = writing_seconds(int(row["layers"]), Range(tokens, tokens), int(row["at_once"]))
        assert estimated.low <= float(row["seconds"]) <= estimated.high, row


def test_a_number_of_steps_is_what_is_estimated_whatever_the_rows(hub, commands):
    ten, twenty = (estimate(commands, "--max-steps", steps)["tokens"] for steps in ("1000", "2000"))
    assert twenty == pytest.approx(2 * ten, rel=0.01)
    assert ten > estimate(commands)["tokens"] / 2  # more steps than fifty passes over the rows would be


def test_an_unknown_flavor_is_said(hub, commands):
    refused = commands.json("estimate.py", *RUN, "--flavor", "h900", code=2)
    assert refused["problems"][0]["code"] == "unknown_flavor"
    assert "l4x1" in refused["problems"][0]["fix"]


def test_a_smoke_run_is_short_cheap_and_leaves_the_result_s_repository_alone(hub, commands):
    estimate(commands)
    shown = submit(commands, "--smoke", code=3)
    made = shown["plan"]
    assert (made["smoke"], made["timeout_s"], made["output_repo"]) == (True, 1200, "ada/tiny-docs-smoke")
    assert "--max-steps=24" in made["arguments"]
    assert made["max_usd"] < 0.3
    assert submit(commands, "--smoke", "--flavor", "h200", code=3)["plan"]["max_usd"] <= 1.0
    assert submit(commands, "--smoke", "--timeout", "9h", code=3)["problems"][0]["code"] == "over_budget"
    whole, rest = (submit(commands, code=3, train=[*TRAIN, *more])["plan"] for more in ([], ["--resume"]))
    assert made["pace_key"] == whole["pace_key"] == rest["pace_key"]
    assert whole["run_key"] != rest["run_key"]  # what is left of a run costs less than all of it


def test_a_smoke_run_s_step_time_makes_the_estimate_narrow_and_true(hub, commands):
    before = estimate(commands)["by"]["l4x1"]
    assert before["basis"] == "shapes"
    job = submit(commands, "--smoke", "--yes", "--max-usd", "1")["job_id"]
    finish(hub, commands, job, train_s=150.0)  # 0.01 s a token
    found = estimate(commands)
    after = found["by"]["l4x1"]
    assert after["basis"] == f"measured by {job}"
    low, high = after["seconds"]["training"]
    assert low < found["tokens"] * 0.01 < high
    assert width(after) < width(before)
    assert found["by"]["a10g-small"]["basis"] == "shapes"  # another GPU was not measured


def test_finished_runs_of_other_models_move_the_estimate(hub, commands):
    """A run took twice what its shapes said: one of other shapes, that nobody has measured, is expected to as well."""
    pace = estimate(commands)["by"]["l4x1"]["seconds_per_token"]
    slow = 2 * middle(*pace)
    job = submit(commands, "--yes", "--max-usd", "9")["job_id"]
    finish(hub, commands, job, train_s=slow * 15_000)
    found = estimate(commands, "--max-seq-length", "1024")
    other = found["by"]["l4x1"]
    assert other["basis"] == "shapes and 1 run on l4x1"
    # It took twice the middle of its estimate: so will this one, and its range is narrower than by the shapes alone.
    low, high = other["seconds_per_token"]  # by the shapes alone
    train_low, train_high = other["seconds"]["training"]
    tokens = estimate(commands, "--max-seq-length", "1024")["tokens"]
    assert (train_low * train_high) ** 0.5 == pytest.approx(2 * (low * high) ** 0.5 * tokens, rel=0.05)
    assert 1.1 < train_high / train_low < 0.8 * high / low


def test_a_timeout_that_the_estimate_exceeds_is_refused_or_warned_of(hub, commands):
    assert submit(commands, code=3)["estimate"] is None  # nothing was estimated yet
    one = estimate(commands)["by"]["l4x1"]
    refused = submit(commands, "--timeout", f"{int(one['hours_low'] * 60) - 1}m", code=2)
    assert refused["problems"][0]["code"] == "timeout_short"
    tight = submit(commands, "--timeout", f"{int(one['hours_high'] * 60) - 1}m", code=3)
    assert [problem["code"] for problem in tight["problems"]] == ["timeout_tight"]
    enough = submit(commands, "--timeout", "72h", code=3)
    assert enough["problems"] == []
    assert enough["estimate"]["usd_high"] == one["usd_high"]


def test_all_attempts_are_in_the_highest_cost(hub, commands):
    shown = submit(commands, "--timeout", "2h", "--attempts", "3", code=3)
    assert shown["plan"]["max_usd"] == pytest.approx(3 * 2 * 0.8, abs=0.01)
    assert "--resume" not in shown["plan"]["arguments"]  # the first start has nothing to resume; the job knows a second
    submit(commands, "--timeout", "2h", "--attempts", "3", "--approve", shown["plan_id"])
    [request] = [r.json for r in hub.journal.requests(method="POST", path=r"^/api/jobs/ada$") if r.status == 200]
    assert request["attempts"] == 3
    assert json.loads(request["environment"]["UNSLOTH_JOBS_RUN"])["attempts"] == 3


@pytest.mark.hub(execute_jobs=True)
def test_a_real_smoke_run_measures_itself_and_its_record_keeps_it(hub, commands, training_python, tmp_path):
    words = ["--smoke", "--flavor", "cpu-upgrade", "--yes", "--max-usd", "1"]
    job = submit(commands, *words, train=[*TRAIN, "--max-seq-length", "256", "--batch-size", "4", "--trackio-space="])
    status = commands.json("status.py", job["job_id"], "--watch")
    assert (status["stage"], status["progress"]["total_steps"]) == ("COMPLETED", 24)
    [path] = (tmp_path / "hub").rglob(f"runs/{job['job_id']}.json")
    run = json.loads(path.read_text())
    assert run["approved"] == "--yes"
    done = run["outcome"]["done"]
    assert 0 < done["timed_tokens"] < done["tokens"]
    assert 0 < done["train_s"] < run["outcome"]["elapsed_s"]
    [entry] = entries([run])
    assert entry.seconds_per_token == pytest.approx(done["train_s"] / done["timed_tokens"])
    assert History((entry,), entry.pace).refine_estimate("cpu-upgrade", Range(1, 2)).basis == f"measured by {job['job_id']}"
    assert "adapter_model.safetensors" in hub.files("ada/tiny-docs-smoke")


def test_after_running_out_of_memory_the_same_run_is_estimated_on_larger_gpus(hub, commands):
    flags = ["--max-seq-length", "512", "--load-in-16bit", "--output-repo=ada/mine"]
    job = submit(commands, "--flavor", "l4x1", "--timeout", "1h", "--max-usd", "5", "--yes", train=[*TRAIN, *flags])["job_id"]
    failed = {"event": "failed", "code": "out_of_vram", "message": "Not one sequence fits.", "fix": "A larger GPU."}
    hub.jobs.set(job, stage="ERROR", message="Job failed with exit code: 1", logs=["EVENT " + json.dumps(failed)])
    told = commands.json("status.py", job, code=1)["diagnosis"]["command"]
    run, script, *words = told.split()[1:]
    assert (run, Path(script).name, words[:2]) == ("run", "estimate.py", RUN)
    assert {"--max-seq-length=512", "--load-in-16bit"} <= set(words) and "mine" not in told
    found = commands.json("estimate.py", *words)
    assert found["ok"] and all(one["vram_gb"] > 24 for one in found["flavors"])
    assert commands.json("estimate.py", *RUN, "--more-than-gb", "9999", code=1)["problems"][0]["code"] == "nothing_fits"
    evaluation = ["ada/tiny", "--script", str(ROOT / "templates" / "evaluate.py"), "--dataset", "ada/docs"]
    larger = commands.json("estimate.py", *evaluation, "--more-than-gb", "24")
    by_name = {one.name: one for one in snapshot_flavors()[0]}
    assert larger["flavors"] and all(by_name[one["flavor"]].vram_gb > 24 for one in larger["flavors"])


# ---- an estimate belongs to what it was made from, and to a day


LOCAL = ["--base-model", "ada/tiny", "--num-epochs", "50"]


def records_of(kind: str, tmp_path: Path) -> list[Path]:
    return list((tmp_path / "hub").rglob(f"unsloth-jobs/{kind}/*.json"))


def test_an_estimate_of_a_file_is_of_what_it_holds(hub, commands, tmp_path):
    lines = ROWS.read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:100]))
    commands.json("estimate.py", "ada/tiny", "rows.jsonl", "--epochs", "50")
    same = submit(commands, code=3, train=[*LOCAL, f"--dataset={tmp_path / 'rows.jsonl'}"])  # wherever it is named from
    assert same["estimate"]["rows"] == 90
    assert same["summary"]["rows"] == "90 to train on, 10 held out"
    assert f"{same['estimate']['steps']:,} steps" in same["summary"]["training"]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    changed = submit(commands, code=3, train=[*LOCAL, "--dataset", "rows.jsonl"])
    assert changed["estimate"] is None and "as many as the data set has" in changed["summary"]["rows"]


def test_an_estimate_of_yesterday_vouches_for_nothing(hub, commands, tmp_path):
    estimate(commands)
    fresh = submit(commands, "--timeout", "1m", code=2)["problems"][0]
    assert fresh["code"] == "timeout_short"
    [path] = records_of("estimates", tmp_path)
    kept = json.loads(path.read_text())
    path.write_text(json.dumps(kept | {"made_at": kept["made_at"] - 25 * 3600}))
    stale = submit(commands, "--timeout", "1m", code=3)
    assert stale["estimate"] is None
    assert [(one["code"], one["severity"]) for one in stale["problems"]] == [("estimate_stale", "warning")]


def test_the_start_grows_with_what_is_downloaded():
    def model(layers: int) -> Model:
        tensors = {f"model.layers.{number}.mlp.up_proj.weight": ("BF16", (1000, 500_000)) for number in range(layers)}
        return Model("a/b", None, "LlamaForCausalLM", {}, False, tensors)

    small, large = (cost.starting(model(layers)) for layers in (1, 145))
    assert model(145).file_bytes == 145e9
    assert small.low < 200 and small.high < 620
    assert large.low - small.low == pytest.approx(144e9 / cost.DOWNLOAD_BYTES_S[1])
    assert large.high - small.high == pytest.approx(144e9 / cost.DOWNLOAD_BYTES_S[0])
    assert large.low > 2 * small.low


def test_passes_are_named_once(hub, commands):
    twice = commands.json("estimate.py", *RUN, "--epochs", "3", "--num-epochs", "1", code=2)["problems"][0]
    assert twice["code"] == "bad_arguments" and "--epochs 3" in twice["message"] and "--num-epochs 1" in twice["message"]
    one, other = (commands.json("estimate.py", *RUN, flag, "3", "--namespace", "acme") for flag in ("--epochs", "--num-epochs"))
    assert (
        one["tokens"] == other["tokens"] == commands.json("estimate.py", *RUN, "--epochs", "3", "--num-epochs", "3")["tokens"]
    )


@pytest.mark.parametrize("epochs", ["1e6", "1e300", "1e308"])
def test_a_run_of_years_is_refused(hub, commands, epochs):
    found = commands.json("estimate.py", *RUN, "--epochs", epochs, code=1)
    assert found["recommended"] is None
    assert next(one for one in found["flavors"] if one["flavor"] == "h200")["code"] == "too_long"
    assert "--num-epochs" in found["problems"][-1]["fix"]
    assert commands.run("estimate.py", *RUN, "--epochs", epochs, code=1).stdout


def test_an_estimate_that_is_not_sound_answers_with_all_its_keys(hub, commands):
    sound = commands.json("estimate.py", *RUN)
    refused = commands.json("estimate.py", "ada/nothing", "ada/docs", code=1)
    assert refused["ok"] is False and refused["flavors"] == [] and refused["recommended"] is None
    assert set(refused) | {"framework"} == set(sound)
    assert [problem["code"] for problem in refused["problems"]] == ["not_found"]


def test_an_export_and_an_evaluation_are_priced_from_what_they_load_and_make(hub, commands, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/tiny", "peft_type": "LORA"}')
    (tmp_path / "tuned" / "adapter_model.safetensors").write_bytes(b"...")
    hub.add_repo("ada/tuned", tmp_path / "tuned")

    def price(name: str, *more: str, code: int = 0) -> dict:
        return commands.json("estimate.py", "ada/tuned", "--script", f"templates/{name}.py", *more, code=code)

    commands.cwd = ROOT
    few, many = price("export"), price("export", "--quantizations", "q4_k_m,q8_0")
    assert few["recommended"]["flavor"] == "cpu-basic" and few["recommended"]["max_usd"] > 0
    assert list(many["files"]) == ["merged", "q4_k_m", "q8_0"]
    assert many["files"]["q4_k_m"] < many["files"]["q8_0"] < many["files"]["merged"]
    assert {one["flavor"] for one in few["flavors"]} == {"cpu-basic", "cpu-upgrade", "cpu-xl", "cpu-performance"}
    alone, prompted = price("evaluate"), price("evaluate", "--system-prompt", "Be brief.", "--benchmarks", "gsm8k")
    assert alone["recommended"]["flavor"] == "t4-small"
    seconds = [one["flavors"][0]["seconds"] for one in (alone, prompted)]
    assert seconds[1]["answers"][1] == pytest.approx(1.5 * seconds[0]["answers"][1], abs=1)  # three contenders, not two
    assert "benchmarks" in seconds[1] and "benchmarks" not in seconds[0]
    shown = commands.run("estimate.py", "ada/tuned", "--script", "templates/export.py").stdout
    assert "Submit with: --flavor cpu-basic" in shown and "merged, 16 bits" in shown
    assert price("evaluate", "--max-usd", "0.01", code=1)["problems"][0]["code"] == "nothing_wished"
    assert price("export", "--vary", "quantizations=q4_k_m,q8_0", code=2)["problems"][0]["code"] == "bad_vary"


def test_a_base_that_no_cheap_machine_holds_is_exported_on_a_larger_one():
    sizes = other_jobs.ExportSizes(60 * 10**9, 60 * 10**9, {"merged": 60 * 10**9, "q4_k_m": 18 * 10**9})
    small, large = Flavor("cpu-upgrade", 0.0005, disk_gb=50, ram_gb=32), Flavor("cpu-xl", 0.0167, disk_gb=1000, ram_gb=124)
    found = ranked(
        [Priced(one, other_jobs.estimate_export(one, sizes, 48), export_misfit(one, sizes)) for one in (small, large)]
    )
    assert [one.flavor.name for one in found] == ["cpu-xl", "cpu-upgrade"]
    assert "67 GB of memory" in found[1].reason and recommend(found).flavor == "cpu-xl"
    assert recommend(found[1:]) is None
