"""Calls handed to actors: deaths, pauses and refusals cost a line each, and no result."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from apgd import InputError
from tune.cluster import ray_session
from tune.workers.dispatch import Crew, Patience, Running


class Doer:
    """Squares numbers, and does what a file named after one says before that."""

    def square(self, folder: str, number: int) -> int:
        for deed in ("stop", "die", "always_die", "fail"):
            wish = Path(folder) / f"{number}.{deed}"
            if not wish.exists():
                continue
            if deed == "fail":
                raise ValueError(f"no square of {number}")
            if deed != "always_die":
                wish.unlink()
            (Path(folder) / f"{number}.pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP if deed == "stop" else signal.SIGKILL)
        late = Path(folder) / f"{number}.fails_late"
        if late.exists():
            late.unlink()
            time.sleep(2.0)  # in which another one does it
            raise ValueError(f"no square of {number}")
        time.sleep(3.0 if (Path(folder) / f"{number}.slow").exists() else 0.02)
        return number**2


@pytest.fixture(scope="module")
def actors() -> Iterator[list[Any]]:
    with ray_session(address="local", cpus=3):
        remote: Any = ray.remote(num_cpus=1, max_restarts=-1)(Doer)
        yield [remote.remote() for _ in range(3)]


def squares(crew: Crew, folder: Path, count: int, **options: Any) -> list[int]:
    found = dict(
        crew.dispatch(
            lambda worker, number: worker.square.remote(str(folder), number),
            count,
            what=lambda number: f"squaring {number}",
            **options,
        )
    )
    assert set(found) == set(range(count))
    return [found[number] for number in range(count)]


def test_every_call_is_made_once(actors: list[Any], tmp_path: Path) -> None:
    said: list[str] = []
    crew = Crew(actors, say=said.append)
    assert squares(crew, tmp_path, 20) == [n**2 for n in range(20)]
    assert squares(crew, tmp_path, 0) == []
    assert said == []


def test_a_death_costs_a_line_and_no_result(actors: list[Any], tmp_path: Path) -> None:
    for number in (0, 3, 4):
        (tmp_path / f"{number}.die").touch()
    said: list[str] = []
    crew = Crew(actors, say=said.append)
    crew.name(0, "node-a")
    assert squares(crew, tmp_path, 9, attempts=3) == [n**2 for n in range(9)]
    assert len(said) == 3
    assert "worker 0 on node-a died while squaring 0; it is begun again" in said
    # All of them are there again, and work.
    assert crew.gather(90) == 3
    assert squares(crew, tmp_path, 9) == [n**2 for n in range(9)]


def test_what_no_worker_survives_is_given_up(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "1.always_die").touch()
    said: list[str] = []
    crew = Crew(actors, say=said.append)
    with pytest.raises(ray.exceptions.RayActorError):
        squares(crew, tmp_path, 4, attempts=2)
    assert said[-1].endswith("died while squaring 1; no worker has survived it in 2 attempts")
    assert sum("squaring 1" in line for line in said) == 2
    assert crew.gather(90) == 3


def test_what_is_given_up_too_often_ends_the_work(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "1.stop").touch()
    crew, given_up = Crew(actors), list[str]()

    def give_up(running: Running) -> None:
        for reference, one in list(running.calls.items()):
            if one.number == 1 and (tmp_path / "1.pid").exists():
                (tmp_path / "1.pid").unlink()
                (tmp_path / "1.stop").touch()
                ray.kill(running.worker_of(one), no_restart=False)
                running.lose(reference)
                given_up.append(running.name_of(one))

    with pytest.raises(RuntimeError, match=r"step for too long while squaring 1, in 3 attempts; "):
        squares(crew, tmp_path, 3, attempts=3, on_wait=give_up)
    assert len(given_up) == 2
    assert crew.gather(90) == 3


def test_the_error_of_a_call_is_raised(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "2.fail").touch()
    crew = Crew(actors)
    with pytest.raises(ValueError, match="no square of 2"):
        squares(crew, tmp_path, 6)


def test_a_worker_that_is_far_too_slow_holds_nobody_up(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "2.stop").touch()
    said: list[str] = []
    crew = Crew(actors, say=said.append)
    patience = Patience(twice=0.5)
    pids = ray.get([actor.__ray_call__.remote(lambda _doer: os.getpid()) for actor in actors])
    assert squares(crew, tmp_path, 8, patience=patience) == [n**2 for n in range(8)]
    (line,) = [line for line in said if "has been squaring 2 for" in line]
    assert line.endswith("does it as well")
    # The slow one is not asked again before it has answered.
    stopped = int((tmp_path / "2.pid").read_text())
    assert pids.index(stopped) not in crew._free
    os.kill(stopped, signal.SIGCONT)
    deadline = time.monotonic() + 90
    while len(crew._free) < 3:
        assert squares(crew, tmp_path, 8, patience=patience) == [n**2 for n in range(8)]
        assert time.monotonic() < deadline
    assert sorted(crew._free) == [0, 1, 2]


def test_a_late_worker_that_dies_comes_back(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "0.stop").touch()
    crew = Crew(actors)
    squares(crew, tmp_path, 4, patience=Patience(twice=0.3))
    os.kill(int((tmp_path / "0.pid").read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 90
    while len(crew._free) < 3:
        assert squares(crew, tmp_path, 6) == [n**2 for n in range(6)]
        assert time.monotonic() < deadline


def test_who_may_not_work_is_left_out(actors: list[Any], tmp_path: Path) -> None:
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(Doer)
    own = [remote.remote() for _ in range(2)]
    said: list[str] = []
    answers = 0

    def admit(number: int, _answer: Any) -> None:
        nonlocal answers
        answers += 1
        if answers > 2:
            raise InputError(f"worker {number} has other libraries")

    crew = Crew(own, admit=admit, begin_away=True, say=said.append)
    assert crew.gather(90) == 2
    (tmp_path / "0.die").touch()
    deadline = time.monotonic() + 90
    while len(said) < 2:  # until it is back, and has been left out
        assert squares(crew, tmp_path, 20, attempts=2) == [n**2 for n in range(20)]
        assert time.monotonic() < deadline
    assert squares(crew, tmp_path, 20, attempts=2) == [n**2 for n in range(20)]
    assert len(said) == 2
    assert "is left out: worker" in said[1]
    ray.kill(own[1])
    ray.kill(own[0])


def test_who_came_back_as_another_unseen_does_no_more(tmp_path: Path, actors: list[Any]) -> None:
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(Doer)
    own = [remote.remote() for _ in range(2)]
    said: list[str] = []
    others = set[int]()

    def admit(number: int, _answer: Any) -> None:
        if number in others:
            raise InputError(f"worker {number} has other code")

    crew = Crew(own, admit=admit, begin_away=True, say=said.append)
    assert crew.gather(90) == 2
    ray.kill(own[0], no_restart=False)  # while it works for somebody else
    others.add(0)
    crew.meet_again()
    deadline = time.monotonic() + 90
    while not crew.left:
        assert squares(crew, tmp_path, 4) == [n**2 for n in range(4)]
        assert time.monotonic() < deadline
    assert crew.left == {0}
    assert said == ["worker 0 is left out: worker 0 has other code"]
    ray.kill(own[1])


def test_an_error_of_the_slower_of_two_ends_nothing(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "0.fails_late").touch()
    (tmp_path / "3.slow").touch()  # so that there is still something to do
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    crew = Crew(actors)
    assert squares(crew, tmp_path, 4, patience=Patience(twice=0.1)) == [n**2 for n in range(4)]
    assert not (tmp_path / "0.fails_late").exists()
    deadline = time.monotonic() + 90
    while len(crew._free) < 3:
        assert squares(crew, tmp_path, 6) == [n**2 for n in range(6)]
        assert time.monotonic() < deadline
    assert sorted(crew._free) == [0, 1, 2]


def test_where_all_are_gone_the_work_ends(tmp_path: Path, actors: list[Any]) -> None:
    remote: Any = ray.remote(num_cpus=0, resources={"elsewhere": 1}, max_restarts=-1)(Doer)
    crew = Crew([remote.remote()], begin_away=True)
    assert crew.gather(0.5) == 0
    with pytest.raises(RuntimeError, match="every worker is gone, and none came back within 1 s"):
        squares(crew, tmp_path, 1, patience=Patience(alone=1))


def test_one_that_does_not_come_is_not_waited_for_long(actors: list[Any]) -> None:
    remote: Any = ray.remote(num_cpus=0, resources={"elsewhere": 1}, max_restarts=-1)(Doer)
    missing = remote.remote()
    crew = Crew([*actors, missing], begin_away=True)
    began = time.monotonic()
    assert crew.gather(600, 3) == 3
    assert 3 <= time.monotonic() - began < 300
    ray.kill(missing)


def test_a_refusal_at_the_start_is_an_error(actors: list[Any]) -> None:
    def admit(_number: int, _answer: Any) -> None:
        raise InputError("worker must have the same libraries")

    with pytest.raises(InputError, match="same libraries"):
        Crew(actors, admit=admit, begin_away=True).gather(90)


class Frail:
    """Does what a file of the folder says: it is not made, or does not say that it is there."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        if (self._folder / "unborn").exists():
            raise RuntimeError("CUDA error: no device\nCompile with more")

    def here(self) -> None:
        if (self._folder / "dumb").exists():
            raise OSError("no memory is known\nof this GPU")

    def work(self, deed: str) -> int:
        if deed:
            (self._folder / deed).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return 1


