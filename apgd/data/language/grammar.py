"""Events, and the sentences and questions that speak of them."""

from dataclasses import dataclass, replace

import numpy as np

from apgd.data.language.lexicon import Lexicon, chance, pick, pick_other

SLOTS = ("agent", "verb", "patient", "place", "time")


@dataclass(frozen=True)
class Event:
    """Who did what to whom, where and when."""

    agent: str
    verb: str
    patient: str
    place: str | None = None
    time: str | None = None

    @property
    def swapped(self) -> "Event":
        """The same with the roles of agent and patient exchanged."""
        return replace(self, agent=self.patient, patient=self.agent)


def draw_event(
    rng: np.random.Generator, words: Lexicon, place: float = 0.5, time: float = 0.5
) -> Event:
    """An event at random, with a place and a time at these probabilities."""
    agent = pick(rng, words.beings)
    return Event(
        agent=agent,
        verb=pick(rng, pick(rng, words.verbs)),
        patient=pick_other(rng, words.beings, agent),
        place=pick(rng, words.places) if chance(rng, place) else None,
        time=pick(rng, words.times) if chance(rng, time) else None,
    )


def draw_apart(
    rng: np.random.Generator,
    words: Lexicon,
    *events: Event,
    place: float = 0.5,
    time: float = 0.5,
) -> Event:
    """An event in which nobody of the given ones takes part."""
    taken = {being for event in events for being in (event.agent, event.patient)}
    while True:
        found = draw_event(rng, words, place, time)
        if found.agent not in taken and found.patient not in taken:
            return found


def with_other(rng: np.random.Generator, words: Lexicon, event: Event, slot: str) -> Event:
    """The event with something that means something else in one slot."""
    if slot == "verb":
        other = pick(rng, pick(rng, words.verbs))
        while other in (event.verb, words.synonym(event.verb)):
            other = pick(rng, pick(rng, words.verbs))
        return replace(event, verb=other)
    if slot == "place":
        return replace(event, place=pick_other(rng, words.places, event.place))
    if slot == "time":
        return replace(event, time=pick_other(rng, words.times, event.time))
    other = pick_other(rng, words.beings, event.agent, event.patient)
    return replace(event, agent=other) if slot == "agent" else replace(event, patient=other)


def with_synonym(words: Lexicon, event: Event) -> Event:
    """The event told with the verb's synonym."""
    return replace(event, verb=words.synonym(event.verb))


def filled(event: Event) -> tuple[str, ...]:
    """The slots of which the event says something."""
    return tuple(slot for slot in SLOTS if getattr(event, slot) is not None)


def active(event: Event) -> str:
    """For example "the dog chased the cat in the garden at noon"."""
    return f"the {event.agent} {event.verb} the {event.patient}{_where_and_when(event)}"


def passive(event: Event) -> str:
    """For example "the cat was chased by the dog in the garden at noon"."""
    return f"the {event.patient} was {event.verb} by the {event.agent}{_where_and_when(event)}"


def fronted(event: Event, *, as_passive: bool) -> str:
    """Time and place come first: "at noon in the garden the dog chased the cat"."""
    bare = replace(event, place=None, time=None)
    told = passive(bare) if as_passive else active(bare)
    place = f"in the {event.place} " if event.place else ""
    time = f"{event.time} " if event.time else ""
    return f"{time}{place}{told}"


def retold(rng: np.random.Generator, event: Event) -> str:
    """The event in another form than the plain active one."""
    if (event.place or event.time) and chance(rng, 0.5):
        return fronted(event, as_passive=chance(rng, 0.3))
    return passive(event)


def _where_and_when(event: Event) -> str:
    place = f" in the {event.place}" if event.place else ""
    time = f" {event.time}" if event.time else ""
    return place + time
