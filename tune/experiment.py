"""An experiment: a complete set of choices, whose fields are the command line."""

import fcntl
import math
import os
import platform
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from apgd.errors import DamagedError, InputError
from apgd.evidence import Need
from apgd.external import OWN, ForeignExperts
from apgd.files import check_writable, content_key, is_leftover, read_sealed, write_sealed
from apgd.hub import check_hub_file
from apgd.masking import masked_address
from apgd.methods import PLUGS, SUFFIX, Value, methods
from apgd.published import TOLERANCE
from apgd.shapes import merged_shapes, model_bytes
from apgd.suites import FinetuneSettings, Suite, suites, with_tasks
from apgd.task_vectors import TaskVectors
from apgd.training_statistics import StatisticSettings
from tune.log import LOG_FILE, append
from tune.references import EXPERTS, MULTI_TASK, PRETRAINED, REFERENCES
from tune.search.objectives import Objective
from tune.search.rungs import Rungs
from tune.search.studies import Sampler

_TRACKING_SCHEMES = ("sqlite://", "postgresql://", "mysql://", "http://", "https://")
_EXPERIMENT_FILE = "experiment.json"
_LOCK_FILE = ".lock"
_MOST = {"seeds": 1000, "trials": 100_000, "at_once": 10_000}
"""Above it, a number is a slip of the hand."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Fine-tune experts, merge them, search the merge's parameters, evaluate, report."""

    name: ClassVar[str] = "full_repro"
    """What the run is called."""
    published_rows: ClassVar[bool] = True
    """Whether methods are also scored with their published settings, beside the tuned ones."""
    corruptions: ClassVar[bool] = True
    """Whether rows are also tested on corrupted images, where the suite has some."""
    geometry: ClassVar[bool] = False
    """Whether the merges of the first seed are held against their task vectors."""

    suite: str = "mini_vision"
    """Name of the suite; `apgd suites` lists them."""
    methods: tuple[str, ...] = ("weight_averaging", "task_arithmetic", "ties", "doge_ta")
    """Merge methods to compare; `apgd methods` lists them."""
    plug: str | None = None
    """`apgd`: compare each method also with APGD's modification vector put before it, where it has
    none in it (the same as naming METHOD+apgd)."""
    references: tuple[str, ...] = (PRETRAINED, EXPERTS)
    """Rows to compare with: pretrained, experts, multi_task (one model fine-tuned here on all tasks
    together), ensemble (the experts' probabilities averaged)."""
    seeds: int = 1
    """Number of seeds, each with its own fine-tuning and its own search (seeds 0, 1, ...)."""
    trials: int = 24
    """Trials of each method's search at each seed, the published settings included; a trial of
    DOGE TA judges many keep ratios and numbers of iterations in one run."""
    sampler: Sampler = Sampler.TPE
    """Who suggests parameters: Optuna's TPE, or as controls random draws or a grid."""
    objectives: tuple[Objective, ...] = (Objective.ACCURACY,)
    """What the search maximises on validation data; with several it has a Pareto front, and the
    first one chooses the tuned row."""
    no_stopping: bool = False
    """Judge every trial on all validation data, also those that fall behind."""
    at_once: int = 8
    """Trials of a search that may be under way at a time; a suggestion knows the results of all but
    the last so many before it, so that results do not depend on the number of workers."""
    storage: str | None = None
    """Database of the searches (sqlite:///..., postgresql://...), which optuna-dashboard opens; by
    default studies.db in the run folder."""
    smoke: bool = False
    """Everything tiny, figures without meaning: about a minute in all, more with many methods."""
    run_dir: Path | None = None
    """Folder of this run's results; by default one below runs/, named after the settings."""
    experts_dir: Path = Path("runs/experts")
    """Folder of fine-tuned experts, for all runs; several machines need both folders shared."""
    tracking_uri: str | None = None
    """MLflow server (http://...) or database (sqlite:///...); by default one in the run folder."""
    task: tuple[str, ...] = ()
    """Own tasks that join those of the suite, each NAME=PATH: a folder of images with a folder per
    class, a Parquet file, or a JSON file that describes one of them."""
    experts: str = OWN
    """`own` fine-tunes experts; `published` takes those of the model hub; a folder holds one file
    <task>.safetensors, or a folder <task>, for every task."""
    compare: bool = False
    """Print every cell beside the published one, with a verdict, instead of the report's text."""
    tolerance: float = TOLERANCE
    """Percentage points within which a published value counts as reproduced."""
    sync: bool = False
    """Only send to MLflow what it lacks of this run, which may be finished or interrupted."""
    address: str | None = None
    """Ray cluster to join, or local to start one; by default this machine's, or a new one."""
    cpus: int | None = None
    """CPUs to use when Ray is started on this machine; all by default."""
    gpus: int | None = None
    """GPUs to work on, at most: a cluster that grows is asked for so many, and waited for; by
    default those that are there when the run begins, with 0 none of them."""
    scorers_per_gpu: int | None = None
    """Workers that share a GPU while merges are scored; by default as many as its memory allows."""
    compile: bool = False
    """Compile the forward pass of scoring with torch.compile, which needs a C++ compiler: a minute
    per worker that pays where many merges are scored."""
    dashboard: bool = False
    """Serve Ray's dashboard on localhost, where Ray is started on this machine."""
    plan: bool = False
    """Only print what would run where, its GPU memory, time and cost; nothing is started."""
    plan_for: str | None = None
    """The same for machines that are not there: 8xL4, 4xA10G, 8x4090, 2xcpu:16."""
    price: float | None = None
    """Dollars per machine and hour for the plan, in place of the price list's."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} must be at least 1, but got {value}")
            if value > most:
                raise InputError(f"{name} must be at most {most}, but got {value}")
        for name, low in (("cpus", 1), ("gpus", 0), ("scorers_per_gpu", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} must be at least {low}, but got {value}")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise InputError(f"price must not be negative, but got {self.price}")
        if not self.methods:
            raise InputError("methods must name at least one merge method, but got none")
        for name in self.methods:
            _ = methods[name]
        if len(set(self.methods)) != len(self.methods):
            raise InputError(f"methods must not repeat, but got {', '.join(self.methods)}")
        if self.plug is not None:
            self._add_plugged()
        for name in self.references:
            if name not in REFERENCES:
                raise InputError(f"unknown reference {name!r}; known are: {', '.join(REFERENCES)}")
        if len(set(self.references)) != len(self.references):
            raise InputError(f"references must not repeat, but got {', '.join(self.references)}")
        suite = self.full_suite
        if Objective.UNSEEN in self.objectives and not suite.unseen:
            raise InputError(
                f"objectives must not hold {Objective.UNSEEN} where a suite has no unseen tasks, "
                f"as {suite.name} has none"
            )
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            listed = ", ".join(self.objectives) or "none"
            raise InputError(f"objectives must be one or more different ones, but got {listed}")
        if self.experts != OWN:
            ForeignExperts(suite, self.experts)
            if self.seeds != 1:
                raise InputError(
                    f"seeds must be 1 where experts are not fine-tuned here, but got {self.seeds}"
                )
        if self.storage is not None:
            try:
                make_url(self.storage)
            except ArgumentError as error:
                raise InputError(
                    f"--storage must be a database that Optuna can open, for example "
                    f"sqlite:///studies.db, but got {masked_address(self.storage)!r}"
                ) from error
        if not self.tolerance > 0:
            raise InputError(f"tolerance must be positive, but got {self.tolerance}")
        if self.tracking_uri is not None and not self.tracking_uri.startswith(_TRACKING_SCHEMES):
            raise InputError(
                f"tracking-uri must start with one of {', '.join(_TRACKING_SCHEMES)}, "
                f"but got {masked_address(self.tracking_uri)!r}"
            )

    def _add_plugged(self) -> None:
        if self.plug not in PLUGS:
            raise InputError(f"plug must be one of {', '.join(PLUGS)}, but got {self.plug!r}")
        extended = dict.fromkeys(self.methods)
        extended.update((n + SUFFIX, None) for n in self.methods if methods[n].with_apgd)
        object.__setattr__(self, "methods", tuple(extended))

    @property
    def full_suite(self) -> Suite:
        """The suite, with own tasks where there are any."""
        return suites[with_tasks(self.suite, self.task)]

    @property
    def effective_trials(self) -> int:
        """Trials per search, cut down in a smoke run."""
        return min(self.trials, 3) if self.smoke else self.trials

    @property
    def rungs(self) -> Rungs:
        """How trials grow, and which are stopped."""
        return Rungs(reduction=1) if self.no_stopping else Rungs()

    @property
    def limit(self) -> int | None:
        """Examples of each split that are scored; all where None."""
        return 60 if self.smoke else None

    @property
    def corruption_limit(self) -> int | None:
        """Test examples of each corrupted task that are shown corrupted; all where None."""
        if not self.corruptions:
            return 0
        return 60 if self.smoke else self.full_suite.corruption_limit

    def finetune_settings(self, suite: Suite) -> FinetuneSettings:
        """How experts are fine-tuned; a few steps in a smoke run."""
        if not self.smoke:
            return suite.finetune
        return replace(suite.finetune, steps=6, batch_size=16, checkpoint_every=3)

    def settings_of(self, suite: Suite, method: str) -> dict[str, Value]:
        """Published settings where not a method's defaults, and in a smoke run quick ones."""
        quick = methods[method].quick if self.smoke else {}
        return {**suite.settings_of(method), **quick}

    @property
    def statistic_settings(self) -> StatisticSettings:
        """How training statistics are computed; of a few examples in a smoke run."""
        return StatisticSettings(examples=8) if self.smoke else StatisticSettings()

    @property
    def identity(self) -> dict[str, Any]:
        """What makes results of two runs belong in one folder.

        Seeds, trials, methods, references and everything about where a run takes place are left
        out: more of them extend a run. Code, data and versions are left out too: they are in the
        keys of the records.
        """
        return {
            "name": self.name,
            "suite": self.full_suite.name,
            "smoke": self.smoke,
            "experts": self.experts,
            "sampler": self.sampler,
            "objectives": list(self.objectives),
            "stopping": not self.no_stopping,
            "at_once": self.at_once,
        }

    @property
    def folder(self) -> Path:
        """The run folder."""
        if self.run_dir is not None:
            return self.run_dir
        smoke = "-smoke" if self.smoke else ""
        suite, _, _own_tasks = self.suite.partition("+")  # which have paths
        return Path("runs") / f"{self.name}-{suite}{smoke}-{content_key(self.identity)}"

    def as_dict(self) -> dict[str, Any]:
        """Fields as JSON values, without secrets."""
        values = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        for name in ("tracking_uri", "storage"):
            if values[name] is not None:
                values[name] = masked_address(values[name])
        return values


