"""How much work a job is, counted from shapes, steps and examples, and how long that should take.

Decoding images, reading files and downloads are not in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apgd.cost import Cost
from apgd.data import Split
from apgd.evidence import Need
from apgd.methods import Method, MethodParams, Value, methods
from apgd.methods._apgd import decomposition_cost
from apgd.shapes import merged_shapes
from apgd.suites import FinetuneSettings, Suite
from apgd.training_statistics import StatisticSettings
from tune.evaluators import Purpose, ScoreJob
from tune.experiment import Experiment
from tune.planning.devices import UTILISATION, Device, processor_device
from tune.references import ENSEMBLE, EXPERTS, REFERENCES
from tune.search.objectives import Objective
from tune.search.rungs import Judged, RungResult, settings_at
from tune.search.studies import Study

_BANDWIDTH_SHARE = 0.7
"""Of the peak, declared: what long reads reach on most devices."""

# Rows of data sets' own splits (train, test) that are not pinned, as their authors state them.
_STATED_ROWS = {
    "sun397": (19_850, 19_850),
    "resisc45": (18_900, 6_300),
    "eurosat": (21_600, 2_700),
    "gtsrb": (26_640, 12_630),
    "dtd": (3_760, 1_880),
    "fer2013": (28_709, 7_178),
    "emnist_letters": (88_800, 14_800),
}


@dataclass(frozen=True)
class Work:
    """Operations and bytes."""

    mixed: float = 0.0
    """Floating-point operations under autocast, in bfloat16 on a GPU."""
    single: float = 0.0
    """Those in float32."""
    bytes: float = 0.0
    """Moved between memory and processor."""

    def __add__(self, other: "Work") -> "Work":
        return Work(self.mixed + other.mixed, self.single + other.single, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(times * self.mixed, times * self.single, times * self.bytes)

    def seconds(self, device: Device, share: float = 1.0) -> float:
        """How long it takes at the declared utilisation.

        Args:
            device: what computes.
            share: the part of it that the job has.
        """
        computing = self.mixed / device.bfloat16_flops + self.single / device.float32_flops
        moving = self.bytes / (device.bandwidth * _BANDWIDTH_SHARE)
        return (computing / UTILISATION + moving) / share


def example_count(suite: Suite, task: str, split: Split) -> int | None:
    """Examples of a split: known, or read where they are on this machine, or as authors state."""
    known = suite.example_count(task, split)
    if known is not None:
        return known
    if suite.has_examples(task, split):
        return len(suite.examples(task, split))
    if task not in _STATED_ROWS:
        return None
    train, test = _STATED_ROWS[task]
    return {Split.TRAIN: train - train // 10, Split.VALIDATION: train // 10, Split.TEST: test}[
        split
    ]


def training_work(suite: Suite, settings: FinetuneSettings, steps: int) -> Work | None:
    """Of fine-tuning one model; None where nobody counted its operations."""
    forward = suite.forward_flops()
    if forward is None:
        return None
    # Frozen weights need no gradient of their own, recomputed activations another forward pass.
    passes = (2 if settings.lora is not None else 3) + settings.gradient_checkpointing
    return Work(mixed=steps * settings.batch_size * passes * forward)


def scoring_work(suite: Suite, examples: float) -> Work | None:
    """Of so many examples through the model; None where nobody counted its operations."""
    forward = suite.forward_flops()
    return None if forward is None else Work(single=examples * forward)


def merging_work(suite: Suite, method: Method, params: MethodParams, experts: int) -> Work | None:
    """Of merging once; None where nobody counted the model's operations that it needs."""
    shapes = merged_shapes(suite).values()
    cost = sum((method.cost(shape, experts, params) for shape in shapes), start=Cost())
    work = Work(single=cost.flops, bytes=cost.bytes)
    if method.needs is not Need.INPUTS:
        return work
    values, forward = params.as_dict(), suite.forward_flops()
    steps = values.get("adaptation_iterations", values.get("iterations"))
    batch = values.get("batch_size")
    if forward is None or not isinstance(steps, int) or not isinstance(batch, int):
        return None
    return work + Work(single=3 * steps * experts * batch * forward)


def statistic_work(suite: Suite, need: Need, settings: StatisticSettings) -> Work | None:
    """Of one expert's training statistic: a forward pass each, and gradients for Fisher's."""
    forward = suite.forward_flops()
    if forward is None:
        return None
    passes = 1 if need is Need.GRAM else 1 + 2 * settings.probes
    return Work(single=settings.examples * passes * forward)


def decomposition_work(shape: tuple[int, int], experts: int) -> Work:
    """Of the singular vectors of one matrix's task vectors."""
    return Work(single=decomposition_cost(shape, experts).flops)


