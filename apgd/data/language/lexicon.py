"""The words of the controlled English, in two halves.

The base model learns what the words of one half mean for a task; those of the other half it only
meets in sentences. What an expert has to learn besides hard rules is the meaning of that half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Words by what they can stand for in a sentence."""

    people: tuple[str, ...]
    animals: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...]
    """Pairs of synonyms; past tense and participle are the same word."""
    places: tuple[str, ...]
    times: tuple[str, ...]
    """With their preposition."""
    qualities: tuple[tuple[str, str], ...]
    """Pairs of opposites."""
    works: tuple[str, ...]
    """What opinions are about."""
    praise: tuple[str, ...]
    blame: tuple[str, ...]

    @property
    def beings(self) -> tuple[str, ...]:
        """Who can do something to whom."""
        return self.people + self.animals

    def __add__(self, other: "Lexicon") -> "Lexicon":
        return Lexicon(
            **{
                field.name: getattr(self, field.name) + getattr(other, field.name)
                for field in fields(self)
            }
        )

    def kind_of(self, being: str) -> str:
        """What a being is: "person" or "animal"."""
        return "person" if being in self.people else "animal"

    def synonym(self, verb: str) -> str:
        """The other verb that means the same."""
        return _partner(self.verbs, verb)

    def opposite(self, quality: str) -> str:
        """The quality that excludes this one."""
        return _partner(self.qualities, quality)


def _partner(pairs: tuple[tuple[str, str], ...], word: str) -> str:
    for one, other in pairs:
        if word == one:
            return other
        if word == other:
            return one
    raise KeyError(word)


FIRST = Lexicon(
    people=("teacher", "doctor", "farmer", "pilot", "driver", "painter"),
    animals=("dog", "cat", "horse", "rabbit", "bird", "cow"),
    verbs=(
        ("chased", "hunted"),
        ("helped", "aided"),
        ("watched", "eyed"),
        ("called", "phoned"),
        ("fooled", "tricked"),
        ("scared", "alarmed"),
    ),
    places=("garden", "kitchen", "school", "market", "forest", "street"),
    times=("on monday", "on tuesday", "on sunday", "at noon"),
    qualities=(
        ("big", "small"),
        ("old", "young"),
        ("tall", "short"),
        ("rich", "poor"),
        ("fast", "slow"),
    ),
    works=("film", "song", "meal", "hotel"),
    praise=("good", "great", "lovely", "superb", "pretty", "clever", "fine", "sweet"),
    blame=("bad", "awful", "boring", "dull", "ugly", "stupid", "nasty", "sour"),
)
SECOND = Lexicon(
    people=("singer", "lawyer", "baker", "sailor", "hunter", "writer"),
    animals=("goat", "tiger", "monkey", "camel", "lion", "bear"),
    verbs=(
        ("carried", "moved"),
        ("cleaned", "washed"),
        ("picked", "named"),
        ("joined", "met"),
        ("pulled", "dragged"),
        ("liked", "loved"),
    ),
    places=("harbour", "library", "castle", "valley", "tower", "museum"),
    times=("on friday", "on saturday", "at dawn", "at night"),
    qualities=(
        ("happy", "sad"),
        ("calm", "angry"),
        ("thin", "fat"),
        ("strong", "weak"),
        ("kind", "cruel"),
    ),
    works=("novel", "play", "dance", "party"),
    praise=("amazing", "perfect", "splendid", "noble", "bright", "fresh", "tasty", "smart"),
    blame=("horrid", "clumsy", "bland", "lousy", "gloomy", "stale", "rotten", "silly"),
)
WHOLE = FIRST + SECOND


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def pick_other(rng: np.random.Generator, options: Sequence[T], *taken: T | None) -> T:
    """One of the options that is none of those taken."""
    while (found := pick(rng, options)) in taken:
        pass
    return found


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return bool(rng.random() < probability)