def check(experiment: Experiment) -> None:
    """Check everything that can be checked before work starts, and claim the run folder.

    Raises:
        InputError: where a folder cannot be written, belongs to another experiment, or has no room,
            or the base model is damaged or does not load.
    """
    suite = experiment.full_suite
    folder = experiment.folder
    if experiment.sync and not (folder / _EXPERIMENT_FILE).exists():
        raise InputError(f"--sync needs a run that was started before, but {folder} holds none")
    check_hub_file(suite.base_path())
    TaskVectors(suite.base_path(), {"base": suite.base_path()}, suite.is_merged, keep=False)
    claimed = _check_run_folder(experiment)
    check_writable(folder, "the run folder")
    check_writable(experiment.experts_dir, "the folder of experts")
    size = model_bytes(suite)
    models = len(suite.tasks) + (MULTI_TASK in experiment.references)
    needed = experts_bytes(models * experiment.seeds, size)
    needed += statistic_bytes(experiment, suite)
    free = shutil.disk_usage(experiment.experts_dir).free
    if free < needed:
        raise InputError(
            f"the run needs about {needed / 2**20:.0f} MiB below {experiment.experts_dir}, "
            f"but only {free / 2**20:.0f} MiB are free"
        )
    if claimed is None:
        _claim(experiment)


