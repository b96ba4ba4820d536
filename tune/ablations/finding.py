"""What an ablation found: points with intervals, tables, figures, and a sentence."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass

from apgd.data import Split
from apgd.paired import Comparison
from apgd.statistics import Interval
from tune.ablations.bench import Bench, Wanted
from tune.ablations.figures import Illustration
from tune.report.document import Block, Details

MEAN = "mean over tasks"
_HEADER = (
    *("ablation", "point", "measure", "task", "split", "estimate", "low", "high", "interval"),
    *("n", "seeds", "p_value", "p_holm", "better", "worse"),
)


@dataclass(frozen=True, kw_only=True)
class PValues:
    """What a paired test says."""

    raw: float
    adjusted: float
    """With Holm's correction over all comparisons of the ablation."""
    sides: tuple[int, int] | None = None
    """Examples on which the first was better, and worse; None where examples were not counted."""

    @classmethod
    def of(cls, comparison: Comparison) -> "PValues":
        """Those of McNemar's test."""
        test = comparison.test
        return cls(raw=test.mid_p, adjusted=comparison.p_adjusted, sides=(test.better, test.worse))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value with its interval, as shares."""

    point: str
    """What it is of, for example `eta=0.07`."""
    measure: str
    """`accuracy`, `difference to ...` and the like."""
    value: Interval
    interval: str
    """How the interval was found."""
    split: Split
    task: str = MEAN
    test: PValues | None = None
    """The paired test, where there is one."""

    def row(self) -> list[str | int]:
        """Its cells, in percent or percentage points."""
        value = self.value
        numbers = [f"{100 * x:.4f}" for x in (value.estimate, value.low, value.high)]
        tested: list[str | int] = ["", "", "", ""]
        if self.test is not None:
            tested = [f"{self.test.raw:.4g}", f"{self.test.adjusted:.4g}"]
            tested += ["", ""] if self.test.sides is None else self.test.sides
        where = [self.point, self.measure, self.task, str(self.split)]
        return [*where, *numbers, self.interval, value.examples, value.seeds, *tested]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of an ablation."""

    sentence: str
    """What is seen, and whether it agrees with the paper."""
    points: tuple[Point, ...] = ()
    blocks: tuple[Block | Details, ...] = ()
    """Tables."""
    figure: Illustration | None = None

    def csv(self, ablation: str) -> str:
        """Every point as a line of CSV, in percent or percentage points."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows([ablation, *point.row()] for point in self.points)
        return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One ablation."""

    title: str
    """Heading of its section."""
    question: str
    """What it asks and how, for people."""
    planned: Callable[[Bench], list[Wanted]]
    """The merges that are sure to be scored, for the plan and for scoring them together."""
    find: Callable[[Bench], Finding]
    """Scores what follows from those, and says what is found."""


def p_text(p_value: float) -> str:
    """A p-value for people."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def verdict(difference: Interval) -> str:
    """Whether the first of two is better, by the interval of their difference."""
    if difference.includes_zero:
        return "not distinguishable from"
    return "better than" if difference.estimate > 0 else "worse than"


def against_the_paper(*, agrees: bool, contradicts: bool) -> str:
    """How what is seen stands to what the paper says."""
    if agrees:
        return "agrees with"
    return "contradicts" if contradicts else "neither confirms nor contradicts"
