"""Why an actor does not start, in a module that processes of Tune's import, too."""

import re

import ray


def why_not_started(error: ray.exceptions.RayError) -> str | None:
    """The error of an actor that failed as it was made, in a line; None where it was not that.

    Ray keeps only the text of what was raised, below its traceback, and does not make it again.
    """
    if not isinstance(error, ray.exceptions.RayActorError) or not error.actor_init_failed:
        return None
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    traced = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    # The line of the error itself; it may have more, of which none says what has happened.
    below = [line for line in lines[traced[-1] + 1 :] if line[:1] != " "] if traced else []
    told = (below or lines[-1:])[0].strip()
    where = re.search(r"\bip=([^,)\s]+)", text)
    return told if where is None else f"{told} (on {where[1]})"


def raised_in(error: ray.exceptions.RayTaskError) -> str:
    """What a call raised, in a line."""
    kind = type(error.cause).__name__
    reason = (str(error.cause).splitlines() or [""])[0]
    return f"{kind}: {reason}" if reason else kind
