"""Do two sentences, or two questions, mean the same, the shapes of MRPC and QQP?"""

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.grammar import (
    active,
    draw_event,
    filled,
    retold,
    with_other,
    with_synonym,
)
from apgd.data.language.lexicon import Lexicon, chance, pick
from apgd.data.language.questions import ASKED, asked, asked_otherwise


def _sentences(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    first = draw_event(rng, words)
    second = with_synonym(words, first) if hard and chance(rng, 0.5) else first
    if label == "different":
        if hard and chance(rng, 0.3):
            second = second.swapped
        else:
            second = with_other(rng, words, second, pick(rng, filled(second)))
    return f"{active(first)} | {retold(rng, second) if hard else active(second)}"


def _questions(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    first = draw_event(rng, words, place=0.5, time=0.5)
    topic = pick(rng, ASKED)
    second = with_synonym(words, first) if hard and chance(rng, 0.5) else first
    second_topic = topic
    if label == "distinct":
        if hard and chance(rng, 0.6):
            if chance(rng, 0.5):
                second = second.swapped
            else:
                second_topic = pick(rng, [other for other in ASKED if other != topic])
        else:
            slot = pick(rng, [s for s in filled(second) if s != topic])
            second = with_other(rng, words, second, slot)
    ask = asked_otherwise if hard else asked
    return f"{asked(first, topic)} | {ask(second, second_topic)}"


PARAPHRASE = Family(
    name="paraphrase", labels=("equivalent", "different"), make=_sentences, hard=0.7
)
QUESTIONS = Family(name="questions", labels=("duplicate", "distinct"), make=_questions, hard=0.85)
