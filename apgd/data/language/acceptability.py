"""Is this a sentence, the shape of CoLA?"""

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.grammar import active, draw_event, retold
from apgd.data.language.lexicon import Lexicon, chance, pick, pick_other

AGREEING = ("was", "were", "itself", "themselves")
"""The words that agree with a subject in number."""


def _make(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    right = label == "valid"
    if hard:
        return agreement(rng, words, right=right)
    event = draw_event(rng, words)
    told = active(event) if chance(rng, 0.6) else retold(rng, event)
    return told if right else _broken(rng, told)


def agreement(rng: np.random.Generator, words: Lexicon, *, right: bool) -> str:
    """A sentence whose verb or pronoun must agree with its subject, past another noun."""
    plural, other_plural = chance(rng, 0.5), chance(rng, 0.5)
    subject = pick(rng, words.beings)
    other = pick_other(rng, words.beings, subject)
    near = f"the {_number(subject, plural)} near the {_number(other, other_plural)}"
    agrees_with_plural = plural if right else not plural
    place = f"in the {pick(rng, words.places)}" if chance(rng, 0.5) else pick(rng, words.times)
    if chance(rng, 0.5):
        quality = pick(rng, pick(rng, words.qualities))
        return f"{near} {'were' if agrees_with_plural else 'was'} {quality} {place}"
    pronoun = "themselves" if agrees_with_plural else "itself"
    return f"{near} {pick(rng, pick(rng, words.verbs))} {pronoun} {place}"


def _number(noun: str, plural: bool) -> str:
    return f"{noun}s" if plural else noun


def _broken(rng: np.random.Generator, sentence: str) -> str:
    """The sentence with an article after its noun, without an article, or with a word twice."""
    tokens = sentence.split()
    articles = [i for i, word in enumerate(tokens) if word == "the"]
    way = int(rng.integers(3))
    at = pick(rng, articles)
    if way == 0:
        tokens[at], tokens[at + 1] = tokens[at + 1], tokens[at]
    elif way == 1:
        del tokens[at]
    else:
        at = int(rng.integers(len(tokens)))
        tokens.insert(at, tokens[at])
    return " ".join(tokens)


ACCEPTABILITY = Family(name="acceptability", labels=("valid", "invalid"), make=_make, hard=0.75)
