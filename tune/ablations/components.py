"""DOGE TA with every subset of its four components.

Off means: no Adam steps, so Δ = 0; no projection of the gradient; one λ for all, the coefficient
that task arithmetic has; no mask. Without Δ there is no gradient to project, so that 12 of the 16
are different merges.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np

from apgd.data import Split
from apgd.methods import Value
from apgd.paired import compare_all
from apgd.statistics import Interval, accuracy, difference
from tune.ablations.bench import Bench, Merge, Wanted
from tune.ablations.figures import ForestRow, forest, illustrate
from tune.ablations.finding import Ablation, Finding, Point, PValues, against_the_paper, p_text
from tune.evaluators import Purpose
from tune.report.document import Table, TableRow, numbers, words
from tune.report.formatting import ABSENT, listed, percent, points

COMPONENTS = ("Δ", "projection", "task-aware λ", "mask")
_FULL = (True, True, True, True)
_NONE = (False, False, False, False)

On = tuple[bool, ...]
"""Which components are there, in the order of `COMPONENTS`."""
COMBINATIONS: tuple[On, ...] = tuple(product((True, False), repeat=4))
"""All 16, the whole method first."""


def changes(on: On, coefficient: float) -> dict[str, Value]:
    """Parameters that take the other components away.

    Args:
        on: which components are there.
        coefficient: the one λ.
    """
    delta, projection, task_aware, mask = on
    changed: dict[str, Value] = {}
    if not delta:
        changed["iterations"] = 0
    if not projection:
        changed["basis_size"] = 0
    if not task_aware:
        changed["uniform_coefficient"] = coefficient
    if not mask:
        changed["keep_ratio"] = 1.0
    return changed


def merges(bench: Bench) -> dict[On, Merge]:
    """The merge of every combination."""
    coefficient = float(bench.published("task_arithmetic")["coefficient"] or 0)
    return {on: bench.merge(Purpose.FINAL, changes(on, coefficient)) for on in COMBINATIONS}


Pairs = list[tuple[On, On]]
"""Combinations with something, and the same without it."""


def effect_pairs() -> dict[str, Pairs]:
    """What is with and without what, by name of the effect.

    The projection counts where there is a Δ: elsewhere it does nothing.
    """

    def pairs(*taken: int) -> Pairs:
        def without(on: On) -> On:
            return tuple(there and place not in taken for place, there in enumerate(on))

        return [
            (on, without(on))
            for on in COMBINATIONS
            if all(on[place] for place in taken) and (on[0] or taken != (1,))
        ]

    return {
        "Δ with its projection": pairs(0, 1),
        "Δ, with or without": pairs(0),
        "projection": pairs(1),
        "task-aware λ": pairs(2),
        "mask": pairs(3),
    }


_IN_THE_PAPER = ("Δ with its projection", "projection", "task-aware λ", "mask")


Runs = list[dict[str, np.ndarray]]


def main_effect(runs: Mapping[On, Runs], pairs: Pairs) -> Interval:
    """With minus without, on average over the pairs, paired by example and seed."""

    def average(side: int) -> Runs:
        members = [runs[pair[side]] for pair in pairs]
        return [
            {task: np.mean([m[s][task] for m in members], axis=0) for task in members[0][s]}
            for s in range(len(members[0]))
        ]

    return difference(average(0), average(1))


def title(on: On) -> str:
    """A combination for people."""
    present = [name for name, there in zip(COMPONENTS, on, strict=True) if there]
    if on == _FULL:
        return "all four"
    return " + ".join(present) or "none (task arithmetic)"


def _planned(bench: Bench) -> list[Wanted]:
    return bench.each_seed(list(dict.fromkeys(merges(bench).values())))


def _find(bench: Bench) -> Finding:
    chosen = merges(bench)
    runs = {on: bench.runs(merge) for on, merge in chosen.items()}
    values = {on: accuracy(found) for on, found in runs.items()}
    distinct = [on for on in COMBINATIONS if on[0] or not on[1]]
    tested = compare_all({title(on): (runs[on], runs[_FULL]) for on in distinct if on != _FULL})
    effects = {name: main_effect(runs, pairs) for name, pairs in effect_pairs().items()}
    alone = difference(runs[False, False, True, False], runs[_NONE])

    rows, found = [], []
    for on in COMBINATIONS:
        name = title(on)
        same = "" if on in distinct else "the same merge as without the projection"
        test = tested.get(name)
        marks = ["●" if there else "○" for there in on]
        compared = (
            (points(test.difference), p_text(test.test.mid_p), p_text(test.p_adjusted))
            if test
            else (ABSENT,) * 3
        )
        rows.append(
            TableRow(
                cells=(*words(name, *marks), *numbers([percent(values[on]), *compared])),
                detail=same,
            )
        )
        found.append(_point(on, "accuracy", values[on], "t"))
        if test:
            found.append(
                Point(
                    point=_code(on), measure="difference to all four", value=test.difference,
                    interval="bootstrap", split=Split.TEST, test=PValues.of(test),
                )
            )  # fmt: skip
    effect_points = [
        Point(
            point=name, measure="main effect", value=value, interval="t, paired", split=Split.TEST
        )
        for name, value in effects.items()
    ]
    effect_points.append(_point((False, False, True, False), "difference to none", alone, "t"))
    combinations = Table(
        name="components",
        caption="Every combination of components on test data (%), mean over tasks, and the paired "
        "difference to the whole method",
        header=("With", *COMPONENTS, "Test", "minus all four", "p", "p (Holm)"),
        rows=tuple(rows),
        notes=(
            "●: on, ○: off. Δ off: no Adam steps. λ off: the coefficient of task arithmetic for "
            "all tasks. Mask off: every entry kept. Without Δ there is nothing to project, so four "
            "combinations are scored once and shown twice.",
            f"Differences: bootstrap over examples, stratified by task, and over seeds; p: "
            f"McNemar's test (mid-p), with Holm's correction over {len(tested)} comparisons. The "
            "test speaks of these experts on new examples, the interval of other seeds too.",
        ),
    )
    main_effects = Table(
        name="component_effects",
        caption="What each component adds, averaged over all ways to choose the others "
        "(percentage points)",
        header=("Component", "Main effect", "Pairs"),
        rows=tuple(
            TableRow(
                cells=(*words(name), *numbers([points(value), str(len(effect_pairs()[name]))]))
            )
            for name, value in effects.items()
        ),
        notes=(
            "The projection's is that with Δ; without Δ it is zero by definition. The paper's Δ is "
            "that with its projection.",
        ),
    )
    ordered = sorted(distinct, key=lambda on: -values[on].estimate)
    figure = illustrate(
        "components",
        "Left: mean test accuracy of every combination of components, best first, with 95 % "
        "intervals; the whole method in blue. Right: what each component adds, averaged over all "
        "ways to choose the others; blue where the interval leaves zero out.",
        "Accuracy of twelve combinations of components, and main effects; the tables have "
        "the values.",
        [
            forest(
                "Combinations",
                [
                    ForestRow(title=title(on), value=values[on], strong=on == _FULL)
                    for on in ordered
                ],
                "test accuracy (%)",
            ),
            forest(
                "Main effects",
                [
                    ForestRow(title=name, value=value, strong=not value.includes_zero)
                    for name, value in effects.items()
                ],
                "percentage points",
                zero=True,
            ),
        ],
    )
    return Finding(
        sentence=_sentence(effects, alone, _best(ordered[0], values)),
        points=(*found, *effect_points),
        blocks=(combinations, main_effects),
        figure=figure,
    )


def _best(best: On, values: Mapping[On, Interval]) -> str:
    if best == _FULL:
        return f"The whole method is the best of all at {percent(values[best])} %."
    return (
        f"The best combination is {title(best)} at {percent(values[best])} %, where the whole "
        f"method has {percent(values[_FULL])} %."
    )


def _code(on: On) -> str:
    return ";".join(
        f"{n}={'on' if there else 'off'}" for n, there in zip(COMPONENTS, on, strict=True)
    )


def _point(on: On, measure: str, value: Interval, interval: str) -> Point:
    return Point(point=_code(on), measure=measure, value=value, interval=interval, split=Split.TEST)


def _sentence(effects: Mapping[str, Interval], alone: Interval, best: str) -> str:
    claimed = {name: effects[name] for name in _IN_THE_PAPER}
    helps = [n for n, v in claimed.items() if not v.includes_zero and v.estimate > 0]
    harms = [n for n, v in claimed.items() if not v.includes_zero and v.estimate < 0]
    unclear = [n for n, v in claimed.items() if v.includes_zero]
    parts = [
        f"{listed(helps)} {'adds' if len(helps) == 1 else 'add'} accuracy" if helps else "",
        f"{listed(harms)} {'costs' if len(harms) == 1 else 'cost'} some" if harms else "",
        f"of {listed(unclear)} no effect can be told" if unclear else "",
    ]
    claim = against_the_paper(agrees=len(helps) == len(claimed), contradicts=bool(harms))
    return (
        f"On average over the other components {', '.join(part for part in parts if part)}: this "
        f"{claim} the paper, in which each of these helps. The task-aware "
        f"λ alone gives {points(alone)} percentage points over task arithmetic; the paper says "
        f"+2.8. {best}"
    )


ABLATION = Ablation(
    title="Components",
    question="Which parts of DOGE TA does its accuracy come from? All 16 combinations of the "
    "modification vector Δ, the projection of its gradient, the task-aware λ and the mask, on "
    "test data with published settings.",
    planned=_planned,
    find=_find,
)