def frail(folder: Path) -> Any:
    remote: Any = ray.remote(num_cpus=0, max_restarts=-1)(Frail)
    return remote.remote(str(folder))


def arrive(worker: Any) -> Any:
    return worker.here.options(max_task_retries=-1).remote()


def test_one_that_is_not_made_is_an_error_at_the_start(actors: list[Any], tmp_path: Path) -> None:
    (tmp_path / "unborn").touch()
    crew = Crew([frail(tmp_path)], arrive=arrive, begin_away=True)
    with pytest.raises(
        InputError, match=r"^worker 0 cannot start: RuntimeError: CUDA error: no device \(on "
    ):
        crew.gather(90)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("unborn", "worker 0 cannot start: RuntimeError: CUDA error: no device (on "),
        ("dumb", "OSError: no memory is known"),
    ],
)
def test_one_that_does_not_come_back_whole_is_left_out(
    deed: str, reason: str, actors: list[Any], tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    own = [frail(tmp_path / "a"), frail(tmp_path / "b")]
    said: list[str] = []
    crew = Crew(own, arrive=arrive, begin_away=True, say=said.append)
    assert crew.gather(90) == 2
    crew._free.clear()
    crew._free.extend([0, 1])

    def call(worker: Any, number: int) -> Any:
        dies = worker is own[0] and number == 0
        return worker.work.remote(deed if dies else "")

    for _ in range(100):  # until it has been left out
        found = dict(crew.dispatch(call, 40, attempts=3))
        assert found == dict.fromkeys(range(40), 1)
        if len(said) > 1:
            break
    assert said[1].startswith(f"worker 0 is left out: {reason}")
    assert len(said) == 2
    ray.kill(own[1])
