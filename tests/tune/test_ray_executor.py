"""Layers on Ray workers: the same bits as one process, also when a worker is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from apgd import InputError, TaskVectors, merge, merge_files
from apgd.checkpoints import load_weights, save_weights
from tests.conftest import State
from tune import ray_executor
from tune.cluster import Cluster, ray_session
from tune.ray_executor import LayerWorker, RayExecutor

Make = Callable[..., tuple[State, dict[str, State]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_session(address="local", cpus=3) as found:
        yield found


@pytest.fixture(scope="module")
def executor(cluster: Cluster) -> Iterator[RayExecutor]:
    with RayExecutor(replace(cluster, workers=2, threads_per_worker=1)) as found:
        yield found


@pytest.fixture
def files(model: Make, tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    base, experts = model()
    save_weights(tmp_path / "base.safetensors", {n: t.bfloat16() for n, t in base.items()})
    paths = {name: tmp_path / f"{name}.safetensors" for name in experts}
    for name, state in experts.items():
        save_weights(paths[name], state)
    return tmp_path / "base.safetensors", paths


@pytest.mark.parametrize("method", ["doge_ta", "ties", "task_arithmetic"])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_are_those_of_one_process(
    method: str, threads: int, executor: RayExecutor, model: Make
) -> None:
    torch.set_num_threads(threads)
    base, experts = model(4)
    base = {n: t.bfloat16() for n, t in base.items()}
    params = {"iterations": 20} if method == "doge_ta" else {}
    here = merge(method, base, experts, **params)
    there = merge(method, base, experts, executor=executor, **params)
    assert all(torch.equal(here[n], there[n]) for n in base)
    assert here.summary.layers[0].details == there.summary.layers[0].details


def test_shards_are_written_by_the_workers(
    files: tuple[Path, dict[str, Path]], executor: RayExecutor, tmp_path: Path
) -> None:
    base, experts = files
    here = merge("doge_ta", base, experts, iterations=5)
    merge_files(
        "doge_ta", base, experts, tmp_path / "out",
        executor=executor, shard_bytes=200, iterations=5,
    )  # fmt: skip
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    there = load_weights(tmp_path / "out", "the result")
    assert all(torch.equal(here[n], there[n]) for n in here)


def test_bad_values_are_refused_from_afar(
    files: tuple[Path, dict[str, Path]], executor: RayExecutor
) -> None:
    base, experts = files
    state = load_weights(experts["expert1"], "expert1")
    state["wide"][0, 0] = float("nan")
    save_weights(experts["expert1"], state)
    with pytest.raises(InputError, match="wide of expert expert1 .* holds NaN"):
        merge("ties", base, experts, executor=executor)


def slow_sum(marks: str, vectors: TaskVectors, name: str) -> float:
    """Leaves a mark per call, so that a test sees what was done twice, and kills once."""
    folder = Path(marks)
    calls = len(list(folder.glob(f"{name}-*")))
    (folder / f"{name}-{calls}-{os.getpid()}").touch()
    if name == "tall" and calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return float(vectors[name].sum())


def test_what_a_killed_worker_was_doing_is_done_again(
    executor: RayExecutor, model: Make, tmp_path: Path
) -> None:
    vectors = TaskVectors(*model(), keep=False)
    items = ["tall", "wide", "square", "row"]
    expected = [float(vectors[name].sum()) for name in items]
    for _ in range(2):  # the second time with a restarted worker
        found = dict(executor.map(partial(slow_sum, str(tmp_path)), vectors, items, [1] * 4))
        assert [found[i] for i in range(4)] == expected
    calls = [path.name.split("-")[0] for path in tmp_path.iterdir()]
    assert calls.count("tall") == 3
    assert all(calls.count(name) == 2 for name in ("wide", "square", "row"))


def test_other_code_on_a_machine_is_refused(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_executor, "own_identity", lambda: "other")
    with pytest.raises(InputError, match="all machines must run the same code and libraries"):
        RayExecutor(replace(cluster, workers=1, threads_per_worker=1))


class Changing(LayerWorker):
    """A worker that comes back with other libraries where a file says so."""

    def introduce(self) -> tuple[str, str, int]:
        machine, identity, free = super().introduce()
        changed = Path(os.environ["APGD_TEST_CHANGED"]).exists()
        return machine, "other" if changed else identity, free


def kill_once(mark: str, _vectors: TaskVectors, name: str) -> str:
    time.sleep(0.05)
    if name == "tall" and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def test_who_comes_back_with_other_libraries_is_left_out(
    cluster: Cluster, model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = str(tmp_path / "changed")
    original = ray.remote
    environment = {"env_vars": {"APGD_TEST_CHANGED": mark}}
    monkeypatch.setattr(ray_executor, "LayerWorker", Changing)
    monkeypatch.setattr(
        ray_executor.ray, "remote", lambda **options: original(runtime_env=environment, **options)
    )
    said: list[str] = []
    vectors = TaskVectors(*model(), keep=False)
    items = ["tall", "wide", "square", "row"]
    with RayExecutor(replace(cluster, workers=1, threads_per_worker=1), said.append) as found:
        with pytest.raises(RuntimeError, match="no worker is left that may work in this run"):
            list(found.map(partial(kill_once, mark), vectors, items, [1] * 4))
        with pytest.raises(RuntimeError, match="no worker is left that may work on this merge"):
            list(found.map(partial(kill_once, mark), vectors, items, [1] * 4))
    assert len(said) == 2
    assert "died while" in said[0]
    assert "is left out: all machines must run the same code and libraries, but " in said[1]


def test_task_vectors_travel_without_what_they_read(executor: RayExecutor, model: Make) -> None:
    vectors = TaskVectors(*model(), keep=True, executor=executor)
    _ = vectors["tall"]
    sent: dict[str, Any] = vectors.__getstate__()
    assert sent["_kept"] == {}
    assert sent["executor"] is not executor


def kill_always(_vectors: TaskVectors, _name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_work_that_kills_every_worker_is_given_up(executor: RayExecutor, model: Make) -> None:
    vectors = TaskVectors(*model(), keep=False)
    with pytest.raises(ray.exceptions.RayActorError):
        list(executor.map(kill_always, vectors, ["tall"], [1]))
