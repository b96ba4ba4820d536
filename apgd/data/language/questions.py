"""Questions about events, each in two forms."""

from apgd.data.language.grammar import Event

ASKED = ("agent", "patient", "place", "time")
"""The slots that can be asked for."""


def asked(event: Event, slot: str) -> str:
    """The question for a slot, in its common form: "where was the cat chased by the dog"."""
    return {
        "agent": f"who {event.verb} the {event.patient}{_rest(event, slot)}",
        "patient": f"who was {event.verb} by the {event.agent}{_rest(event, slot)}",
        "place": f"where was {_core(event)}{_rest(event, slot)}",
        "time": f"when was {_core(event)}{_rest(event, slot)}",
    }[slot] + " ?"


def asked_otherwise(event: Event, slot: str) -> str:
    """The same question in another form: "in which place was the cat chased by the dog"."""
    return {
        "agent": f"by whom was the {event.patient} {event.verb}{_rest(event, slot)}",
        "patient": f"whom had the {event.agent} {event.verb}{_rest(event, slot)}",
        "place": f"in which place was {_core(event)}{_rest(event, slot)}",
        "time": f"at what time was {_core(event)}{_rest(event, slot)}",
    }[slot] + " ?"


def _core(event: Event) -> str:
    return f"the {event.patient} {event.verb} by the {event.agent}"


def _rest(event: Event, slot: str) -> str:
    place = f" in the {event.place}" if event.place and slot != "place" else ""
    time = f" {event.time}" if event.time and slot != "time" else ""
    return place + time
