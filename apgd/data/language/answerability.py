"""Does a sentence answer a question, the shape of QNLI?"""

from dataclasses import replace

import numpy as np

from apgd.data.language.family import Family
from apgd.data.language.grammar import Event, active, draw_apart, draw_event, with_other
from apgd.data.language.lexicon import Lexicon, chance, pick
from apgd.data.language.questions import ASKED, asked

_ADJUNCTS = ("place", "time")


def _make(rng: np.random.Generator, words: Lexicon, label: str, hard: bool) -> str:
    answered = label == "answered"
    if not hard:
        return _about(rng, words, answered=answered)
    return _asks_place_or_time(rng, words, answered=answered)


def _about(rng: np.random.Generator, words: Lexicon, *, answered: bool) -> str:
    """Tells of the event that is asked for, or of another one."""
    meant = draw_event(rng, words, place=1, time=1)
    topic = pick(rng, ASKED)
    question = asked(replace(meant, place=None, time=None), topic)
    told = meant
    if not answered:
        known = "agent" if topic == "patient" else "patient"
        told = with_other(rng, words, meant, pick(rng, (known, "verb")))
    told = _only(told, topic if topic in _ADJUNCTS else pick(rng, _ADJUNCTS))
    if chance(rng, 0.3):
        other = draw_apart(rng, words, meant, told, place=0.5, time=0)
        return f"{question} | {_in_any_order(rng, told, other)}"
    return f"{question} | {active(told)}"


def _asks_place_or_time(rng: np.random.Generator, words: Lexicon, *, answered: bool) -> str:
    """Tells of the event, but perhaps not what is asked; where it does not, another event may."""
    topic, rest = pick(rng, (_ADJUNCTS, _ADJUNCTS[::-1]))
    meant = draw_event(rng, words, place=1, time=1)
    question = asked(replace(meant, place=None, time=None), topic)
    told = _only(meant, topic if answered else rest)
    if chance(rng, 0.4):
        other = draw_apart(rng, words, meant, place=1, time=1)
        return f"{question} | {_in_any_order(rng, told, _only(other, rest if answered else topic))}"
    return f"{question} | {active(told)}"


def _in_any_order(rng: np.random.Generator, one: Event, other: Event) -> str:
    first, second = (one, other) if chance(rng, 0.5) else (other, one)
    return f"{active(first)} and {active(second)}"


def _only(event: Event, kept: str) -> Event:
    return replace(event, time=None) if kept == "place" else replace(event, place=None)


ANSWERABILITY = Family(name="answer", labels=("answered", "open"), make=_make, hard=0.75)
