"""Which test questions stand in the training data, as written or nearly so."""

from __future__ import annotations

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from unsloth_jobs.training import contamination
from unsloth_jobs.training.contamination import plain_question, seen_rows

texts = st.text(alphabet="aAbB ,.!é\u0301\n2+-", max_size=6)


def test_the_same_question_and_nearly_the_same():
    test = ["What is 2+2?", "Who wrote “Faust”?", "Wie heißt du?", "What is 2-2?", "Where?", "cafe\u0301", "", "?!"]
    training = ["what is  2 + 2", "What is 2+2?", "who wrote 'Faust'", "WIE HEISST DU", "What is 22?", "Café.", "...", "where"]
    assert seen_rows(test, training) == ([0], [1, 2, 4, 5])


def test_a_question_that_is_another_one_is_not_seen():
    apart = ["2+2", "2-2", "2*2", "2/2", "-2", "2", "2%", "का", "कि", "a", "á", "C", "C++", "C#"]
    assert seen_rows(apart[::2], apart[1::2]) == seen_rows(apart[1::2], apart[::2]) == ([], [])


@settings(max_examples=80, deadline=None)
@given(st.lists(texts, max_size=8), st.lists(texts, max_size=8))
def test_it_is_what_comparing_each_with_each_finds(test, training):
    exactly, normalised = seen_rows(test, iter(training))
    assert exactly == [at for at, text in enumerate(test) if text in training]
    plain = {plain_question(text) for text in training} - {""}
    assert normalised == [at for at, text in enumerate(test) if text not in training and plain_question(text) in plain]


def test_any_number_of_training_rows_is_read_once_without_keeping_them(monkeypatch):
    read = []
    monkeypatch.setattr(contamination, "plain_question", lambda text: (read.append(1), plain_question(text))[1])
    test = [f"What is {at} plus {at}?" for at in range(200)]
    training = (f"what is {at} plus {at}? " + "x" * (200 * (at >= 100)) for at in range(10_000))
    tracemalloc.start()
    assert seen_rows(test, training) == ([], list(range(100)))
    assert len(read) <= 10_000 + 2 * len(test)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_hostile_questions_end():
    hostile = ["\ud800", "\u0301\u0323" * 10**6, "?" * 10**7, "\x00\x1b"]
    assert seen_rows(hostile, hostile) == ([0, 1, 2, 3], [])
