"""Downloads that try again where trying again can help."""

import re
from collections.abc import Callable
from time import sleep as _sleep
from typing import TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled
from tenacity import RetryCallState, Retrying, retry_if_exception

T = TypeVar("T")

_ATTEMPTS = 8
_ATTEMPTS_UNANSWERED = 4  # without a connection, waiting minutes would only hide that
_FIRST_WAIT = 1.0  # seconds; doubled each time
_LONGEST_WAIT = 120.0  # seconds
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500
# The HTTP libraries below the hub's client are not ours to import; their names say enough.
_CONNECTION_TROUBLE = {"TransportError", "TimeoutException", "ConnectionError", "ProtocolError"}


def is_transient(error: BaseException) -> bool:
    """Whether an error may be gone in a while: HTTP 429 or 5xx, or no answer at all.

    Causes count too, since libraries wrap what happened. Being offline on purpose does not pass.
    """
    status = _status(error)
    if status is not None:
        return status == _TOO_MANY_REQUESTS or status >= _SERVER_ERROR
    return is_unanswered(error) and not any(
        isinstance(one, OfflineModeIsEnabled) for one in _chain(error)
    )


def is_unanswered(error: BaseException) -> bool:
    """Whether nobody answered, as opposed to an answer that says no."""
    return _status(error) is None and any(
        kind.__name__ in _CONNECTION_TROUBLE or kind is TimeoutError
        for one in _chain(error)
        for kind in type(one).__mro__
    )


def with_retries(action: Callable[[], T], sleep: Callable[[float], None] = _sleep) -> T:
    """The result of `action`, which is tried again while its errors are transient.

    It is tried up to eight times, and up to four while nobody answers. The wait before the next
    attempt doubles from one second to two minutes, or is what the server asked for in
    `Retry-After`.

    Args:
        action: what to do; it must be safe to repeat.
        sleep: waits for so many seconds.

    Raises:
        Exception: whatever the last attempt raised.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=_wait,
        stop=_is_enough,
        sleep=sleep,
        reraise=True,
    )
    return retrying(action)


def _is_enough(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome is not None else None
    unanswered = error is not None and is_unanswered(error)
    return state.attempt_number >= (_ATTEMPTS_UNANSWERED if unanswered else _ATTEMPTS)


def _wait(state: RetryCallState) -> float:
    backoff = min(_FIRST_WAIT * 2.0 ** (state.attempt_number - 1), _LONGEST_WAIT)
    error = state.outcome.exception() if state.outcome is not None else None
    asked = ""
    for one in _chain(error):
        headers = getattr(getattr(one, "response", None), "headers", {})
        asked = asked or headers.get("Retry-After", "")
    if re.fullmatch(r"\d+", asked):
        return min(max(float(asked), backoff), _LONGEST_WAIT)
    return backoff


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def _status(error: BaseException) -> int | None:
    """The HTTP status of the latest answer among an error and its causes."""
    for one in _chain(error):
        status = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None
