"""What every experiment begins with: its folder held, machines joined, experts made."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console

from apgd.budget import wants_gpu
from apgd.errors import InputError
from apgd.suites import Suite
from tune.cluster import Cluster, plural, ray_session
from tune.evaluators import Workload
from tune.experiment import Experiment, exclusive
from tune.experts import (
    DataHashes,
    Experts,
    collect_statistics,
    prepare_data,
    record_experts,
    train_experts,
)
from tune.log import LOG_FILE
from tune.progress import Display
from tune.records import RecordStore
from tune.search.objectives import Objective
from tune.search.storage import open_storage
from tune.stages import make_workload
from tune.tracking import Tracker, synchronise
from tune.workers.introductions import own_code
from tune.workers.placement import Placement, place


@dataclass(frozen=True)
class Begun:
    """A run under way."""

    experiment: Experiment
    suite: Suite
    store: RecordStore
    display: Display
    cluster: Cluster
    placement: Placement
    tracker: Tracker


@dataclass(frozen=True)
class Made:
    """What is merged, and what merges are judged on."""

    hashes: DataHashes
    experts: Experts
    expert_keys: list[str]
    """Keys of their records."""
    workload: Workload


@contextmanager
def begin(
    experiment: Experiment, console: Console, *, title: str, shared_bytes: int
) -> Iterator[Begun]:
    """Hold the run folder, join or start Ray, and copy results to MLflow meanwhile.

    Args:
        experiment: already checked (`tune.experiment.check`).
        console: where progress is shown.
        title: the first line.
        shared_bytes: what workers will share in the object store.

    Raises:
        InputError: where another process holds the folder, a database cannot be opened, or no
            cluster answers, or it has no GPU and it was not said whether to ask for some.
    """
    suite, folder = experiment.full_suite, experiment.folder
    own_code()  # what was imported; a worker that starts after a file was edited is another one
    with ExitStack() as stack:
        stack.enter_context(exclusive(experiment))
        display = stack.enter_context(Display(console, folder / LOG_FILE))
        display.say(title)
        display.say(f"results go to {folder}")
        for damage in RecordStore(folder).put_damaged_aside():
            display.say(damage)
        # Before work starts, a database that cannot be opened is told.
        open_storage(experiment, display.say)
        cluster = stack.enter_context(
            ray_session(
                address=experiment.address,
                cpus=experiment.cpus,
                dashboard=experiment.dashboard,
                most_workers=len(suite.tasks) * experiment.seeds,
                shared_bytes=shared_bytes,
                wanted_gpus=experiment.gpus,
                say=display.say,
            )
        )
        _check_gpus(experiment, suite, cluster)
        display.say(str(cluster))
        tracker = stack.enter_context(Tracker(experiment, display.say))
        placement = place(experiment, suite, cluster, display.say)
        yield Begun(experiment, suite, RecordStore(folder), display, cluster, placement, tracker)


def _check_gpus(experiment: Experiment, suite: Suite, cluster: Cluster) -> None:
    """A cluster may have a head without GPU, and rent GPUs only to whoever asks for some.

    Raises:
        InputError: where a model of some size would be trained on the CPUs of such a head.
    """
    undecided = cluster.joined and not cluster.gpus and experiment.gpus is None
    if undecided and wants_gpu(suite):
        raise InputError(
            f"--gpus must be given for {suite.name} on a cluster that has no GPU now: --gpus 8 "
            f"asks it for eight and waits, --gpus 0 goes on with {plural(cluster.cpus, 'CPU')}"
        )


def make_experts(run: Begun) -> Made:
    """Prepare data, fine-tune what has no checkpoint yet, collect statistics."""
    experiment, suite, display = run.experiment, run.suite, run.display
    with run.placement.preparing() as pool:
        hashes = prepare_data(
            suite,
            pool,
            display,
            corrupted=experiment.corruptions,
            unseen_validation=Objective.UNSEEN in experiment.objectives,
        )
    with run.placement.training() as pool:
        experts = train_experts(experiment, suite, hashes, pool, display)
        keys = record_experts(experts, run.store)
        statistics = collect_statistics(experiment, suite, hashes, experts, pool, display)
    workload = make_workload(experiment, suite, hashes, experts, statistics)
    return Made(hashes, experts, keys, workload)


def send_rest(experiment: Experiment, console: Console) -> None:
    """Do what `--sync` asks for, and say what was sent."""
    with exclusive(experiment):
        console.print(synchronise(experiment), markup=False, soft_wrap=True)
