"""What status makes of a log: the chart, warnings, the ceiling, money, waiting."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hubs import event
from huggingface_hub import JobInfo
from test_status import START, checkpoint, heard, job, progress
from unsloth_jobs.estimate.flavors import snapshot_flavors
from unsloth_jobs.events import Curve, Point, Summary, parse, summarise
from unsloth_jobs.jobs.hf import as_job
from unsloth_jobs.jobs.plan import Plan
from unsloth_jobs.status.view import HELD_OUT, ROWS, chart
from unsloth_jobs.status.warnings import alternatives, other_rows, waited_s, warnings
from unsloth_jobs.status.watch import FINISHING_S, reason_to_cancel


def test_losses_become_a_curve_and_a_run_that_went_on_replaces_what_it_repeats():
    log = [progress(step, 3 - step / 10) for step in range(1, 8)] + [event("eval", step=0, eval_loss=3.0), "noise"]
    log += [progress(5, 2.0), progress(6, 1.9), event("eval", step=6, eval_loss=2.2)]
    curve = summarise(log).curve
    assert [(one.step, one.value) for one in curve.loss] == [(1, 2.9), (2, 2.8), (3, 2.7), (4, 2.6), (5, 2.0), (6, 1.9)]
    assert curve.as_json()["eval_loss"] == [[0, 3.0], [6, 2.2]]


def test_a_job_that_was_started_again_has_not_failed():
    said = summarise([event("plan"), progress(5, 2.0), event("failed", code="error"), event("plan"), progress(6, 1.9)])
    assert (said.event("failed"), said.eta_s) == ({}, 940.0)


def test_a_curve_is_short_in_json_and_keeps_its_ends():
    points = tuple(Point(step, float(step)) for step in range(1, 201))
    pairs = Curve(points).as_json()["loss"]
    assert len(pairs) == 50
    assert (pairs[0][0], pairs[-1][0]) == (1, 200)


@pytest.mark.parametrize(
    "line",
    [
        'EVENT {"event": "progress", "step": 1e400, "total_steps": NaN, "loss": "x", "eta_s": Infinity}',
        'EVENT {"event": "progress", "step": ' + "9" * 400 + ', "loss": true, "time": []}',
        'EVENT {"event": "progress"' + ', "x": [' * 5000,
        'EVENT {"event": "eval", "eval_loss": null, "step": -1}',
        'EVENT {"event": 5}',
    ],
)
def test_no_line_of_a_log_breaks_the_summary(line):
    said = summarise([line])
    assert said.progress.step is None
    assert said.eta_s is None
    assert chart(said.curve, 60) is None


def test_what_an_event_says_cannot_steer_the_terminal():
    said = parse(r'EVENT {"event": "failed", "message": "\u001b[2J\u001b]0;title\u0007gone hf_FAKEFAKEFAKE"}')
    assert said["message"] == "gone hf_***"


@pytest.mark.parametrize("columns", [30, 60, 100])
def test_the_chart_fits_and_shows_its_ends(columns):
    curve = Curve(
        tuple(Point(step, 3 * math.exp(-step / 30) + 1) for step in range(1, 101)), (Point(0, 4.0), Point(100, 1.125))
    )
    lines = chart(curve, columns).plain.split("\n")
    assert len(lines) == ROWS + 1
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("   4 │" + HELD_OUT)  # the base model's loss
    assert lines[ROWS - 1].startswith("1.11 │")
    assert lines[-1].split() == ["└step", "0", "100"]


@pytest.mark.parametrize(
    "losses", [[], [1.0], [math.nan] * 5, [2.0, math.nan, 2.0], [math.inf, 1.0, 0.0], [0.0, 0.0], [1e300, -1e300]]
)
def test_the_chart_takes_any_losses(losses):
    drawn = chart(Curve(tuple(Point(step, loss) for step, loss in enumerate(losses, 1))), 60)
    assert (drawn is None) == (sum(map(math.isfinite, losses)) < 2)


PLAN = Plan(
    **dict.fromkeys(
        ("namespace", "model", "model_revision", "dataset", "dataset_revision", "output_repo", "output_dir", "trackio_space")
    ),
    where="hf",
    script="templates/sft.py",
    script_sha256="",
    arguments=("--base-model=a/b",),
    flavor="l4x1",
    timeout_s=3600,
    usd_per_minute=0.8 / 60,
    max_usd=0.8,
    secrets=(),
    vram_gb=24,
    run_key="key",
)


def codes(log: list[str], plan: Plan | None = PLAN, stage: str = "RUNNING", minutes: float = 60) -> list[str]:
    return [warning.code for warning in warnings(job(stage, minutes), summarise(log), plan)]


def test_other_first_rows_than_the_estimate_s_are_told():
    log = ['EVENT {"event": "masks", "digest": "0123456789abcdef"}', *heard(1)]
    summary = summarise(log)

    def told(estimate: dict | None) -> list[str]:
        return [warning.code for warning in warnings(job("RUNNING", 60), summary, PLAN, estimate)]

    assert told({"digest": "fedcba9876543210"}) == ["rows_differ"]
    assert told({"digest": "0123456789abcdef"}) == told({"usd_low": 1}) == told(None) == []
    assert other_rows(job("RUNNING", 60), summarise(heard(1)), {"digest": "x"}) is None  # an older template's job


def test_silence_is_told_after_ten_minutes_of_a_running_job():
    assert codes(heard(700)) == ["silent"]
    assert codes(heard(500)) == []
    assert codes(heard(700), stage="COMPLETED") == []
    assert codes(heard(700, gap=400)) == []  # its steps are that long
    assert codes([], minutes=11) == ["silent"]
    assert codes([], minutes=9) == []
    assert codes(["a script without events"], plan=None) == []
    assert codes([event("progress", step=1, loss=2.0)]) == []  # events of an older template have no time


def test_a_loss_that_is_no_number_is_told():
    assert codes([*heard(5)[:-1], progress(5, math.nan, time=time.time())]) == ["loss_not_finite"]
    assert codes([*heard(5), event("eval", step=5, eval_loss=math.inf)]) == ["loss_not_finite"]
    assert codes([progress(1, math.nan, time=time.time()), progress(2, 2.0, time=time.time())]) == []  # it has recovered


def curve_of(loss: Callable[[int], float], steps: int = 200) -> list[str]:
    return [progress(step, loss(step), steps, time=time.time()) for step in range(1, steps + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("fall", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("tau", [2, 10, 60])
def test_a_run_that_has_learned_and_levels_off_is_healthy(noise, fall, tau):
    """Also where it learned nearly all of it in its first steps."""
    for seed in range(5):
        chance = random.Random(seed)
        log = curve_of(lambda step: (2 * (1 - fall + fall * math.exp(-step / tau))) * chance.gauss(1, noise))  # noqa: B023
        held_out = [event("eval", step=step, eval_loss=2 * (1 - fall * (step > 0))) for step in (0, 50, 100)]
        assert codes([*held_out, *log]) == []
        assert codes(log) == []


def test_a_run_that_has_learned_nothing_is_told():
    chance = random.Random(0)
    still = curve_of(lambda step: 2 * chance.gauss(1, 0.1))
    base = event("eval", step=0, eval_loss=2.0)
    assert codes([base, *still]) == []  # nothing to compare with yet
    assert codes([base, *still, event("eval", step=200, eval_loss=1.999)]) == ["loss_flat"]
    assert codes([base, *still, event("eval", step=100, eval_loss=1.9), event("eval", step=200, eval_loss=2.2)]) == []
    assert codes(curve_of(lambda step: 11.09)) == ["loss_flat"]
    assert codes(curve_of(lambda step: 11.09, steps=19)) == []
    assert codes(curve_of(lambda step: 11.09), replace(PLAN, smoke=True)) == []
    assert codes(curve_of(lambda step: 11.09), replace(PLAN, arguments=("--resume",))) == []


def saving(steps: int, every: int = 10, total: int = 100, pace: float = 10.0) -> Summary:
    """A run at this step that has pushed each of its checkpoints so far."""
    log = []
    for step in range(1, steps + 1):
        log += [progress(step, 2.0, total, pace), *([checkpoint(step, pace)] if step % every == 0 else [])]
    return summarise(log)


def test_a_run_is_ended_right_after_the_last_checkpoint_that_the_ceiling_pays_for():
    assert reason_to_cancel(250, saving(20), 10) is None  # two more checkpoints come, each after 100 s
    assert reason_to_cancel(150, saving(20), 10) is None
    assert "step 20" in reason_to_cancel(90, saving(20), 10)
    assert reason_to_cancel(90, saving(25), 10) is None  # the next one comes in 50 s
    assert "step 20" in reason_to_cancel(45, saving(25), 10)
    assert "step 10" in reason_to_cancel(80, saving(10), 10)  # its first one tells how long the next one takes


def test_a_run_that_has_saved_nothing_or_ends_in_time_goes_on_to_the_ceiling():
    assert reason_to_cancel(60, saving(5), 10) is None
    assert "reached" in reason_to_cancel(10, saving(5), 10)
    assert "reached" in reason_to_cancel(-5, summarise([]), 10)
    almost = saving(95)
    assert reason_to_cancel(almost.eta_s + FINISHING_S, almost, 10) is None
    assert reason_to_cancel(30, saving(100), 10) is None  # it is pushing its result
    late = replace(saving(20), heard=START + 350)  # the next checkpoint is late, and may come any moment
    assert reason_to_cancel(40, late, 10) is None
    assert reason_to_cancel(40, summarise([event("checkpoint", step=4, pushed=True)]), 10) is None  # no time is known


def test_what_was_spent_is_counted_by_the_hub_s_clock_where_this_one_is_wrong():
    now = datetime.now(UTC) + timedelta(hours=1)  # this machine is an hour late
    created, started = (
        f"{stamp:%Y-%m-%dT%H:%M:%S.%f}Z" for stamp in (now - timedelta(minutes=20), now - timedelta(minutes=15))
    )
    owner = {"id": "1", "name": "ada", "type": "user"}
    info = JobInfo(
        id="1", createdAt=created, startedAt=started, status={"stage": "RUNNING"}, owner=owner, durations={"totalSecs": 1200}
    )
    assert as_job(info).elapsed_s == pytest.approx(900, abs=5)
    assert waited_s(replace(as_job(info), stage="SCHEDULING")) == pytest.approx(1200, abs=5)


def test_what_else_holds_a_run_is_offered_cheapest_first():
    flavors, _ = snapshot_flavors()
    offered = alternatives(flavors, PLAN, lambda name: None)
    assert [one.flavor for one in offered] == ["a10g-small", "a10g-large", "l40sx1"]  # one GPU, bf16, at least 24 GB
    known = {"t4-small": {"usd_low": 0.5, "usd_high": 0.9}, "a100-large": {"usd_low": 0.3, "usd_high": 0.6}}
    offered = alternatives(flavors, PLAN, known.get)
    assert [one.flavor for one in offered] == ["a100-large", "t4-small"]
    assert str(offered[0]) == "a100-large ($2.50 an hour, $0.30 to $0.60 for the run)"
    assert alternatives(flavors, replace(PLAN, vram_gb=0), lambda name: None) == ()
