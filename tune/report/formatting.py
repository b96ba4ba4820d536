"""Numbers as people read them: percent with one digit, a true minus sign, short hashes."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from apgd.statistics import Interval

ABSENT = "–"
"""Stands where a value does not exist."""


def percent(interval: Interval | None) -> str:
    """A share with its half-width, in percent: `71.2 ± 0.6`."""
    if interval is None:
        return ABSENT
    return f"{_fixed(interval.estimate * 100)} ± {_fixed(interval.half_width * 100)}"


def points(interval: Interval | None) -> str:
    """A difference of shares with its interval, in percentage points: `+1.3 [0.8, 1.8]`.

    A bound that is not zero is never shown as zero: two digits are used where one would do that.
    """
    if interval is None:
        return ABSENT
    values = [value * 100 for value in (interval.estimate, interval.low, interval.high)]
    blurred = any(value != 0 and abs(value) < 0.05 for value in values[1:])
    digits = 2 if blurred else 1
    estimate, low, high = (_fixed(value, digits) for value in values)
    sign = "+" if values[0] > 0 and float(f"{values[0]:.{digits}f}") != 0 else ""
    return f"{sign}{estimate} [{low}, {high}]"


def number(value: Any) -> str:
    """A parameter or count: at most four significant digits, integers whole."""
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return minus(str(value) if isinstance(value, int) else f"{value:.4g}")


def plain(value: float | None) -> str:
    """A published percentage, with one digit."""
    return ABSENT if value is None else _fixed(value)


def duration(seconds: float | None) -> str:
    """A time span: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(text: str | None) -> str:
    """An ISO date and time without its seconds; what is none is shown as it came."""
    if not text:
        return ABSENT
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when:%Y-%m-%d %H:%M}" + (f" {when:%Z}" if when.tzinfo else "")


def short(digest: str) -> str:
    """The first ten digits of a hash."""
    return digest[:10]


def minus(text: str) -> str:
    """With a true minus sign, which is as wide as a plus."""
    return text.replace("-", "−")


def condition(name: str) -> str:
    """A corruption's name for people: `gaussian_noise` as `Gaussian noise`."""
    return name.replace("_", " ").capitalize().replace("Jpeg", "JPEG")


def listed(items: Sequence[Any]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = [str(item) for item in items]
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """`1 seed`, `3 seeds`; `plural` is for nouns that do not just get an s."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"


def _fixed(value: float, digits: int = 1) -> str:
    text = f"{value:.{digits}f}"
    return minus(text) if float(text) != 0 else text.lstrip("-")
