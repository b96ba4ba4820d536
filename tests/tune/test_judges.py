"""Trials handed to workers that fail in one way or another, without Tune."""

import errno
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tune.cluster import ray_session
from tune.search import judges
from tune.search.judges import Ended, Judges, Loss, News, Order, Stuck


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    with ray_session(address="local", cpus=2):
        yield


def lean_worker(stale: bool) -> Any:
    """An actor of a local class, so that its process imports nothing."""

    class Lean:
        def __init__(self) -> None:
            self.calls = 0

        def score_trial(self, *_what: object) -> tuple[float, ...]:
            self.calls += 1
            if stale:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return (0.5,)

        def asked(self) -> int:
            return self.calls

    return ray.remote(num_cpus=0, max_restarts=-1)(Lean).remote()


def broken_worker(*, born: bool) -> Any:
    """One that fails as it is made, or when it is asked who it is."""

    class Broken:
        def __init__(self) -> None:
            if not born:
                raise RuntimeError("CUDA error: no device\nCompile with more")

        def identify(self) -> None:
            raise ValueError("no library\nof that name")

    return ray.remote(num_cpus=0, max_restarts=-1)(Broken).remote()


def test_who_cannot_start_is_left_out_with_the_reason() -> None:
    asked = Judges(
        [broken_worker(born=False), broken_worker(born=True)], None, Stuck(), identity="ours"
    )
    failed, until = dict[int, str](), time.monotonic() + 180
    while len(failed) < 2 and time.monotonic() < until:
        asked.wait(0.1)
        failed |= asked.news().failed
    assert failed[0].startswith("RuntimeError: CUDA error: no device (on ")
    assert failed[1] == "ValueError: no library"
    assert asked.down == [0, 1]
    asked.wait(1.5)
    assert not asked.news().failed  # nobody is asked again


def judged(asked: Judges, *orders: Order) -> News:
    """Everything that is reported until there is nothing to do, from when all workers are there."""
    until = time.monotonic() + 180
    while asked.down and time.monotonic() < until:
        asked.wait(0.1)
        asked.news()
    asked.take(orders)
    ended, losses = list[Ended](), list[Loss]()
    while not asked.idle and time.monotonic() < until:
        asked.wait(0.2)
        news = asked.news()
        ended, losses = [*ended, *news.ended], [*losses, *news.losses]
    return News(ended, losses)


def test_a_second_worker_that_dies_over_a_rung_is_followed_by_a_third() -> None:
    def worker(deed: str) -> Any:
        class Doer:
            def score_trial(self, *_what: object) -> tuple[float, ...]:
                if deed == "hang":
                    time.sleep(600)
                if deed == "die":
                    time.sleep(0.5)
                    os.kill(os.getpid(), signal.SIGKILL)
                return (0.5,)

        return ray.remote(num_cpus=0, max_restarts=-1)(Doer).remote()

    workers = [worker("hang"), worker("die"), worker("judge")]
    asked = Judges(workers, None, Stuck(least=0.1, times=1.0))
    ray.get([one.__ray_ready__.remote() for one in workers])
    news = judged(asked, Order(0, 0, {}, (), 0))
    (ended,) = news.ended
    assert (ended.values, ended.error) == (((0.5,),), None)
    slow, dead = news.losses
    assert (slow.worker, slow.taken_by) == (0, (1,))
    assert (dead.worker, dead.places) == (1, ((0, 0),))
    for one in workers:
        ray.kill(one)


def test_where_storage_fails_one_worker_another_one_judges() -> None:
    workers = [lean_worker(stale=True), lean_worker(stale=False)]
    asked = Judges(workers, None, Stuck())
    news = judged(asked, Order(0, 0, {}, (), 0))
    (ended,) = news.ended
    assert (ended.values, ended.error) == (((0.5,),), None)
    (loss,) = news.losses
    assert (loss.worker, loss.places, loss.seconds) == (0, ((0, 0),), None)
    assert loss.error == f"OSError: [Errno {errno.ESTALE}] {os.strerror(errno.ESTALE)}"
    assert asked.down == []


def test_where_storage_fails_everybody_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "_PAUSE_SECONDS", 0.01)
    workers = [lean_worker(stale=True), lean_worker(stale=True)]
    news = judged(Judges(workers, None, Stuck()), Order(0, 0, {}, (), 0))
    (ended,) = news.ended
    assert ended.ends_search
    assert ended.error is not None
    assert ended.error.startswith(f"OSError: [Errno {errno.ESTALE}] ")
    assert ended.error.endswith(" (6 attempts failed, the last with this)")
    assert [ray.get(worker.asked.remote()) for worker in workers] == [3, 3]
    assert len(news.losses) == 5
