"""A family of texts with labels, and how a split is drawn from it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from apgd.data.language.lexicon import FIRST, WHOLE, Lexicon, chance
from apgd.data.tasks import Split, TextExamples

Make: TypeAlias = Callable[[np.random.Generator, Lexicon, str, bool], str]
"""A text at random: random numbers, words, the label it must have, whether by a hard rule."""

_BUCKETS = {
    Split.TRAIN: range(0, 160),
    Split.VALIDATION: range(160, 192),
    Split.TEST: range(192, 256),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Texts of one kind, each with one of a few labels."""

    name: str
    """Begins every text."""
    labels: tuple[str, ...]
    """One word each."""
    make: Make
    hard: float
    """Share of the task's texts that follow hard rules."""


def easy_text(family: Family, label: str, rng: np.random.Generator) -> str:
    """A text such as the base learns from: half of the words, no hard rule, of no other split."""
    return _text(family, FIRST, label, hard=0.0, split=Split.TRAIN, rng=rng)


def draw(family: Family, split: Split, count: int, rng: np.random.Generator) -> TextExamples:
    """A split of the family's task: all words, easy and hard rules, no text twice.

    Labels come equally often. To which split a text belongs is decided by its own hash: no text can
    be in two of them, and each can be drawn without the others.
    """
    found: dict[str, str] = {}
    while len(found) < count:
        label = family.labels[len(found) % len(family.labels)]
        text = _text(family, WHOLE, label, hard=family.hard, split=split, rng=rng)
        found.setdefault(text, label)
    order = rng.permutation(count)
    texts = tuple(found.items())
    return TextExamples(
        tuple(texts[i][0] for i in order),
        tuple(texts[i][1] for i in order),
    )


def _text(
    family: Family,
    words: Lexicon,
    label: str,
    *,
    hard: float,
    split: Split,
    rng: np.random.Generator,
) -> str:
    while True:
        text = f"{family.name} : {family.make(rng, words, label, chance(rng, hard))}"
        if hashlib.sha256(text.encode()).digest()[0] in _BUCKETS[split]:
            return text
