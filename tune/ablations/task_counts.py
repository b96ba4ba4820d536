"""Accuracy over the number of merged tasks (the paper's Figure 1).

Subsets are drawn in chains: a random order of all tasks, whose first N are the subset of size N, so
that sizes of a chain are nested and differences between sizes are not those of other tasks. Chain
c has the experts of seed c modulo the number of seeds; chains are independent draws, and more
chains leave the earlier ones as they are. There is one subset of all tasks, which is scored at
every seed.
"""

from collections.abc import Mapping, Sequence
from math import hypot, isnan, nan

import numpy as np
from scipy import stats

from apgd.data import Split
from apgd.methods import methods
from apgd.paired import Comparison, compare_all
from apgd.ranking import holm
from apgd.statistics import LEVEL, Interval, accuracy, relative
from tune.ablations.bench import Bench, Merge, Wanted
from tune.ablations.figures import LOOKS, Curve, curves, illustrate
from tune.ablations.finding import Ablation, Finding, Point, PValues, against_the_paper
from tune.ablations.settings import SUBJECT
from tune.evaluators import Purpose
from tune.report.document import Cell, Table, TableRow, words
from tune.report.formatting import listed, percent, points

SMALLEST = 2
_ENTROPY = 7


def chain(tasks: Sequence[str], number: int) -> dict[int, tuple[str, ...]]:
    """Nested random subsets by size, from `SMALLEST` to all but one.

    Args:
        tasks: all of them, in the suite's order, which subsets keep.
        number: of the chain.
    """
    order = np.random.default_rng([_ENTROPY, number]).permutation(len(tasks))
    return {
        size: tuple(tasks[i] for i in sorted(order[:size])) for size in range(SMALLEST, len(tasks))
    }


def subsets(bench: Bench) -> dict[int, list[tuple[tuple[str, ...], int]]]:
    """By size, the distinct pairs of a subset and the seed of its experts."""
    found: dict[int, list[tuple[tuple[str, ...], int]]] = {}
    for number in range(bench.settings.chains):
        for size, tasks in chain(bench.tasks, number).items():
            found.setdefault(size, []).append((tasks, bench.seeds[number % len(bench.seeds)]))
    return {size: list(dict.fromkeys(pairs)) for size, pairs in found.items()}


def over_subsets(values: Sequence[float], seeds: int = 1) -> Interval:
    """Mean of one value per subset, with Student's interval, which one subset alone has not.

    Args:
        values: one per subset.
        seeds: how many seeds the experts are of.

    Returns:
        The interval; its `examples` are the subsets.
    """
    count, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1)) / count**0.5 if count > 1 else nan
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * error if count > 1 else nan
    return Interval(
        estimate=mean, low=mean - reach, high=mean + reach, standard_error=error,
        df=max(count - 1, 1), seeds=seeds, examples=count,
    )  # fmt: skip


def _merge(bench: Bench, method: str, tasks: Sequence[str]) -> Merge:
    return bench.merge(Purpose.FINAL, method=method, tasks=tasks)


def _planned(bench: Bench) -> list[Wanted]:
    wanted = bench.each_seed([bench.experts])
    wanted += bench.each_seed([_merge(bench, m, bench.tasks) for m in bench.settings.methods])
    wanted += [
        (_merge(bench, method, tasks), seed)
        for pairs in subsets(bench).values()
        for tasks, seed in pairs
        for method in bench.settings.methods
    ]
    return wanted


Key = tuple[str, int]
"""A method and a number of tasks."""


def _scores(bench: Bench) -> tuple[dict[Key, list[float]], dict[Key, list[float]]]:
    """Mean accuracy of each subset, as it is and relative to the experts on the same tasks."""
    experts = {
        seed: {task: float(v.mean()) for task, v in bench.answers(bench.experts, seed).items()}
        for seed in bench.seeds
    }
    absolute: dict[Key, list[float]] = {}
    shares: dict[Key, list[float]] = {}
    for size, pairs in subsets(bench).items():
        for method in bench.settings.methods:
            for tasks, seed in pairs:
                answers = bench.answers(_merge(bench, method, tasks), seed)
                own = {task: float(values.mean()) for task, values in answers.items()}
                absolute.setdefault((method, size), []).append(float(np.mean(list(own.values()))))
                ratios = [own[t] / experts[seed][t] for t in tasks if experts[seed][t] > 0]
                shares.setdefault((method, size), []).append(float(np.mean(ratios or [np.nan])))
    return absolute, shares


