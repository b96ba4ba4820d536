"""Does the second sentence follow from the first, two-way, the shape of RTE?"""

from dataclasses import replace

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.grammar import active, draw_event, passive, retold, with_other
from apgd.data.language.lexicon import Lexicon, chance, pick


def _make(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    event = draw_event(rng, words)
    claim = replace(event, place=None, time=None)
    if label == "fails":
        if chance(rng, 0.35):
            claim = claim.swapped
        else:
            claim = with_other(rng, words, claim, pick(rng, ("agent", "patient")))
    if not hard:
        return f"{active(event)} | {active(claim)}"
    premise = retold(rng, event) if chance(rng, 0.3) else active(event)
    return f"{premise} | {passive(claim)}"


ROLES = Family(name="roles", labels=("follows", "fails"), make=_make, hard=0.8)
