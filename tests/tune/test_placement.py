"""What runs where: on made-up GPUs, with workers that only say where they are."""

import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
import torch

from apgd import InputError
from apgd.files import sha256_path, write_json
from apgd.suites import suites
from tests.tune.stub_worker import GIB, StubWorker
from tune import begin
from tune import cluster as clusters
from tune.cluster import Cluster, plan, scorers_per_gpu
from tune.evaluators import Evaluator
from tune.experiment import Experiment
from tune.search.trials import TrialScorer
from tune.workers import placement
from tune.workers import pool as worker_pool
from tune.workers import process as worker_process
from tune.workers.dispatch import Call
from tune.workers.introductions import Introduction, check_introduction, own_code, own_libraries
from tune.workers.placement import Placement
from tune.workers.pool import Job, WorkerPool
from tune.workers.sharing import Sharing


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    with clusters.on_loopback():
        ray.init(
            address="local", num_cpus=8, num_gpus=2, include_dashboard=False,
            log_to_driver=False, object_store_memory=80 * 2**20,
        )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(worker_pool, "RemoteWorker", StubWorker)
    monkeypatch.setattr(placement, "_gpus", lambda count: [("RTX", 20 * GIB)] * count)
    write_json(tmp_path / "run" / "experiment.json", {"identity": {}, "run_id": "one"})
    told = {"machine": "here", "code": own_code(), "libraries": own_libraries(), "run_id": "one"}
    write_json(tmp_path / "run" / "introduction.json", told)
    return tmp_path / "run"


def placed(pool: WorkerPool, count: int) -> list[tuple[tuple[str, ...], int]]:
    found = pool.run([Job("where", ()) for _ in range(count)])
    return sorted((tuple(gpus), threads) for gpus, threads in found)