def check_for_plan(experiment: Experiment) -> None:
    """Check of an experiment's folders what can be checked without writing.

    Raises:
        InputError: where a run would be refused for them.
    """
    _check_run_folder(experiment)
    for what, folder in (("run", experiment.folder), ("experts", experiment.experts_dir)):
        path = folder.resolve()
        there = next(one for one in (path, *path.parents) if one.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise InputError(f"--{what}-dir must be a folder that can be written, but got {folder}")


def _check_run_folder(experiment: Experiment) -> dict[str, Any] | None:
    """The run folder's claim; None where it is new.

    Raises:
        InputError: where it is another experiment's, or no run folder.
    """
    folder, claimed = experiment.folder, _own_claim(experiment)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir must be a folder, but {folder} is a file")
    if claimed is None and folder.exists() and not all(map(_is_ours, folder.iterdir())):
        raise InputError(
            f"a run folder must be new or that of the same experiment, but {folder} holds other "
            f"files; choose another --run-dir"
        )
    return claimed


def _claim(experiment: Experiment) -> None:
    """Claim the run folder, unless another process has done so meanwhile.

    Raises:
        InputError: where it has, for another experiment, or is just doing so.
    """
    with exclusive(experiment):
        if _own_claim(experiment) is None:
            claim = {"identity": experiment.identity, "run_id": uuid.uuid4().hex}
            write_sealed(experiment.folder / _EXPERIMENT_FILE, claim)


def _is_ours(path: Path) -> bool:
    """Whether a file is what a process that was killed while claiming may leave behind."""
    return is_leftover(path) or path.name == _LOCK_FILE


def merged_rank(suite: Suite) -> int:
    """The smallest min(m, n) over the matrices that a suite merges."""
    return min(min(shape) for shape in merged_shapes(suite).values())


def experts_bytes(models: int, size: int) -> int:
    """Room in bytes for so many fine-tuned models of `size` bytes, and their checkpoints."""
    return size * (models + 6) + 200 * 2**20


def statistic_bytes(experiment: Experiment, suite: Suite) -> int:
    """Size in bytes of the training statistics that an experiment's methods need."""
    shapes = merged_shapes(suite).values()
    sizes = {
        Need.FISHER: sum(4 * rows * columns for rows, columns in shapes),
        Need.GRAM: sum(4 * columns**2 for _rows, columns in shapes),
    }
    needs = {methods[name].needs for name in experiment.methods}
    return sum(sizes.get(need, 0) for need in needs) * len(suite.tasks) * experiment.seeds


def scoring_bytes(suite: Suite) -> int:
    """GPU memory in bytes that scoring takes: calculated, from above.

    It holds the base, a merged model and its differences from the base, and merges one matrix at a
    time; test-time methods also have gradients of the merged matrices. 2 GiB go to activations and
    to CUDA itself. Task vectors are kept only where a worker's part of the GPU has room for them.
    """
    largest = max(4 * math.prod(shape) for shape in merged_shapes(suite).values())
    return 4 * model_bytes(suite) + largest * (len(suite.tasks) + 6) + 2 * 2**30


@contextmanager
def exclusive(experiment: Experiment) -> Iterator[None]:
    """Hold the run folder: two drivers at once would get in each other's way.

    The operating system lets go of it when its holder dies. Whoever is refused leaves a line in the
    run's log.

    Raises:
        InputError: where another process holds it.
    """
    with (experiment.folder / _LOCK_FILE).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another one"
            append(experiment.folder / LOG_FILE, f"another process was refused; {holder} goes on")
            raise InputError(
                f"a run folder serves one process at a time, but {holder} is working in "
                f"{experiment.folder}; wait for it, or choose another --run-dir"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def run_id(folder: Path) -> str:
    """The identifier that a run folder was given when it was claimed; no other has it."""
    claim = _read_claim(folder)
    if claim is None:
        raise InputError(f"{folder} must be a run folder, but holds no {_EXPERIMENT_FILE}")
    return str(claim["run_id"])


def _own_claim(experiment: Experiment) -> dict[str, Any] | None:
    """The claim of an experiment's folder; None where nobody has claimed it.

    Raises:
        InputError: where it is another experiment's.
    """
    claim = _read_claim(experiment.folder)
    if claim is not None and claim["identity"] != experiment.identity:
        raise InputError(_difference(experiment.folder, claim["identity"], experiment.identity))
    return claim


def _read_claim(folder: Path) -> dict[str, Any] | None:
    path = folder / _EXPERIMENT_FILE
    if not path.exists():
        return None
    try:
        claim = read_sealed(path)
        return {"identity": dict(claim["identity"]), "run_id": str(claim["run_id"])}
    except (DamagedError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} must hold a run's identity as JSON, but does not: {error!r}"
        ) from error


def _difference(folder: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    differing = [
        f"{key} {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
    return (
        f"a run folder holds one experiment, but {folder} holds another: "
        f"{'; '.join(differing)}; choose another --run-dir"
    )
