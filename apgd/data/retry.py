"""Downloads that try again where trying again can help."""

import re
from collections.abc import Callable
from time import sleep as _sleep
from typing import TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

T = TypeVar("T")

_ATTEMPTS = 8
_FIRST_WAIT = 1.0  # seconds; doubled each time
_LONGEST_WAIT = 120.0  # seconds
_TOO_MANY_REQUESTS = 429
_SERVER_ERROR = 500
# The HTTP libraries below the hub's client are not ours to import; their names say enough.
_CONNECTION_TROUBLE = {"TransportError", "TimeoutException", "ConnectionError", "ProtocolError"}


def is_transient(error: BaseException) -> bool:
    """Whether an error may be gone in a while: HTTP 429 or 5xx, or trouble with the connection.

    Causes count too, since libraries wrap what happened. Being offline on purpose does not pass.
    """
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
        return False
    statuses = [status for one in chain if (status := _status(one)) is not None]
    if statuses:
        return statuses[0] == _TOO_MANY_REQUESTS or statuses[0] >= _SERVER_ERROR
    return any(
        kind.__name__ in _CONNECTION_TROUBLE or kind is TimeoutError
        for one in chain
        for kind in type(one).__mro__
    )


def with_retries(action: Callable[[], T], sleep: Callable[[float], None] = _sleep) -> T:
    """The result of `action`, which is tried up to eight times while its errors are transient.

    The wait before the next attempt doubles from one second to two minutes, or is what the server
    asked for in `Retry-After`.

    Args:
        action: what to do; it must be safe to repeat.
        sleep: waits for so many seconds.

    Raises:
        Exception: whatever the last attempt raised.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=_wait,
        stop=stop_after_attempt(_ATTEMPTS),
        sleep=sleep,
        reraise=True,
    )
    return retrying(action)


def _wait(state: RetryCallState) -> float:
    backoff = min(_FIRST_WAIT * 2.0 ** (state.attempt_number - 1), _LONGEST_WAIT)
    error = state.outcome.exception() if state.outcome is not None else None
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    if re.fullmatch(r"\d+", asked):
        return min(max(float(asked), backoff), _LONGEST_WAIT)
    return backoff


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