def _find(bench: Bench) -> Finding:
    chosen, everything = bench.settings.methods, len(bench.tasks)
    subject = SUBJECT if SUBJECT in chosen else chosen[-1]
    scores, shares = _scores(bench)
    absolute = {key: over_subsets(values, len(bench.seeds)) for key, values in scores.items()}
    related = {key: over_subsets(values, len(bench.seeds)) for key, values in shares.items()}
    gaps = {
        key: over_subsets(np.subtract(scores[subject, key[1]], values).tolist(), len(bench.seeds))
        for key, values in scores.items()
        if key[0] != subject
    }
    runs = {m: bench.runs(_merge(bench, m, bench.tasks)) for m in chosen}
    experts = bench.runs(bench.experts)
    for method in chosen:
        absolute[method, everything] = accuracy(runs[method])
        if all(values.any() for run in experts for values in run.values()):
            related[method, everything] = relative(runs[method], experts)
    tested = compare_all({m: (runs[subject], runs[m]) for m in chosen if m != subject})
    tests = _tests(gaps, tested, everything)
    gaps |= {(method, everything): test.difference for method, test in tested.items()}
    sizes = list(range(SMALLEST, everything + 1))
    related = {key: value for key, value in related.items() if np.isfinite(value.estimate)}
    with_related = all((method, size) in related for method in chosen for size in sizes)

    titles = {method: methods[method].title for method in chosen}
    looks = _looks(chosen, subject)

    def drawn(values: Mapping[Key, Interval]) -> list[Curve]:
        return [
            Curve(
                title=titles[method],
                values=tuple(values[method, size] for size in sizes),
                look=looks[method],
            )
            for method in chosen
        ]

    panels = [
        curves(
            "Test accuracy (%)", sizes, drawn(absolute), label="number of merged tasks", log=False
        )
    ]
    if with_related:
        panels.append(
            curves(
                "Relative to the experts (%)", sizes, drawn(related),
                label="number of merged tasks", log=False,
            )
        )  # fmt: skip
    figure = illustrate(
        "tasks",
        f"Mean test accuracy over the number of merged tasks, with 95 % intervals: over subsets, "
        f"and for all {everything} over examples and seeds.",
        "Accuracy of each method over the number of merged tasks; the table has the values.",
        panels,
    )
    return Finding(
        sentence=_sentence(titles, subject, sizes, absolute, related, gaps),
        points=tuple(_points(absolute, related, gaps, tests, subject, everything)),
        blocks=(
            _table("absolute", "Test accuracy (%)", sizes, titles, absolute),
            *(
                [_table("relative", "Relative to the experts (%)", sizes, titles, related)]
                if with_related
                else []
            ),
            _gap_table(sizes, titles, subject, gaps, tests),
        ),
        figure=figure,
    )


def _looks(chosen: Sequence[str], subject: str) -> dict[str, tuple[str, str]]:
    """The subject has the first look, the others those that follow."""
    others = [method for method in chosen if method != subject]
    rest = {method: LOOKS[1 + place % (len(LOOKS) - 1)] for place, method in enumerate(others)}
    return {subject: LOOKS[0], **rest}


def _table(
    name: str,
    caption: str,
    sizes: Sequence[int],
    titles: Mapping[str, str],
    values: Mapping[Key, Interval],
) -> Table:
    best = {size: max((values[m, size].estimate, m) for m in titles)[1] for size in sizes}
    return Table(
        name=f"tasks_{name}",
        caption=f"{caption} over the number of merged tasks",
        header=("Method", *map(str, sizes)),
        rows=tuple(
            TableRow(
                cells=(
                    *words(title),
                    *(
                        Cell(text=percent(values[method, size]), strong=best[size] == method)
                        for size in sizes
                    ),
                )
            )
            for method, title in titles.items()
        ),
        notes=(
            "± is half a 95 % interval: Student's over the subsets of that size, and for all tasks "
            "that over examples and seeds. Columns differ in their tasks too: of fewer tasks the "
            "mean is over other tasks.",
        ),
    )


