"""How alike are two sentences, from 0 to 5, the shape of STS-B?"""

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.grammar import (
    SLOTS,
    active,
    draw_event,
    retold,
    with_other,
    with_synonym,
)
from apgd.data.language.lexicon import Lexicon, chance


def _make(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    first = draw_event(rng, words, place=1, time=1)
    second = first
    changed = {SLOTS[i] for i in rng.permutation(len(SLOTS))[: len(SLOTS) - int(label)]}
    if hard and {"agent", "patient"} <= changed and chance(rng, 0.5):
        second = second.swapped
        changed -= {"agent", "patient"}
    for slot in sorted(changed):
        second = with_other(rng, words, second, slot)
    if hard and "verb" not in changed and chance(rng, 0.7):
        second = with_synonym(words, second)
    return f"{active(first)} | {retold(rng, second) if hard else active(second)}"


SIMILARITY = Family(name="similarity", labels=("0", "1", "2", "3", "4", "5"), make=_make, hard=0.85)
