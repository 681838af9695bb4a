"""A text without what a reader does not see or mind: case, whitespace, and how Unicode writes a character."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 100_000  # characters; of a longer text the end is looked at, where an answer stands
PIECE = 100  # characters; unicodedata takes quadratic time over marks that follow each other
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
ALIKE = str.maketrans({
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"), **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
})  # fmt: skip


def folded(text: str) -> str:
    """Case-folded, in Unicode's NFKC, quotes and dashes of one kind, nothing invisible, whitespace single."""
    text = text[-LONGEST:]
    if text.isascii():
        return " ".join(INVISIBLE.sub("", text).lower().split())
    words = INVISIBLE.sub("", text).translate(ALIKE).split()
    is_plain = max(map(len, words), default=0) <= PIECE
    text = case_folded(" ".join(words)) if is_plain else " ".join(map(folded_word, words))
    return " ".join(text.split())[-LONGEST:]  # NFKC writes some accents that stand alone with a space


def folded_word(word: str) -> str:
    return "".join(case_folded(word[at : at + PIECE]) for at in range(0, len(word), PIECE))


def case_folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
