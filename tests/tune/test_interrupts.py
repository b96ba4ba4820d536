"""Signals to end keep their meaning, whatever Ray makes of them."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.signals import heard
from tune import interrupts
from tune.causes import cause_of
from tune.head import HeadLostError
from tune.interrupts import Stopped


def as_ray_does(act: Callable[[], object]) -> None:
    """Do something that a signal interrupts, as Ray's calls do: they raise what Ctrl-C raises."""
    with suppress(BaseException):
        act()
    raise KeyboardInterrupt


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_the_middle_of_a_call_of_rays(number: signal.Signals, status: int) -> None:
    with heard(), interrupts.noted():
        with pytest.raises(KeyboardInterrupt) as plain:
            as_ray_does(lambda: os.kill(os.getpid(), number))
        assert str(cause_of(plain.value)) == number.name
    with pytest.raises(Stopped) as stopped, heard(), interrupts.noted():
        as_ray_does(lambda: os.kill(os.getpid(), number))
    assert stopped.value.status == status


def test_a_lost_head_in_the_middle_of_a_call_of_rays() -> None:
    lost = HeadLostError("the head is gone")
    with pytest.raises(HeadLostError) as raised, interrupts.noted():
        as_ray_does(lambda: interrupts.end(lost))
    assert raised.value is lost


def test_what_nobody_sent_stays_what_it_is() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, interrupts.noted():
        raise KeyboardInterrupt
    assert type(raised.value) is KeyboardInterrupt
