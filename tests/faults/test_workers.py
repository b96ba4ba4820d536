"""Workers die, stop, run out of disk or memory: others do their work, with the same numbers."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from apgd import InputError, numerics
from apgd.data import Split
from apgd.errors import DiskFullError, MemoryFullError
from apgd.finetune import Expert, ExpertSpec, expert_spec, find_expert, finetune
from apgd.models.zero_shot import ZeroShotHead
from apgd.suites import FinetuneSettings, suites
from tests.faults.held_worker import HeldWorker, Hold
from tests.faults.small_disk import small_disk
from tune.causes import cause_of
from tune.cluster import Cluster, ray_session
from tune.evaluators import Evaluator, Purpose, ScoreJob, Workload
from tune.records import Kind, Record, RecordStore, Variant
from tune.workers.dispatch import Patience
from tune.workers.introductions import Introduction, check_introduction, own_code, own_libraries
from tune.workers.pool import Job, WorkerPool
from tune.workers.process import Worker

pytestmark = pytest.mark.slow

Survived = Callable[..., None]
_TRAINER = "SIGKILL of an expert actor in mid-training"
_EVALUATOR = "SIGKILL of an evaluator in mid-merge"
_SLOW = "a worker that is slow or stands still"
_DAMAGE = "a checkpoint with a flipped bit, or truncated"
_MEMORY = "a GPU out of memory"
_VERSION = "a worker with another version of apgd or of a library"
_DISK = "full disk while a checkpoint is written"

SUITE = suites["mini_vision"]
TASKS = ("signs", "aerial", "numerals")
FEW = FinetuneSettings(steps=6, batch_size=16, learning_rate=1e-4, checkpoint_every=2)
LONG = replace(FEW, steps=40, checkpoint_every=10)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_session(address="local", cpus=2, most_workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def workers(cluster: Cluster, lines: list[str]) -> Iterator[WorkerPool]:
    patience = Patience(twice=1.0, alone=60.0)
    found = WorkerPool(
        cluster, lines.append, patience=patience, stall_seconds=12.0, actor=HeldWorker
    )
    yield found
    found.close()


@pytest.fixture
def pool(workers: WorkerPool) -> WorkerPool:
    """Two workers that are there."""
    workers.run([Job("progress", ()) for _ in range(4)])  # sees who died over the last test
    assert workers._started().gather(300) == 2
    return workers


@pytest.fixture
def said(pool: WorkerPool, lines: list[str]) -> list[str]:
    """What is said in this test."""
    lines.clear()
    return lines


def spec_of(task: str, settings: FinetuneSettings | None = None) -> ExpertSpec:
    settings = settings or (LONG if task == "signs" else FEW)
    return expert_spec(SUITE, task, 0, settings, SUITE.examples(task, Split.TRAIN).sha256)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Expert]:
    """What undisturbed trainings give."""
    numerics.configure(1)
    root = tmp_path_factory.mktemp("experts")
    return {task: finetune(SUITE, spec_of(task), root) for task in TASKS}


def training(task: str, root: Path) -> Job:
    told = f"training {task} (seed 0)"
    return Job("train", (SUITE.name, spec_of(task), root), told, trains=True)


def while_training(
    pool: WorkerPool, root: Path, act: Callable[[psutil.Process], None]
) -> tuple[dict[str, Any], psutil.Process]:
    """Do something to the worker that trains, once there is a part of it on disk.

    Returns:
        The expert's manifest, and that worker.
    """
    hold = Hold(root)
    (manifest,) = pool.run([training("signs", root)], on_progress=hold.when_held(act))
    (worker,) = hold.done
    return manifest, worker


@pytest.mark.fault(_TRAINER)
def test_a_trainer_is_killed(
    pool: WorkerPool,
    said: list[str],
    experts: dict[str, Expert],
    tmp_path: Path,
    survived: Survived,
) -> None:
    manifest, _killed = while_training(pool, tmp_path, psutil.Process.kill)
    assert manifest["resumed_at_step"] == LONG.checkpoint_every
    resumed = find_expert(spec_of("signs"), tmp_path)
    assert resumed is not None
    assert resumed.sha256 == experts["signs"].sha256
    (line,) = [one for one in said if "died" in one]
    assert line.endswith("died while training signs (seed 0); it is begun again")
    survived(_TRAINER)


def workload(run_dir: Path, experts: dict[str, Expert]) -> Workload:
    return Workload(
        suite=SUITE.name,
        run_dir=run_dir,
        experts=((0, tuple((task, str(expert.weights)) for task, expert in experts.items())),),
        inputs=((0, (("experts", "these"),)),),
        limit=40,
        corruption_limit=0,
        weights=tuple((str(expert.weights), expert.sha256) for expert in experts.values()),
    )


MERGE = ScoreJob(Purpose.FINAL, "doge_ta", Variant.PUBLISHED, 0, (("iterations", 40),), tasks=TASKS)


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, experts: dict[str, Expert]
) -> tuple[Record, dict[str, np.ndarray]]:
    """What an undisturbed merge gives."""
    numerics.configure(1)
    work = workload(tmp_path_factory.mktemp("merge"), experts)
    Evaluator(work, "cpu").run(MERGE)
    return merged(work)


def merged(work: Workload, job: ScoreJob = MERGE) -> tuple[Record, dict[str, np.ndarray]]:
    store = RecordStore(work.run_dir)
    record = store.expect(Kind.EVALUATION, job.key(work))
    return replace(record, seconds={}), store.answers(record)


def assert_merged(
    work: Workload, expected: tuple[Record, dict[str, np.ndarray]], job: ScoreJob = MERGE
) -> None:
    record, answers = merged(work, job)
    assert record == expected[0]
    assert answers.keys() == expected[1].keys()
    assert all(np.array_equal(answers[cell], expected[1][cell]) for cell in answers)


def warm(pool: WorkerPool, work: Workload) -> None:
    """Have every worker hold the model, so that what follows is the merge."""
    job = ScoreJob(Purpose.FINAL, "pretrained", Variant.REFERENCE, 0, tasks=TASKS)
    pool.run([Job("score", (work, job)) for _ in range(2)])


def while_merging(pool: WorkerPool, work: Workload, act: Callable[[psutil.Process], None]) -> Hold:
    """Do something to the worker that merges, in the middle of it."""
    warm(pool, work)
    hold = Hold(work.run_dir)
    jobs = [Job("score", (work, MERGE), "scoring doge_ta (seed 0)")]
    pool.run(jobs, on_progress=hold.when_held(act))
    assert hold.done
    return hold


@pytest.mark.fault(_EVALUATOR)
def test_an_evaluator_is_killed(
    pool: WorkerPool,
    said: list[str],
    experts: dict[str, Expert],
    expected: tuple[Record, dict[str, np.ndarray]],
    tmp_path: Path,
    survived: Survived,
) -> None:
    work = workload(tmp_path, experts)
    while_merging(pool, work, psutil.Process.kill)
    assert_merged(work, expected)
    (line,) = [one for one in said if "died" in one]
    assert line.endswith("died while scoring doge_ta (seed 0); it is begun again")
    survived(_EVALUATOR)


@pytest.mark.fault(_SLOW)
def test_an_evaluator_stands_still(
    pool: WorkerPool,
    said: list[str],
    experts: dict[str, Expert],
    expected: tuple[Record, dict[str, np.ndarray]],
    tmp_path: Path,
    survived: Survived,
) -> None:
    work = workload(tmp_path, experts)
    hold = while_merging(pool, work, psutil.Process.suspend)
    assert_merged(work, expected)
    (line,) = [one for one in said if "has been scoring doge_ta (seed 0) for" in one]
    assert "far longer than others take" in line
    hold.let_go()
    hold.done[0].resume()
    survived(_SLOW)


@pytest.mark.fault(_SLOW)
def test_a_training_stands_still(
    pool: WorkerPool,
    said: list[str],
    experts: dict[str, Expert],
    tmp_path: Path,
    survived: Survived,
) -> None:
    _manifest, stopped = while_training(pool, tmp_path, psutil.Process.suspend)
    found = find_expert(spec_of("signs"), tmp_path)
    assert found is not None
    assert found.sha256 == experts["signs"].sha256
    assert any("has made no step for" in line for line in said)
    with suppress(psutil.NoSuchProcess):
        stopped.kill()
    survived(_SLOW)


@pytest.mark.fault(_DISK)
def test_a_workers_disk_is_full(
    pool: WorkerPool, experts: dict[str, Expert], tmp_path: Path, survived: Survived
) -> None:
    with small_disk(tmp_path / "disk", mebibytes=32) as disk:
        disk.fill(free=2**16)
        with pytest.raises(Exception, match="is full") as caught:
            pool.run([training("signs", disk.folder)])
        cause = cause_of(caught.value)
        assert isinstance(cause, DiskFullError)
        path = spec_of("signs").folder(disk.folder) / "training.safetensors"
        assert cause.filename == str(path)
        assert str(cause).startswith(f"the disk of {path} is full (No space left on device); ")
        disk.make_room()
        pool.run([training("signs", disk.folder)])
        found = find_expert(spec_of("signs"), disk.folder)
        assert found is not None
        assert found.sha256 == experts["signs"].sha256
    survived(_DISK)


@pytest.mark.fault(_DAMAGE)
def test_an_expert_that_is_damaged_after_it_was_checked_is_not_merged(
    pool: WorkerPool, experts: dict[str, Expert], tmp_path: Path, survived: Survived
) -> None:
    copied = {}
    for task, expert in experts.items():
        (tmp_path / task).mkdir()
        path = shutil.copy(expert.weights, tmp_path / task / expert.weights.name)
        copied[task] = replace(expert, weights=Path(path))
    hurt = copied["aerial"].weights
    content = bytearray(hurt.read_bytes())
    content[-1] ^= 1
    # The hash is looked at again where it is read, unless this machine has a copy of the right one.
    other = replace(copied["aerial"], sha256="0" * 64)
    hurt.write_bytes(content)
    work = workload(tmp_path / "run", copied | {"aerial": other})
    with pytest.raises(Exception, match="aerial") as caught:
        pool.run([Job("score", (work, MERGE))])
    assert isinstance(cause_of(caught.value), InputError)
    assert not list((tmp_path / "run").rglob("*.json"))
    survived(_DAMAGE)


class FullMemory:
    """Stands in for the loss of a model on a GPU whose memory holds few examples."""

    def __init__(self, room: int) -> None:
        self._loss, self._room = ZeroShotHead.loss, room

    def __call__(self, head: ZeroShotHead, model: Any, examples: Any, rows: np.ndarray) -> Any:
        if len(rows) > self._room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._loss(head, model, examples, rows)


@pytest.mark.fault(_MEMORY)
def test_a_batch_that_does_not_fit_is_halved_and_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: Survived
) -> None:
    spec = spec_of("signs", FEW)

    def limited(room: int) -> Any:
        loss = FullMemory(room)
        return lambda head, model, examples, rows: loss(head, model, examples, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ZeroShotHead, "loss", limited(4))
        halved = finetune(SUITE, spec, tmp_path / "halved")
        assert halved.manifest["micro_batch"] == 4
        assert halved.manifest["events"] == [
            f"{size} examples at once did not fit into the memory of cpu at step 0; from there on "
            f"{size // 2} were taken at once"
            for size in (16, 8)
        ]

        def kill(done: int, _total: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            finetune(SUITE, spec, tmp_path / "killed", report=kill)
    # The size and what was said of it survive the process.
    again = finetune(SUITE, spec, tmp_path / "killed")
    assert again.sha256 == halved.sha256
    assert again.manifest["events"] == halved.manifest["events"]
    survived(_MEMORY)


@pytest.mark.fault(_MEMORY)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_a_score_that_does_not_fit_is_tried_once_more_and_then_said(
    experts: dict[str, Expert],
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    survived: Survived,
) -> None:
    monkeypatch.setattr("tune.workers.process.assigned_device", lambda: "cpu")
    answers, left = ZeroShotHead.answers, [2]

    def full(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return answers(*arguments)

    job = replace(MERGE, params=(("iterations", 5),))
    undisturbed, work = workload(tmp_path / "one", experts), workload(tmp_path / "two", experts)
    Evaluator(undisturbed, "cpu").run(job)
    monkeypatch.setattr(ZeroShotHead, "answers", full)
    worker = Worker(1)
    with pytest.raises(MemoryFullError, match="do not fit into the memory of cpu") as caught:
        worker.score(work, job)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "two").rglob("*.json"))
    left[0] = 1
    worker.score(work, job)
    assert_merged(work, merged(undisturbed, job), job)
    survived(_MEMORY)


@pytest.mark.fault(_VERSION)
@pytest.mark.parametrize("what", ["code", "libraries"])
def test_a_worker_with_another_version_is_refused(what: str, survived: Survived) -> None:
    other: dict[str, Any] = {
        "code": "0123456789ab",
        "libraries": (*own_libraries()[1:], ("python", "3.99.0")),
    }
    met = Introduction(
        machine="node-b",
        device="CPU",
        free_bytes=None,
        code=own_code(),
        libraries=own_libraries(),
        run_id="run",
    )
    check_introduction(met, Path("run"), "run", 0)
    with pytest.raises(InputError) as caught:
        check_introduction(replace(met, **{what: other[what]}), Path("run"), "run", 0)
    ours = {"code": own_code(), "libraries": dict(own_libraries())["python"]}[what]
    theirs = {"code": "0123456789ab", "libraries": "3.99.0"}[what]
    for word in ("node-b", ours, theirs):
        assert word in str(caught.value)
    survived(_VERSION)
