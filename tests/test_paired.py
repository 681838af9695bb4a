"""The paired difference: its interval holds the truth 95 times of 100, and its sentence says what the interval does."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unsloth_jobs.training.paired import (
    Difference,
    difference_sentence,
    paired_difference,
    rate_interval,
    rows_needed,
    student_t,
    verdict,
)

some = settings(max_examples=60, deadline=None)
scores = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
pairs = st.lists(st.tuples(scores, scores), min_size=1, max_size=40)


def of_counts(won: int, lost: int, rows: int) -> Difference:
    same = [0.0] * (rows - won - lost)
    return paired_difference([0.0] * won + [1.0] * lost + same, [1.0] * won + [0.0] * lost + same)


# ---- the interval


@pytest.mark.parametrize("won, lost, rows", [(30, 10, 100), (0, 0, 20), (50, 0, 50), (3, 90, 400)])
def test_the_interval_is_the_closed_form(won, lost, rows):
    total, difference = rows + 2, of_counts(won, lost, rows)
    centre = (won - lost) / total
    half = student_t(rows - 1) * math.sqrt(((won + lost + 2) / total - centre**2) / total)
    assert difference.mean == pytest.approx((won - lost) / rows)
    assert difference.low == pytest.approx(max(-1, centre - half))
    assert difference.high == pytest.approx(min(1, centre + half))


def test_with_many_rows_it_is_the_usual_t_interval():
    chance = random.Random(1)
    base, tuned = ([chance.random() for _ in range(5000)] for _ in range(2))
    differences = [after - before for before, after in zip(base, tuned, strict=True)]
    half = 1.96 * statistics.stdev(differences) / math.sqrt(5000)
    difference = paired_difference(base, tuned)
    assert (difference.high - difference.low) / 2 == pytest.approx(half, rel=0.01)


# From published tables.
@pytest.mark.parametrize("degrees, value", [(9, 2.2622), (19, 2.0930), (49, 2.0096), (99, 1.9842), (499, 1.9647)])
def test_student_s_t(degrees, value):
    assert student_t(degrees) == pytest.approx(value, rel=1e-3)


def coverage(rows: int, won: float, lost: float) -> float:
    """The exact probability that the interval holds won - lost, where each row is won or lost with these probabilities."""
    sure = 0.0
    for wins in range(rows + 1):
        for losses in range(rows - wins + 1 if lost else 1):
            counts = ((wins, won), (losses, lost), (rows - wins - losses, 1 - won - lost))
            if any(count and not share for count, share in counts):
                continue
            log = math.lgamma(rows + 1) + sum(k * math.log(share) - math.lgamma(k + 1) for k, share in counts if k)
            if log > -20:
                difference = of_counts(wins, losses, rows)
                sure += math.exp(log) * (difference.low - 1e-12 <= won - lost <= difference.high + 1e-12)
    return sure


FEW = [
    (20, 0.02, 0),
    (20, 0.1, 0.02),
    (20, 0.7, 0),
    (20, 0.9, 0),
    (50, 0.05, 0),
    (50, 0.9, 0),
    (100, 0.02, 0),
    (200, 0.01, 0),
    (500, 0.99, 0),
]
MANY = [
    (20, 0.3, 0.3),
    (50, 0.2, 0.1),
    (50, 0.3, 0.3),
    (50, 0.7, 0),
    (200, 0.05, 0),
    (200, 0.5, 0),
    (500, 0.05, 0),
    (500, 0.9, 0),
]


@pytest.mark.parametrize("rows, won, lost", MANY)
def test_right_and_wrong_are_covered_as_promised(rows, won, lost):
    assert 0.93 <= coverage(rows, won, lost) <= 0.97


@pytest.mark.parametrize("rows, won, lost", FEW)
def test_where_hardly_a_row_differs_or_stays_the_interval_is_rather_too_wide(rows, won, lost):
    assert coverage(rows, won, lost) >= 0.93


FRACTIONS = {
    "even": (lambda chance: chance.uniform(-0.5, 0.7), 0.1),
    "small": (lambda chance: chance.gauss(0.02, 0.05), 0.02),
    "fields of JSON": (lambda chance: chance.choice([0] * 6 + [0.25, 0.5, -0.25, 0.75]), 0.125),
    "skewed": (lambda chance: chance.betavariate(0.5, 3), 1 / 7),
}


@pytest.mark.parametrize("kind", FRACTIONS)
@pytest.mark.parametrize("rows", [20, 100])
def test_scores_in_between_are_covered(kind, rows):
    draw, mean = FRACTIONS[kind]
    chance, tries, held = random.Random(5), 1000, 0
    for _ in range(tries):
        difference = paired_difference([0.0] * rows, [draw(chance) for _ in range(rows)])
        held += difference.low <= mean <= difference.high
    assert 0.93 <= held / tries <= 0.985  # of 1000 tries; more than 97% with 20 rows, where two added ones weigh


@some
@given(pairs)
@example([(0.0, 0.0)])
@example([(1.0, 1.0)] * 20)
@example([(0.0, 1.0)] * 20)
@example([(0.0, 5e-324)] * 3)
@example([(0.3, 0.1 + 0.2)] * 20)
def test_the_interval_holds_the_mean_is_never_a_point_and_turns_with_the_models(rows):
    base, tuned = map(list, zip(*rows, strict=True))
    there, back = paired_difference(base, tuned), paired_difference(tuned, base)
    assert -1 <= there.low <= there.mean <= there.high <= 1
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.low < there.high
    assert difference_sentence(there).endswith(".")


def test_rows_that_all_agree_prove_little_when_they_are_few():
    same, gained = of_counts(0, 0, 20), of_counts(20, 0, 20)
    assert same.high == -same.low > 3 / 20 * 0.8  # the rule of three
    assert gained.high == 1 and gained.low < 1 - 3 / 20 * 0.8
    assert of_counts(0, 0, 500).high < 0.01


def test_an_error_of_rounding_is_no_difference():
    assert paired_difference([0.3] * 50, [0.1 + 0.2] * 50).mean == 0


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        paired_difference([], [])
    with pytest.raises(ValueError):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no scores"):
        rate_interval([])


# ---- a rate alone


@pytest.mark.parametrize("right, rows", [(0, 20), (20, 20), (7, 20), (150, 200)])
def test_a_rate_of_right_answers_has_wilson_s_interval(right, rows):
    share, z = right / rows, 1.959964
    centre, half = share + z**2 / (2 * rows), z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    low, high = rate_interval([1.0] * right + [0.0] * (rows - right))
    assert (low, high) == pytest.approx(((centre - half) / (1 + z**2 / rows), (centre + half) / (1 + z**2 / rows)), abs=1e-6)


@some
@given(st.lists(scores, min_size=1, max_size=40))
def test_a_rate_lies_in_its_interval(found):
    low, high = rate_interval(found)
    assert 0 <= low <= math.fsum(found) / len(found) <= high <= 1
    assert low < high


def test_scores_in_between_narrow_the_interval_of_their_mean():
    chance = random.Random(2)
    held, tries, rows = 0, 1000, 50
    for _ in range(tries):
        low, high = rate_interval([chance.uniform(0.4, 0.8) for _ in range(rows)])
        held += low <= 0.6 <= high
    assert 0.93 <= held / tries <= 0.995
    assert high - low < 0.12 < 0.26 < 2 * 1.96 * math.sqrt(0.6 * 0.4 / rows)


# ---- how many rows would tell


def test_the_rows_that_are_needed_tell_four_times_in_five():
    chance, needed = random.Random(3), rows_needed(Difference(0.1, 0, 0, 100, 0.3 - 0.1**2))
    assert needed == math.ceil((1.959964 + 0.841621) ** 2 * 0.29 / 0.01) == 228
    told = 0
    for _ in range(400):
        won = sum(chance.random() < 0.2 for _ in range(needed))
        lost = sum(chance.random() < 0.1 / 0.8 for _ in range(needed - won))
        told += verdict(of_counts(won, lost, needed)) == "better"
    assert 0.73 <= told / 400 <= 0.87


@some
@given(pairs)
def test_a_difference_that_was_not_told_needs_more_rows(rows):
    difference = paired_difference(*map(list, zip(*rows, strict=True)))
    needed = rows_needed(difference)
    assert (needed is None) == (difference.mean == 0)
    if needed and verdict(difference) == "not distinguishable" and len(rows) >= 20:
        assert needed > len(rows)


# ---- what is said


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Difference(0.69, 0.62, 0.75, 200), "Better: +69 points, 95% sure: +62 to +75 (200 rows)."),
        (Difference(-0.2, -0.31, -0.09, 1200), "Worse: −20 points, 95% sure: −31 to −9 (1,200 rows)."),
        (Difference(0.03, -0.09, 0.15, 40, 0.1), "Not distinguishable with 40 rows: +3 points, 95% sure: −9 to +15; about 880 rows would tell."),
        (Difference(0.0, -0.1, 0.1, 20), "Not distinguishable with 20 rows: ±0 points, 95% sure: −10 to +10."),
        (Difference(0.0001, -0.1, 0.1, 20), "Not distinguishable with 20 rows: ±0.0 points, 95% sure: −10.0 to +10.0."),
        (Difference(0.03, 0.004, 0.056, 500), "Better: +3.0 points, 95% sure: +0.4 to +5.6 (500 rows)."),
        (Difference(0.5, -0.9, 1.0, 1), "Not distinguishable with 1 row: +50 points, 95% sure: −90 to +100; about 32 rows would tell."),
    ],
)  # fmt: skip
def test_the_sentence(difference, said):
    assert difference_sentence(difference) == said
