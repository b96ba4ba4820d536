"""What follows from a sentence, three-way, the shape of MNLI?"""

from dataclasses import replace

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.grammar import active, draw_event, with_other
from apgd.data.language.lexicon import Lexicon, chance, pick, pick_other


def _make(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    event = draw_event(rng, words)
    pair = pick(rng, words.qualities)
    quality = pick(rng, pair)
    premise = active(event).replace("the", f"the {quality}", 1)
    bare = replace(event, place=None, time=None)
    way = int(rng.integers(2))
    if hard and way == 0:
        unrelated = pick(rng, pick_other(rng, words.qualities, pair))
        said = {"implied": quality, "possible": unrelated, "excluded": words.opposite(quality)}
        hypothesis = f"the {event.agent} was {said[label]}"
    elif hard:
        kind = words.kind_of(event.agent)
        other = "animal" if kind == "person" else "person"
        hypothesis = {
            "implied": f"some {kind} {event.verb} the {event.patient}",
            "possible": f"some {other} {event.verb} the {event.patient}",
            "excluded": f"the {event.patient} was {event.verb} by nobody",
        }[label]
    elif label == "implied":
        hypothesis = active(bare if chance(rng, 0.5) else event)
    elif label == "possible":
        slot = pick(rng, ("agent", "patient", "verb"))
        hypothesis = active(with_other(rng, words, bare, slot))
    else:
        hypothesis = f"no {event.agent} {event.verb} the {event.patient}"
    return f"{premise} | {hypothesis}"


ENTAILMENT = Family(
    name="entailment", labels=("implied", "possible", "excluded"), make=_make, hard=0.75
)
