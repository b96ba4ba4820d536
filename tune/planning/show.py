"""A plan on the console."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tune.cluster import plural
from tune.planning.devices import IDLE_MINUTES, UTILISATION
from tune.planning.estimate import Basis
from tune.planning.schedule import in_turn

if TYPE_CHECKING:
    from tune.planning.plan import Plan

_GIB = 2**30
_SHOWN_WORKERS = 16
_SHORT_SECONDS = 60.0


def show(plan: "Plan", console: Console) -> None:
    """Print a plan, in tables that fit 80 columns; lines are not wrapped where it is piped."""

    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)

    say(plan.title)
    say(f"a plan: nothing is started, nothing is written; {plan.machines}")
    say()
    console.print(_stage_table(plan))
    for stage in plan.stages:
        if stage.note:
            say(f"{stage.name}: {stage.note}")
    if plan.damaged:
        say(f"damaged: {plural(plan.damaged, 'result')} on disk, made again by the run")
    say()
    console.print(_actor_table(plan))
    for line in _assignments(plan):
        say(line)
    say()
    for line in _summary(plan):
        say(line)


def _stage_table(plan: "Plan") -> Table:
    table = Table("stage", "to do", "there", "each", "workers", "takes", "from", box=None)
    for column in table.columns[1:6]:
        column.justify = "right"
    for stage in plan.stages:
        known = stage.known
        each = duration(sum(known) / len(known)) if known else "–"
        takes = duration(stage.makespan) if known or not stage.jobs else "unknown"
        if known and len(known) < len(stage.jobs):
            takes = f"> {takes}"
        basis = str(stage.basis) if stage.jobs else "–"
        table.add_row(
            stage.name, str(len(stage.jobs)), str(stage.reused), each,
            str(stage.workers) if stage.jobs else "–", takes, basis,
        )  # fmt: skip
    return table


def _actor_table(plan: "Plan") -> Table:
    table = Table("workers", "number", "each on", "GPU memory each", box=None)
    cluster, of = plan.cluster, plan.machines.gpu_bytes
    whole = "" if of is None else f" of {of / _GIB:.1f} GiB"
    threads = plural(cluster.threads_per_worker, "CPU thread")
    if not cluster.gpus:
        table.add_row("everything", str(cluster.workers), threads, "–")
        return table
    table.add_row("data", str(max(1, min(cluster.cpus, 8))), "1 CPU", "–")
    if plan.budget is not None:
        needed = f"{plan.budget.total / _GIB:.1f} GiB{whole}, calculated"
        table.add_row("training", str(cluster.workers), "1 GPU", needed)
    share, (scoring, how) = plan.scorers.per_gpu, plan.scoring_memory
    each = "1 GPU" if share == 1 else f"1/{share} GPU"
    needed = f"{scoring / _GIB:.1f} GiB{whole}, {how}"
    table.add_row("scoring", str(plan.scorers.workers), each, needed)
    return table


def _assignments(plan: "Plan") -> list[str]:
    """Which worker would train what, where there are not too many of them."""
    stage = next((s for s in plan.stages if s.name in ("experts", "multi_task")), None)
    if stage is None or not stage.jobs or len(stage.known) < len(stage.jobs):
        return []
    schedule = in_turn(stage.known, stage.workers)
    by_worker: dict[int, list[str]] = {}
    for job, worker in zip(stage.jobs, schedule.workers, strict=True):
        by_worker.setdefault(worker, []).append(job.name)
    lines = [
        f"  worker {worker}: {'; '.join(names)}"
        for worker, names in sorted(by_worker.items())[:_SHOWN_WORKERS]
    ]
    more = len(by_worker) - len(lines)
    return ["training:", *lines, *([f"  and {plural(more, 'worker')} more"] if more > 0 else [])]


def _summary(plan: "Plan") -> list[str]:
    lines = []
    if plan.budget is not None and not plan.budget.fits:
        lines.append(plan.budget.sentence)
    missing = f", without what is unknown ({', '.join(plan.unknown)})" if plan.unknown else ""
    short = plan.basis is Basis.CALCULATED and plan.seconds < _SHORT_SECONDS
    time = "less than starting takes" if short else duration(plan.seconds)
    lines.append(f"time: {time} ({plan.basis}){missing}")
    if plan.seconds > 0 and not short:
        lines.append(
            f"  the shortest there can be with these workers, stage after stage: "
            f"{duration(plan.bound)} ({100 * plan.bound / plan.seconds:.0f} %)"
        )
    cost = plan.cost
    if cost is None:
        lines.append("cost: no price is known for these machines (--price gives one)")
    else:
        spot = "spot unknown" if cost.spot is None else f"${cost.spot:.2f} on spot"
        each = f"${cost.price.on_demand:g} per hour for each {cost.price.instance or 'machine'}"
        if plan.machines.head is not None:
            each += f", ${plan.machines.head.on_demand:g} for the head"
        kinds = (
            f"${cost.on_demand:.2f}"
            if cost.list == "--price"
            else (f"${cost.on_demand:.2f} on demand, {spot}")
        )
        lines.append(f"cost: {kinds} ({each}; {cost.list})")
        if cost.idle:
            lines.append(
                f"  besides: starting and installing machines, and ${cost.idle:.2f} on demand for "
                f"the {IDLE_MINUTES} minutes after which idle ones are given back"
            )
    rates = plan.rates
    lines.append(
        f"measured: {plural(rates.experts, 'expert')} and {plural(rates.runs, 'run')} of this "
        f"suite on such devices"
    )
    if plan.basis is Basis.CALCULATED and plan.counts_longest:
        lines.append("texts are counted at their longest, so that calculated times are from above")
    if plan.basis is Basis.CALCULATED:
        lines.append(
            f"calculated: operations at {100 * UTILISATION:.0f} % of the device's peak, which is "
            f"declared; without decoding images, reading files and starting workers"
        )
    return lines


def duration(seconds: float) -> str:
    """For people, to two or three digits."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"
