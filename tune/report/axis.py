"""What the report needs to know about a searched parameter."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One searched parameter of a method."""

    name: str
    """The parameter's name, as in the records."""
    meaning: str
    """One line for people, with the unit."""
    log: bool = False
    """Whether it is searched, and shown, on a logarithmic scale."""