def _tests(
    gaps: Mapping[Key, Interval], tested: Mapping[str, Comparison], everything: int
) -> dict[Key, PValues]:
    """A paired test of every difference: Student's over subsets, McNemar's of all tasks.

    Args:
        gaps: the differences over subsets.
        tested: the comparisons of all tasks.
        everything: how many tasks there are.
    """
    raw = {
        # One subset alone says nothing.
        **{key: 1.0 if isnan(gap.low) else gap.p_value() for key, gap in gaps.items()},
        **{(method, everything): test.test.mid_p for method, test in tested.items()},
    }
    sides = {
        (method, everything): (test.test.better, test.test.worse) for method, test in tested.items()
    }
    return {
        key: PValues(raw=raw[key], adjusted=adjusted, sides=sides.get(key))
        for key, adjusted in zip(raw, holm(list(raw.values())), strict=True)
    }


def _gap_table(
    sizes: Sequence[int],
    titles: Mapping[str, str],
    subject: str,
    gaps: Mapping[Key, Interval],
    tests: Mapping[Key, PValues],
) -> Table:
    rows = []
    for method, title in titles.items():
        if method == subject:
            continue
        shown = tuple(
            Cell(
                text=points(gaps[method, size]),
                strong=tests[method, size].adjusted < 1 - LEVEL,
            )
            for size in sizes
        )
        rows.append(TableRow(cells=(*words(title), *shown)))
    return Table(
        name="tasks_gaps",
        caption=f"{titles[subject]} minus each other method, percentage points",
        header=("Method", *map(str, sizes)),
        rows=tuple(rows),
        notes=(
            f"Paired by subset, with Student's interval over subsets; for {sizes[-1]} tasks by "
            f"example and seed, with a bootstrap interval. Bold: p below 0.05 with Holm's "
            f"correction over all {len(tests)} comparisons, by Student's paired test over subsets "
            f"and for {sizes[-1]} tasks by McNemar's (mid-p).",
        ),
    )


def _points(
    absolute: Mapping[Key, Interval],
    related: Mapping[Key, Interval],
    gaps: Mapping[Key, Interval],
    tests: Mapping[Key, PValues],
    subject: str,
    everything: int,
) -> list[Point]:
    kinds = (
        ("accuracy", absolute),
        ("relative to experts", related),
        (f"{subject} minus this", gaps),
    )
    return [
        Point(
            point=f"method={method};tasks={size}",
            measure=measure,
            value=value,
            interval=_interval(measure, size == everything),
            split=Split.TEST,
            test=tests[method, size] if values is gaps else None,
        )
        for measure, values in kinds
        for (method, size), value in sorted(values.items())
    ]


def _interval(measure: str, everything: bool) -> str:
    if not everything:
        return "t over subsets"
    return "bootstrap" if "minus" in measure else "t"


def _sentence(
    titles: Mapping[str, str],
    subject: str,
    sizes: Sequence[int],
    absolute: Mapping[Key, Interval],
    related: Mapping[Key, Interval],
    gaps: Mapping[Key, Interval],
) -> str:
    first = [size for size in sizes if all(gap.estimate > 0 for gap in _at(gaps, size))]
    clearly = [size for size in sizes if all(gap.low > 0 for gap in _at(gaps, size))]
    behind = any(gap.high < 0 for gap in gaps.values())
    title = titles[subject]
    lead = f"{title} has the highest mean with {listed(first) if first else 'no number of'} tasks"
    if behind:
        lead += ", and is clearly behind another method with some number of tasks"
    elif first:
        lead += (
            f", clear of every other method with {listed(clearly)}"
            if clearly
            else ", but is nowhere clear of every other method"
        )
    claim = against_the_paper(agrees=len(first) == len(sizes), contradicts=behind)
    shown = related if (subject, sizes[0]) in related else absolute
    kind = "Relative to the experts" if shown is related else "On average"
    few, all_tasks = shown[subject, sizes[0]], shown[subject, sizes[-1]]
    reach = 1.96 * hypot(few.standard_error, all_tasks.standard_error)
    change = all_tasks.estimate - few.estimate
    course = "falls" if change < -reach else "rises" if change > reach else "does not clearly move"
    return (
        f"{lead}; this {claim} the paper, which has it ahead of them. {kind} it {course} from "
        f"{percent(few)} % with {sizes[0]} tasks to {percent(all_tasks)} % with {sizes[-1]}."
    )


def _at(gaps: Mapping[Key, Interval], size: int) -> list[Interval]:
    return [gap for (_, at), gap in gaps.items() if at == size]


ABLATION = Ablation(
    title="Number of tasks",
    question="How does accuracy fall as more experts are merged? Random nested subsets of the "
    "tasks, each merged and tested on its own tasks, with published settings.",
    planned=_planned,
    find=_find,
)