def job_examples(
    suite: Suite, job: ScoreJob, limit: int | None, corruption_limit: int | None
) -> float | None:
    """Examples that go through the model for one row or merge; None where unknown.

    Args:
        suite: whose.
        job: what is scored.
        limit: as that of a `Workload`.
        corruption_limit: likewise.
    """
    split, seen = job.purpose.reads, [task.name for task in suite.tasks]
    tasks = list(job.tasks) or seen
    final = not job.tasks and job.purpose is Purpose.FINAL
    if final and job.method != EXPERTS:
        tasks = [*tasks, *(task.name for task in suite.unseen)]
    total = 0
    for task in tasks:
        count = example_count(suite, task, split)
        if count is None:
            return None
        count = min(count, limit or count)
        total += count
        if final and corruption_limit != 0 and task in suite.corrupted:
            total += len(suite.corruptions) * min(count, corruption_limit or count)
    return float(total * (len(seen) if job.method == ENSEMBLE else 1))


def job_merging(suite: Suite, job: ScoreJob, settings: Mapping[str, Value]) -> Work | None:
    """Of the merge of one row; none for references.

    Args:
        suite: whose.
        job: what is scored.
        settings: the method's, where the job has none of its own.
    """
    if job.method in REFERENCES:
        return Work()
    method = methods[job.method]
    params = method.parse(dict(job.params) or settings)
    return merging_work(suite, method, params, len(job.tasks or suite.tasks))


def longest_first(
    jobs: Sequence[ScoreJob], suite: Suite, limit: int | None, corruption_limit: int | None
) -> list[ScoreJob]:
    """Jobs in the order in which they should be handed out, by their calculated work.

    What is not known counts as longest; of equals, the earlier one comes first.

    Args:
        jobs: rows or merges.
        suite: whose.
        limit: as that of a `Workload`.
        corruption_limit: likewise.
    """
    device = processor_device(1)

    def seconds(job: ScoreJob) -> float:
        examples = job_examples(suite, job, limit, corruption_limit)
        merging = job_merging(suite, job, suite.settings_of(job.method))
        scoring = None if examples is None else scoring_work(suite, examples)
        if merging is None or scoring is None:
            return math.inf
        return (merging + scoring).seconds(device)

    return sorted(jobs, key=lambda job: -seconds(job))


@dataclass(frozen=True)
class RungPlan:
    """What a rung of a trial is."""

    settings: int
    """Settings that are judged."""
    share: float
    """Of the validation examples."""
    reached: float
    """Share of the trials that reach it, if halving stops as many as it is meant to."""


def rung_plans(study: Study) -> list[RungPlan]:
    """The rungs of a study's trials, from the code that the trials go by."""
    method, rungs = methods[study.method], study.rungs
    earlier: list[RungResult] = []
    plans: list[RungPlan] = []
    for rung, share in enumerate(rungs.shares):
        wanted = settings_at(rungs, method, study.published.as_dict(), earlier, keep_own=False)
        values = (0.0,) * len(study.objectives)
        judged = tuple(Judged(setting=setting, values=values) for setting in wanted)
        earlier.append(
            RungResult(share=share, judged=judged, best=0, scores={}, seconds={}, reads={})
        )
        going_on = study.trials / rungs.reduction**rung if study.stops else study.trials
        # As long as there are fewer than that, all go on.
        reached = min(study.trials, max(going_on, rungs.reduction)) / study.trials
        plans.append(RungPlan(len(wanted), share, reached))
    return plans


def trial_examples(experiment: Experiment, suite: Suite, study: Study) -> float | None:
    """Validation examples that one trial judges on average; None where unknown."""
    tasks = [task.name for task in suite.tasks]
    if Objective.UNSEEN in study.objectives:
        tasks += [task.name for task in suite.unseen]
    counts = [example_count(suite, task, Split.VALIDATION) for task in tasks]
    if None in counts:
        return None
    whole = sum(min(count, experiment.limit or count) for count in counts if count is not None)
    return whole * sum(plan.settings * plan.share * plan.reached for plan in rung_plans(study))


def trial_merging(suite: Suite, study: Study) -> Work | None:
    """Of the merges of one trial on average: one run of the method, as far as it gets."""
    merging = merging_work(suite, methods[study.method], study.published, study.experts)
    sweep = methods[study.method].sweep(study.published)
    if merging is None or sweep is None or sweep.growing is None:
        return merging
    before, part = 0.0, 0.0
    for after, plan in zip(study.rungs.growth, rung_plans(study), strict=True):
        part += (after - before) * plan.reached
        before = after
    return merging * part
