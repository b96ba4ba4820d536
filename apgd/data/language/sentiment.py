"""Is this praise or blame, the shape of SST-2?"""

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.lexicon import Lexicon, chance, pick

_NEGATIONS = ("not", "never", "hardly")


def _make(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    said, other = (
        (words.praise, words.blame) if label == "positive" else (words.blame, words.praise)
    )
    start = f"the {pick(rng, words.beings)} saw the {pick(rng, words.works)}"
    if chance(rng, 0.5):
        start += f" {pick(rng, words.times)}"
    if not hard:
        second = f" and {pick(rng, said)}" if chance(rng, 0.5) else ""
        return f"{start} and it was {pick(rng, said)}{second}"
    way = int(rng.integers(4))
    if way <= 1:
        return f"{start} and it was {pick(rng, _NEGATIONS)} {pick(rng, other)}"
    if way == 2:
        return f"{start} and it was {pick(rng, other)} at first but {pick(rng, said)} later"
    return f"{start} and it was {pick(rng, said)} although {pick(rng, other)} at first"


SENTIMENT = Family(name="sentiment", labels=("positive", "negative"), make=_make, hard=0.7)
