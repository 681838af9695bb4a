"""Comparisons: which runs are ended early, which is the best, and whether it can be told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compare import graded
from unsloth_jobs.jobs.halving import Track, decide, rungs_of
from unsloth_jobs.jobs.saving import saving_of
from unsloth_jobs.status.winner import Result, judge


def track(*losses: float, whole: float | None = 100.0, over: bool = False) -> Track:
    """Evaluations after each tenth of a run of 100 tokens."""
    return Track(tuple((10.0 * place, loss) for place, loss in enumerate(losses)), whole, over)


def test_rungs_lie_where_the_last_one_is_a_share_of_the_run():
    shown = {(runs, rate): [(round(rung.share, 3), rung.keep) for rung in rungs_of(runs, rate)] for runs, rate in RUNGS}
    assert shown == RUNGS


RUNGS = {
    (4, 2): [(0.25, 2), (0.5, 1)],
    (9, 3): [(0.111, 3), (0.333, 1)],
    (8, 3): [(0.333, 3)],
    (2, 3): [(0.333, 1)],
    (5, 0): [],
    (1, 2): [],
}


def test_the_worse_runs_are_those_with_the_higher_loss_at_equal_tokens():
    even = {
        "a": track(4.0, 3.0, 2.5, 2.4),
        "b": track(4.0, 3.2, 2.6, 2.5),
        "c": track(4.0, 2.9, 2.4, 2.3),
        "d": track(4.0, 5.0, 5.0, 5.0),
    }
    [first] = decide(even, 2)
    assert (first.rung, first.tokens, first.stopped) == (1, 25.0, ("b", "d"))
    assert first.losses["a"] == pytest.approx(2.45)  # on the line between the evaluations around
    # A run that is twice as long has learned from as many tokens at half of its share.
    longer = Track(((0.0, 4.0), (20.0, 2.0), (40.0, 1.9)), 200.0)
    assert decide(even | {"b": longer}, 2)[0].stopped == ("a", "d")


def test_a_rung_waits_for_all_that_may_still_reach_it_and_for_none_that_cannot():
    runs = {"a": track(4.0, 3.0, 2.5, 2.4, 2.3, 2.2), "b": track(4.0, 3.2), "c": track(4.0, 2.9, 2.4, 2.3, 2.2, 2.1)}
    assert decide(runs, 2) == []
    assert decide(runs | {"b": track(whole=None)}, 2) == []
    assert decide(runs | {"b": track(4.0, 3.2, over=True)}, 2)[0].stopped == ("b",)  # it has failed: the worst
    early = Track(((0.0, 4.0), (10.0, 2.0)), 100.0, over=True, done=True)  # it has stopped early: its last loss counts
    assert decide(runs | {"b": early}, 2)[0].stopped == ("a",)
    assert decide(runs | {"b": track(4.0, *[math.nan] * 5)}, 2)[0].stopped == ("b",)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.5, 5), min_size=11, max_size=11), min_size=2, max_size=9), st.integers(2, 4), st.data())
def test_what_is_decided_does_not_depend_on_when_it_is_looked_at(losses, rate, data):
    """Whoever looks, and however often, ends the same runs; one is left."""
    whole = {f"run{number}": track(*one) for number, one in enumerate(losses)}
    final = decide(whole, rate)
    assert [one.rung for one in final] == list(range(1, len(rungs_of(len(losses), rate)) + 1))
    looked = data.draw(st.lists(st.integers(2, 11), min_size=len(losses), max_size=len(losses)))
    early = decide(
        {name: track(*one[:seen]) for (name, one), seen in zip(zip(whole, losses, strict=True), looked, strict=True)}, rate
    )
    assert early == final[: len(early)]
    stopped = [name for one in final for name in one.stopped]
    assert len(set(stopped)) == len(stopped) == len(losses) - rungs_of(len(losses), rate)[-1].keep


def estimated(tokens: float, steps: int) -> dict:
    seconds = {"start": [60, 600], "training": [600, 1200], "evaluation": [60, 120], "grading": [0, 60]}
    return {"tokens": tokens, "steps": steps, "usd_low": 1.0, "usd_high": 2.0, "seconds": seconds}


def test_what_halving_saves_is_what_the_ended_runs_do_not_train_evaluate_and_answer():
    """Of four runs two end at a quarter and one at half: (2 × 75% + 50%) of a run, and the answers of three."""
    saved = saving_of([estimated(1000, 100)] * 4, [0.1] * 4, 2)
    assert (saved.share, saved.steps, saved.of_steps) == (0.5, 200, 400)
    assert saved.usd == pytest.approx((2 * 11 * 0.1, (2 * 22 + 3) * 0.1)) and saved.of_usd == (4.0, 8.0)
    assert saved.line.startswith("about 50% of the steps (200 of 400) and $2.20–4.70 of $4.00–8.00")
    # Of a short and a twice as long run one ends at half of the short one: 50 of its steps, or 150 of the other's.
    other = saving_of([estimated(1000, 100), estimated(2000, 200)], [0.1] * 2, 2)
    assert (other.steps, other.of_steps) == (100, 300)
    unknown = saving_of([estimated(1000, 100), None, estimated(1000, 100), None], [0.1] * 4, 2)
    assert (unknown.share, unknown.steps, unknown.usd) == (0.5, None, None)
    assert "estimate.py" in saving_of([{"tokens": 9.0, "seconds": {"training": "x"}}] * 2, [0.1] * 2, 2).line  # damaged
    assert saving_of([estimated(1000, 100)] * 4, [0.1] * 4, 0) is None


def test_the_best_is_said_where_it_can_be_told_and_the_cheapest_where_not():
    clear = judge([graded("a", 40), graded("b", 81, usd=9.0)], "auto", True)
    assert (clear.metric, clear.winner, clear.alike) == ("graded", "b", ("b",))
    assert "b is the best by right answers: 81% right" in clear.sentence
    close = judge([graded("a", 40), graded("b", 81, usd=9.0), graded("c", 80, usd=2.0)], "auto", True)
    assert (close.winner, set(close.alike)) == ("c", {"b", "c"})
    assert "Not distinguishable" in close.sentence and "cheapest of them is c" in close.sentence


def test_more_runs_need_a_larger_difference():
    """The best of many looks better than it is."""
    two = [graded("a", 73), graded("b", 81)]
    assert judge(two, "auto", True).alike == ("b",)
    many = judge([*two, *(graded(f"c{number}", 10) for number in range(30))], "auto", True)
    assert set(many.alike) == {"a", "b"}


def test_losses_are_compared_batch_by_batch_of_the_same_rows():
    def lost(name: str, gap: float, usd: float) -> Result:
        batches = tuple((1.0 + place / 10 - gap + place % 2 / 50, 50.0) for place in range(20))
        return Result(name, usd, 2.0 - gap, None, None, batches)

    verdict = judge([lost("a", 0.0, 1.0), lost("b", 0.1, 2.0)], "auto", True)
    assert (verdict.metric, verdict.winner, verdict.alike) == ("loss", "b", ("b",))
    other = replace(lost("b", 0.1, 2.0), losses=tuple((loss, 49.0) for loss, _ in lost("b", 0.1, 2.0).losses))
    assert set(judge([lost("a", 0.0, 1.0), other], "auto", True).alike) == {"a", "b"}
    none = judge([lost("a", 0.0, 1.0), lost("b", 0.1, 2.0)], "auto", False)
    assert (none.winner, "cannot be compared" in none.sentence) == (None, True)
    assert judge([], "auto", True).winner is None
