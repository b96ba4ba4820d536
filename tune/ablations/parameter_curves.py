"""Accuracy over one parameter of DOGE TA at a time, on validation data.

These curves are what a choice of the parameter would look at, and choices are made on validation
data alone; test data are not read.
"""

from functools import partial

import numpy as np

from apgd.data import Split
from apgd.methods import Parameter, methods
from apgd.paired import compare_all
from apgd.statistics import accuracy
from tune.ablations.bench import Bench, Merge, Wanted
from tune.ablations.figures import Curve, curves, illustrate
from tune.ablations.finding import Ablation, Finding, Point, PValues, p_text, verdict
from tune.ablations.settings import SUBJECT
from tune.evaluators import Purpose
from tune.report.document import Table, TableRow, numbers, words
from tune.report.formatting import ABSENT, counted, number, percent, points

_TITLES = {
    "eta": "η",
    "basis_size": "k, the size of the bases",
    "iterations": "Iterations",
    "keep_ratio": "Keep ratio",
    "learning_rate": "Learning rate",
}


def _parameter(name: str) -> Parameter:
    return next(p for p in methods[SUBJECT].params.declared() if p.name == name)


def published_value(bench: Bench, name: str) -> float:
    """The published value of a parameter for this suite."""
    return float(bench.published()[name] or 0)


def merges(bench: Bench, name: str) -> dict[float, Merge]:
    """The merges by value, ascending, the published one among them."""
    asked = {float(v) for v in getattr(bench.settings, name)}
    if name == "basis_size":
        asked = {value for value in asked if value <= bench.rank}
    kind = _parameter(name).kind
    return {
        value: bench.merge(Purpose.SEARCH, {name: kind(value)})
        for value in sorted(asked | {published_value(bench, name)})
    }


def _planned(name: str, bench: Bench) -> list[Wanted]:
    return bench.each_seed(list(merges(bench, name).values()))


def _find(name: str, bench: Bench) -> Finding:
    chosen = merges(bench, name)
    published = published_value(bench, name)
    runs = {value: bench.runs(merge) for value, merge in chosen.items()}
    values = {value: accuracy(found) for value, found in runs.items()}
    tested = compare_all(
        {number(v): (found, runs[published]) for v, found in runs.items() if v != published}
    )
    titles = {task.name: task.title for task in bench.suite.tasks}
    by_task = {
        task: [accuracy([{task: run[task]} for run in runs[value]]) for value in chosen]
        for task in bench.tasks
    }
    found, rows = [], []
    best = max(chosen, key=lambda value: values[value].estimate)
    for place, value in enumerate(chosen):
        point, test = f"{name}={value:g}", tested.get(number(value))
        found.append(
            Point(
                point=point, measure="accuracy", value=values[value], interval="t",
                split=Split.VALIDATION,
            )
        )  # fmt: skip
        found += [
            Point(
                point=point, measure="accuracy", task=task, value=line[place], interval="t",
                split=Split.VALIDATION,
            )
            for task, line in by_task.items()
        ]  # fmt: skip
        if test:
            found.append(
                Point(
                    point=point, measure="difference to the published value", test=PValues.of(test),
                    value=test.difference, interval="bootstrap", split=Split.VALIDATION,
                )
            )  # fmt: skip
        compared = (
            (points(test.difference), p_text(test.test.mid_p), p_text(test.p_adjusted))
            if test
            else (ABSENT,) * 3
        )
        row = (*words(number(value)), *numbers([percent(values[value]), *compared]))
        rows.append(TableRow(cells=row, detail="published" if value == published else ""))
    table = Table(
        name=f"curve_{name}",
        caption=f"Validation accuracy (%) over {name}, mean over tasks",
        header=(name, "Validation", "minus published", "p", "p (Holm)"),
        rows=tuple(rows),
        notes=(
            f"Differences: bootstrap over examples and seeds; p: McNemar's test (mid-p), Holm's "
            f"correction over {counted(len(tested), 'comparison')}.",
        ),
    )
    declared = _parameter(name)
    figure = illustrate(
        name,
        f"Validation accuracy over {name} ({declared.meaning}); everything else as published. "
        "Mean over tasks with 95 % interval.",
        f"A curve of validation accuracy over {len(chosen)} values of {name}; the table has the "
        "values.",
        [
            curves(
                "Validation accuracy (%)",
                list(chosen),
                [Curve(title="mean over tasks", values=tuple(values.values()))],
                label=name,
                log=True,
                faint=[[value.estimate for value in line] for line in by_task.values()],
                faint_title="single tasks",
                marked=published,
            )
        ],
    )
    gap = tested.get(number(best))
    lead = (
        f"Of {counted(len(chosen), 'value')} the published {number(published)} is the best on "
        "validation data, which agrees with the paper's choice"
        if gap is None
        else f"The best of {counted(len(chosen), 'value')} on validation data is {number(best)} "
        f"({percent(values[best])} %), {verdict(gap.difference)} the published "
        f"{number(published)}: {points(gap.difference)} percentage points; this "
        f"{'is in keeping with' if gap.difference.includes_zero else 'contradicts'} the paper's "
        "choice on this suite"
    )
    extremes = [values[value].estimate for value in chosen]
    moved = {t: np.ptp([v.estimate for v in line]) for t, line in by_task.items()}
    widest = max(moved, key=lambda task: moved[task])
    return Finding(
        sentence=f"{lead}. Over the whole range the mean moves by "
        f"{100 * (max(extremes) - min(extremes)):.1f} points, the most of all tasks "
        f"{titles[widest]} by {100 * moved[widest]:.1f}.",
        points=tuple(found),
        blocks=(table,),
        figure=figure,
    )


def ablation(name: str) -> Ablation:
    """The ablation of one parameter."""
    return Ablation(
        title=_TITLES[name],
        question=f"How does accuracy depend on {name}? One parameter is changed at a time, on "
        "validation data, since that is where it would be chosen.",
        planned=partial(_planned, name),
        find=partial(_find, name),
    )