def test_each_kind_of_work_has_its_place(
    two_gpus: None, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_POLL_SECONDS", 60.0)  # in which every worker says its peak
    said: list[str] = []
    cluster = plan(nodes=1, cpus=6, gpus=2, joined=False, most_workers=8)
    place = Placement(cluster, said.append, run_dir, Sharing(9 * GIB, ("suite", "ties")))
    with place.preparing() as pool:
        assert placed(pool, 6) == [((), 1)] * 6
    with place.training() as pool:
        assert placed(pool, 2) == [(("0",), 3), (("1",), 3)]
    assert [worker.device for worker in place.met] == ["RTX", "RTX"]
    with place.scoring() as pool:  # two of 9 GiB fit into 20
        assert placed(pool, 4) == [(("0",), 1)] * 2 + [(("1",), 1)] * 2
        assert pool.run([Job("shares", ())]) == [2]
    assert said == [
        "2 workers share a GPU for merges and scores: 9.0 GiB each (calculated) of 20.0 GiB"
    ]
    # What was measured then, 1.15 x 4 GiB and what CUDA takes, counts the next time.
    again = Placement(cluster, said.append, run_dir, Sharing(9 * GIB, ("suite", "ties")))
    with again.scoring() as pool:  # also where nothing had to be trained
        assert len(pool.start()) == 6
    assert said[1] == (
        "3 workers share a GPU for merges and scores: 5.2 GiB each (measured) of 20.0 GiB"
    )
    few = Placement(
        cluster, said.append, run_dir, Sharing(9 * GIB, share=2, most=3), most_training=1
    )
    with few.training() as pool:
        assert placed(pool, 1) == [(("0",), 3)]
    with few.scoring() as pool:
        assert len(pool.start()) == 3
    other = Placement(cluster, said.append, run_dir, Sharing(21 * GIB, ("suite", "wudi")))
    for work in (other.training, other.scoring):  # before experts are trained for nothing
        refused = pytest.raises(InputError, match=r"needs about 21\.0 GiB .*leave the machine out$")
        with work() as pool, refused:
            pool.start()


def test_a_peak_above_what_is_calculated_refuses_nobody(two_gpus: None, run_dir: Path) -> None:
    sharing = Sharing(9 * GIB, ("suite", "ties"))
    sharing.remember("RTX", 20 * GIB)
    cluster = plan(nodes=1, cpus=6, gpus=2, joined=False, most_workers=8)
    with Placement(cluster, print, run_dir, sharing).scoring() as pool:
        assert len(pool.start()) == 2  # 23.6 GiB measured, 9 calculated, 20 free


def test_nothing_is_started_for_nothing(run_dir: Path) -> None:
    cluster = plan(nodes=1, cpus=8, gpus=2, joined=False, most_workers=8)
    place = Placement(cluster, print, run_dir, Sharing(GIB))
    with place.training() as pool:  # Ray is not even there
        assert pool.run([]) == []
    assert place.met == []


def test_without_gpus_the_same_workers_do_everything(two_gpus: None, run_dir: Path) -> None:
    cluster = plan(nodes=1, cpus=2, gpus=0, joined=False, most_workers=8)
    place = Placement(cluster, print, run_dir, Sharing(GIB))
    with place.preparing() as first:
        assert placed(first, 2) == [((), 1), ((), 1)]
    with place.training() as second, place.scoring() as third:
        assert first is second is third
    first.close()


def test_a_training_that_hangs_is_begun_again(two_gpus: None, run_dir: Path) -> None:
    said: list[str] = []
    cluster = Cluster(
        nodes=1, cpus=2, gpus=0, joined=False, workers=2, threads_per_worker=1
    )  # fmt: skip
    pool = WorkerPool(cluster, said.append, run_dir, stall_seconds=1.5)
    seen: list[int] = []
    found = pool.run(
        [Job("train", (run_dir,), "training signs", trains=True)],
        on_progress=lambda progress: seen.extend(step for step, _total in progress.values()),
    )
    pool.close()
    assert found == [5]
    (line,) = said
    assert "has made no step for" in line
    assert "while training signs; it is ended, and another one begins again" in line
    assert 3 in seen


class OneCall:
    """Stands in for the calls under way: one, which is given up whenever that is asked for."""

    def __init__(self) -> None:
        self.calls: dict[Any, Call] = {"call": Call(0, 0, 0.0)}
        self.lost = 0

    def name_of(self, _call: Call) -> str:
        return "worker 0"

    def worker_of(self, _call: Call) -> None:
        return None

    def lose(self, _reference: object) -> None:
        self.lost += 1


def test_what_is_prepared_before_the_first_step_may_take_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(worker_pool.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(worker_pool.ray, "kill", lambda _worker, no_restart: None)
    jobs = [Job("train", (), "training signs", trains=True)]
    for steps, patient in (([(0, 9)], 3600.0), ([None], 3600.0), ([(0, 9), (1, 9)], 600.0)):
        watch, running = worker_pool._Watch(jobs, 600.0, said.append, 3600.0), OneCall()
        for step in steps:
            watch.look(running, {} if step is None else {0: step})  # type: ignore[arg-type]
        now[0] += patient
        watch.look(running, {})  # type: ignore[arg-type]
        assert running.lost == 0
        now[0] += 1
        watch.look(running, {})  # type: ignore[arg-type]
        assert running.lost == 1
    assert [line.split(" s ")[0] for line in said] == [
        f"worker 0 has made no step for {seconds}" for seconds in (3601, 3601, 601)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_id": None}, "must be on storage that all machines share, but b does not see /x"),
        ({"code": "abc"}, "must run the same code, but b has abc and the driver"),
        ({"libraries": (("torch", "0.1"),)}, "same libraries, but b has python None and the"),
        ({"free_bytes": GIB}, r"needs about 2\.0 GiB of GPU memory, but RTX of b has 1\.0 GiB"),
    ],
)
def test_a_worker_that_cannot_do_its_work_is_refused(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "machine": "b", "device": "RTX", "free_bytes": 3 * GIB, "code": own_code(),
        "libraries": own_libraries(), "run_id": "one",
    }  # fmt: skip
    check_introduction(Introduction(**good), Path("/x"), "one", 2 * GIB)
    with pytest.raises(InputError, match=message):
        check_introduction(Introduction(**good | change), Path("/x"), "one", 2 * GIB)


def test_as_many_share_a_gpu_as_fit() -> None:
    assert scorers_per_gpu(24 * GIB, 5 * GIB, 8) == 4
    assert scorers_per_gpu(24 * GIB, 10 * GIB, 8) == 2
    assert scorers_per_gpu(24 * GIB, 10 * GIB, 1) == 1
    assert scorers_per_gpu(4 * GIB, 10 * GIB, 8) == 1
    assert plan(1, 8, 2, False, 8).worker_resources == {"num_gpus": 1, "num_cpus": 0}
    third = Cluster(1, 8, 2, False, 6, 1, per_gpu=3).worker_resources
    assert 3 * third["num_gpus"] <= 1


class Growing:
    """A cluster whose autoscaler brings a GPU at every second look, up to some number.

    Time goes by only while somebody sleeps.
    """

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks, self.asked, self.now = 0, [], 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep)
        monkeypatch.setattr(clusters, "time", clock)
        monkeypatch.setattr(clusters, "request_resources", self.request)
        monkeypatch.setattr(clusters, "_resources", self.look)
        self._most = most

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def request(self, bundles: list[dict[str, int]]) -> None:
        self.asked.append(bundles)

    def look(self) -> dict[str, float]:
        self.looks += 1
        return {"CPU": 4, "GPU": min(self._most, self.looks // 2)}


def test_wanted_gpus_are_asked_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    growing = Growing(3, monkeypatch)
    clusters._wait_for_gpus(3, said.append, seconds=5, poll_seconds=1)
    assert growing.asked == [[{"GPU": 1}] * 3]
    assert said == [f"waiting for 3 GPUs; {n} are there" for n in range(3)]


def test_fewer_gpus_are_made_do_with(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    Growing(2, monkeypatch)
    clusters._wait_for_gpus(8, said.append, seconds=5, poll_seconds=1)
    assert said[-1] == "going on with 2 of 8 GPUs: no more came"


@pytest.mark.parametrize(("wanted", "workers_there"), [(None, 3), (2, 2), (5, 3)])
def test_no_more_gpus_are_used_than_were_asked_for(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch, wanted: int | None, workers_there: int
) -> None:
    monkeypatch.setattr(clusters, "_connect", lambda *_arguments: True)
    monkeypatch.setattr(clusters, "watched", lambda *_arguments: nullcontext())
    monkeypatch.setattr(clusters, "_wait_for_gpus", lambda *_arguments: None)
    monkeypatch.setattr(clusters, "request_resources", lambda bundles: None)
    monkeypatch.setattr(clusters, "_resources", lambda: {"CPU": 12, "GPU": 3})
    monkeypatch.setattr(clusters.ray, "shutdown", lambda: None)
    with clusters.ray_session(wanted_gpus=wanted) as found:
        assert (found.gpus, found.workers) == (workers_there, workers_there)


def test_a_machine_with_fewer_gpus_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_resources", lambda: {"CPU": 4, "GPU": 1})
    clusters._have_gpus(1, False, print)
    with pytest.raises(InputError, match=r"^this machine has 1 GPU, but --gpus asks for 3$"):
        clusters._have_gpus(3, False, print)


@pytest.mark.parametrize(
    ("suite", "gpus", "joined", "there"),
    [
        ("mini_vision", None, True, 0),
        ("clip_vit_b32_8", 0, True, 0),
        ("clip_vit_b32_8", None, False, 0),
        ("clip_vit_b32_8", None, True, 1),
    ],
)
def test_who_asks_for_no_gpu_where_it_takes_one_is_told(
    suite: str, gpus: int | None, joined: bool, there: int
) -> None:
    head = clusters.plan(1, 4, 0, True, 8)
    with pytest.raises(InputError, match=r"--gpus 8 asks it .* --gpus 0 goes on with 4 CPUs$"):
        begin._check_gpus(Experiment(suite="clip_vit_b32_8"), suites["clip_vit_b32_8"], head)
    experiment = Experiment(suite=suite, gpus=gpus)
    begin._check_gpus(experiment, suites[suite], clusters.plan(1, 4, there, joined, 8))


def test_a_cluster_that_is_gone_is_neither_joined_nor_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert clusters.cluster_to_join(None) is None
    with pytest.raises(InputError, match="part of a cluster"):
        clusters.cluster_to_join("auto")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert clusters.cluster_to_join(None) is None  # nobody answers
        for asked in ("auto", address):
            with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
                clusters.cluster_to_join(asked)
        listening.listen()
        for asked in (None, "auto", address):
            assert clusters.cluster_to_join(asked) == address
        assert clusters.cluster_to_join("local") is None
    with pytest.raises(InputError, match="must be host:port, but got 'head'"):
        clusters.cluster_to_join("head")


def test_no_gpu_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Growing(0, monkeypatch)
    with pytest.raises(InputError, match="--gpus 8 were asked for, but no GPU has joined"):
        clusters._wait_for_gpus(8, print, seconds=5, poll_seconds=1)


def test_a_lack_of_gpu_memory_is_met_by_letting_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "assigned_device", lambda: "cpu")
    monkeypatch.setattr(worker_process.numerics, "configure", torch.set_num_threads)
    parts: list[float] = []
    monkeypatch.setattr(
        worker_process, "Evaluator", lambda _workload, _device, part: parts.append(part)
    )
    worker, failures = worker_process.Worker(threads=1), [2]
    worker._evaluator_of(None)  # type: ignore[arg-type]

    def act() -> str:
        if failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
        return "done"

    with pytest.raises(RuntimeError, match=r"--scorers-per-gpu 1 .*Tried to allocate 2 GiB\)$"):
        worker._with_room(act)
    failures[0], worker._evaluator = 1, object()  # type: ignore[assignment]
    assert worker._with_room(act) == "done"
    assert worker._evaluator is None
    worker._evaluator_of(None)  # type: ignore[arg-type]
    assert parts == [1, 0]  # task vectors are no longer kept


def test_a_worker_takes_its_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(worker_process.numerics, "configure", torch.set_num_threads)
    for device, share in (("cpu", 1), ("cuda:0", 1), ("cuda:0", 4)):
        monkeypatch.setattr(worker_process, "assigned_device", lambda device=device: device)
        worker_process.Worker(1, share)
    assert fractions == [0.25]


def test_what_is_kept_fits_a_workers_part_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a GPU where nothing has been read yet, all is free.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (22 * GIB, 22 * GIB))
    monkeypatch.setattr(Evaluator, "merged_bytes", 0.32 * GIB)

    def kept_seeds(part: float, seeds: int) -> int:
        evaluator = object.__new__(Evaluator)
        evaluator._device, evaluator._part, evaluator._vectors = "cuda:0", part, {}
        for seed in range(seeds):
            keeps = evaluator._can_keep(14)
            vectors: Any = SimpleNamespace(
                experts=range(14), is_kept_on=lambda _device, keeps=keeps: keeps
            )
            evaluator._vectors[seed, ()] = vectors
        scorer = TrialScorer(evaluator)
        assert scorer._most_running == (2 if part == 1 else 1)
        return sum(v.is_kept_on(evaluator.device) for v in evaluator._vectors.values())

    assert kept_seeds(1, 3) == 1
    assert kept_seeds(1 / 4, 3) == 0
    assert kept_seeds(0, 1) == 0


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered\nand more"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (RuntimeError("the sizes do not match, as a CUDA error: 5 and 6"), False),
        (ValueError("CUDA error: which this is not"), False),
    ],
)
def test_a_worker_whose_gpu_does_nothing_more_ends_itself(
    error: Exception,
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(worker_process, "assigned_device", lambda: "cpu")
    monkeypatch.setattr(worker_process.numerics, "configure", torch.set_num_threads)

    class EndedError(BaseException):
        """Stands in for the end of the process."""

    def end(status: int) -> None:
        raise EndedError(status)

    def fail(*_arguments: Any, **_named: Any) -> None:
        raise error

    monkeypatch.setattr(worker_process.os, "_exit", end)
    for name in ("_evaluator_of", "_trials_of"):
        monkeypatch.setattr(worker_process.Worker, name, fail)
    for name in ("finetune", "collect_to", "local_weights", "Trial"):
        monkeypatch.setattr(worker_process, name, fail)
    worker, some = worker_process.Worker(threads=1), MagicMock()
    calls: list[Callable[[], object]] = [
        lambda: worker.score_trial(some, 0, 0, {}, 0),
        lambda: worker.score(some, some),
        lambda: worker.measure(some, some),
        lambda: worker.decompose(some, 0, "wide", 1),
        lambda: worker.train("mini_vision", some, Path()),
        lambda: worker.collect("mini_vision", some, Path(), Path()),
    ]
    for call in calls:
        with pytest.raises(EndedError if ends else Exception):
            call()
    told = capsys.readouterr().err
    assert told.count(f"which ends itself: {error}") == (len(calls) if ends else 0)


def test_a_statistic_is_collected_from_the_expert_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "assigned_device", lambda: "cpu")
    monkeypatch.setattr(worker_process.numerics, "configure", torch.set_num_threads)
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    read: list[Path] = []
    monkeypatch.setattr(
        worker_process,
        "collect_to",
        lambda _root, _spec, _suite, expert, **_device: read.append(expert),
    )
    weights = tmp_path / "signs.safetensors"
    weights.write_bytes(b"an expert")
    worker = worker_process.Worker(threads=1)
    spec: Any = SimpleNamespace(task="signs", expert_sha256=sha256_path(weights))
    worker.collect("mini_vision", spec, weights, tmp_path)
    assert [path.read_bytes() for path in read] == [b"an expert"]
    other: Any = SimpleNamespace(task="signs", expert_sha256="0" * 64)
    with pytest.raises(InputError, match=r"the weights of expert signs must have the hash 0000"):
        worker.collect("mini_vision", other, weights, tmp_path)
    assert len(read) == 1
