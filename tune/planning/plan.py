"""The plan of a run: stages, time, memory and cost, before anything starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console

from apgd.budget import Budget, finetune_budget
from apgd.errors import InputError
from apgd.suites import Suite
from tune.cluster import Cluster
from tune.experiment import Experiment, check_for_plan
from tune.experts import wanted_models
from tune.planning.devices import HEAD, IDLE_MINUTES, PRICES, Price
from tune.planning.estimate import Basis, worst
from tune.planning.found import Found, look
from tune.planning.machines import Machines
from tune.planning.places import machines_for
from tune.planning.rates import Rates, measured_rates
from tune.planning.show import show
from tune.planning.stages import PlannedStage, Terms, stages_of
from tune.records import RecordStore

_LEAST_SECONDS = 60.0
"""A machine is paid for at least so long."""


@dataclass(frozen=True)
class Cost:
    """What machines cost while the run lasts, in dollars."""

    on_demand: float
    spot: float | None
    """Machines on spot, a head of its own on demand; None where the price is not known."""
    price: Price
    """Of one machine."""
    idle: float
    """On demand, of the machines that idle after a run until they are given back."""
    list: str
    """Which list of prices that is."""


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    title: str
    machines: Machines
    cluster: Cluster
    stages: Sequence[PlannedStage]
    budget: Budget | None
    """GPU memory of fine-tuning; None without a GPU, or where nothing is trained."""
    scoring_memory: tuple[int, str]
    """GPU memory in bytes of a scoring worker, and how that is known."""
    scorers: Cluster
    """How the machines are cut into workers while merges are scored."""
    rates: Rates
    damaged: int
    """Results on disk that are not what was written."""
    counts_longest: bool
    """Whether examples are texts, of which the longest are counted."""
    price: float | None
    """Dollars per machine and hour, where the user gave them."""

    @property
    def seconds(self) -> float:
        """Of all stages one after the other, as far as known."""
        return sum(stage.makespan for stage in self.stages)

    @property
    def bound(self) -> float:
        """What the known jobs take at least with these workers, stage after stage."""
        return sum(stage.bound for stage in self.stages)

    @property
    def basis(self) -> Basis:
        """Where the sum comes from; what is unknown is named beside it."""
        known = [stage.basis for stage in self.stages if stage.basis is not Basis.UNKNOWN]
        return worst(known)

    @property
    def unknown(self) -> list[str]:
        """Stages of which something is not known."""
        return [stage.name for stage in self.stages if stage.basis is Basis.UNKNOWN]

    @property
    def cost(self) -> Cost | None:
        """Machines and head for as long as the run takes; None where no price is known."""
        device, hours = self.machines.device, max(self.seconds, _LEAST_SECONDS) / 3600
        idle = 0.0 if self.machines.head is None else self.machines.count * IDLE_MINUTES / 60
        if self.price is not None:
            given = Price("", self.price, None)
            head = self.machines.head.on_demand if self.machines.head is not None else 0.0
            total = hours * (self.machines.count * self.price + head)
            return Cost(total, None, given, idle * self.price, "--price")
        price = None if device is None else device.price
        if price is None or not self.machines.rented:
            return None
        head = 0.0 if self.machines.head is None else HEAD.on_demand
        spot = None if price.spot is None else hours * (self.machines.count * price.spot + head)
        total = hours * (self.machines.count * price.on_demand + head)
        return Cost(total, spot, price, idle * price.on_demand, PRICES)


def plan_of(experiment: Experiment) -> Plan:
    """The plan of an experiment's run.

    Raises:
        InputError: as `planned`.
    """
    return planned(experiment, stages_of)


def planned(experiment: Experiment, stages: Callable[[Terms], list[PlannedStage]]) -> Plan:
    """The plan of a run with such stages.

    Raises:
        InputError: as `machines_for`, and where the run would be refused for its folders, or wait
            for more GPUs than those machines have.
    """
    check_for_plan(experiment)
    suite = experiment.full_suite
    machines = machines_for(experiment)
    if (experiment.gpus or 0) > machines.gpus:
        raise InputError(
            f"--gpus must be at most {machines.gpus}, as many as are planned with, but got "
            f"{experiment.gpus}; describe machines that are not there yet with --plan-for, for "
            f"example --plan-for {experiment.gpus}xL4"
        )
    cluster = machines.cluster(len(suite.tasks) * experiment.seeds, experiment.gpus)
    rates = measured_rates(experiment, suite, machines, cluster.threads_per_worker)
    store = RecordStore(experiment.folder)
    terms = Terms(experiment, suite, machines, cluster, rates, look(experiment, suite), store)
    made = stages(terms)
    return Plan(
        title=f"apgd {suite.name}: {suite.title}",
        machines=machines,
        cluster=cluster,
        stages=made,
        budget=_budget(experiment, suite, machines, terms.found),
        scoring_memory=terms.scoring_memory,
        scorers=terms.scorers,
        rates=rates,
        damaged=terms.found.damaged + len(store.damaged()),
        counts_longest=suite.image_size is None,
        price=experiment.price,
    )


def _budget(
    experiment: Experiment, suite: Suite, machines: Machines, found: Found
) -> Budget | None:
    trained = [key for key in wanted_models(experiment, suite) if key not in found.experts]
    if machines.gpu_bytes is None or not trained:
        return None
    return finetune_budget(suite, experiment.finetune_settings(suite), machines.gpu_bytes)


def show_plan(experiment: Experiment, console: Console) -> None:
    """Print what a run would do."""
    show(plan_of(experiment), console)
