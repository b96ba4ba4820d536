"""Noise from fine-tuning seeds against noise from search seeds.

A crossed design: for every seed of the experts the same searches are done, which differ in their
own seed alone; the winner of each is scored on test data. So the table has a row per seed of the
experts and a column per seed of the search, and one value in each cell, from which
`apgd.variance_components` tells the two sources apart.
"""

from collections.abc import Mapping
from math import inf

import numpy as np

from apgd.data import Split
from apgd.statistics import Interval, accuracy
from apgd.variance_components import Component, Components, two_way
from tune.ablations.bench import Bench, Cell, Merge, Wanted
from tune.ablations.figures import ForestRow, Strip, forest, illustrate, strips
from tune.ablations.finding import Ablation, Finding, Point
from tune.evaluators import Purpose
from tune.report.document import Table, TableRow, Text, numbers, words
from tune.report.formatting import counted, percent


def cells(bench: Bench) -> list[Cell]:
    """Every seed of the experts with every seed of the search."""
    return [
        (expert, search)
        for expert in bench.seeds
        for search in range(bench.settings.search_seeds)
    ]  # fmt: skip


def _planned(bench: Bench) -> list[Wanted]:
    """The published settings; what else is tested comes out of the searches."""
    return bench.each_seed([bench.merge(Purpose.FINAL)]) if len(bench.seeds) > 1 else []


def _find(bench: Bench) -> Finding:
    if len(bench.seeds) < 2:
        return Finding(
            sentence="Noise from fine-tuning needs experts of at least two seeds, and this run has "
            "one."
        )
    found = bench.search(cells(bench))
    winners = {cell: bench.merge(Purpose.FINAL, found[cell]) for cell in cells(bench)}
    bench.score("noise: test", [(merge, expert) for (expert, _), merge in winners.items()])
    return _finding(bench, winners, bench.merge(Purpose.FINAL))


def _finding(bench: Bench, winners: Mapping[Cell, Merge], published: Merge) -> Finding:
    values = {cell: accuracy(bench.runs(m, [cell[0]])) for cell, m in winners.items()}
    searches = range(bench.settings.search_seeds)
    table = np.array([[values[e, s].estimate for s in searches] for e in bench.seeds])
    parts = two_way(table)
    examples = float(np.sqrt(np.mean([v.standard_error**2 for v in values.values()])))
    plain = [accuracy(bench.runs(published, [seed])).estimate for seed in bench.seeds]

    def shown(part: Component) -> Interval:
        return Interval(
            estimate=part.estimate, low=part.low, high=part.high, standard_error=0.0, df=inf,
            seeds=len(bench.seeds), examples=table.size,
        )  # fmt: skip

    named = {
        "fine-tuning seeds": shown(parts.rows),
        "search seeds": shown(parts.columns),
        "the two together, and the rest": shown(parts.rest),
    }
    winners_table = Table(
        name="noise_winners",
        caption="Test accuracy (%) of each search's winner, mean over tasks",
        header=("Experts", *(f"search {s}" for s in searches), "published"),
        rows=tuple(
            TableRow(
                cells=(
                    *words(f"seed {seed}"),
                    *numbers([percent(values[seed, s]) for s in searches]),
                    *numbers([f"{100 * alone:.1f}"]),
                )
            )
            for seed, alone in zip(bench.seeds, plain, strict=True)
        ),
        notes=("± is half a 95 % interval over test examples.",),
    )
    parts_table = Table(
        name="noise_parts",
        caption="Where the spread comes from: standard deviations in percentage points",
        header=("Source", "SD", "95 % interval"),
        rows=(
            *(
                TableRow(
                    cells=(
                        *words(name),
                        *numbers(
                            [
                                f"{100 * part.estimate:.2f}",
                                f"[{100 * part.low:.2f}, {100 * part.high:.2f}]",
                            ]
                        ),
                    )
                )
                for name, part in named.items()
            ),
            TableRow(
                cells=(
                    *words("test examples (standard error of one value)"),
                    *numbers([f"{100 * examples:.2f}", ""]),
                )
            ),
        ),
        notes=(
            "Two-way random effects, one value per cell: estimates from mean squares, negative "
            "variances shown as 0, generalised confidence intervals. With so few seeds the "
            "intervals are wide. All cells are tested on the same examples, so that these move "
            "all values together.",
        ),
    )
    how = Text(
        text=f"Each search has {counted(bench.settings.effective_trials, 'trial')} on validation "
        "data, that of the published settings among them."
    )
    figure = illustrate(
        "noise",
        "Left: test accuracy of every search's winner, a line per seed of the experts, a point per "
        "search. Right: standard deviations with 95 % intervals.",
        "Winners by seed, and standard deviations of the sources of noise; the tables have the "
        "values.",
        [
            strips(
                "Winners",
                [
                    Strip(
                        title=f"experts of seed {seed}",
                        points=tuple(values[seed, s].estimate for s in searches),
                    )
                    for seed in bench.seeds
                ],
                "test accuracy (%)",
            ),
            forest(
                "Standard deviations",
                [ForestRow(title=name, value=part) for name, part in named.items()],
                "percentage points",
            ),
        ],
    )
    return Finding(
        sentence=_sentence(parts, named, examples),
        points=(
            *(
                Point(
                    point=f"expert_seed={e};search_seed={s}", measure="accuracy", value=value,
                    interval="t over examples", split=Split.TEST,
                )
                for (e, s), value in values.items()
            ),
            *(
                Point(
                    point=name, measure="standard deviation", value=part,
                    interval="generalised", split=Split.TEST,
                )
                for name, part in named.items()
            ),
        ),
        blocks=(how, winners_table, parts_table),
        figure=figure,
    )  # fmt: skip


def _sentence(parts: Components, named: Mapping[str, Interval], examples: float) -> str:
    tuning, search = parts.rows, parts.columns
    if tuning.estimate == search.estimate:
        order = "as much as"
    else:
        order = "more than" if tuning.estimate > search.estimate else "less than"
    apart = tuning.low > search.high or search.low > tuning.high
    sure = "and the intervals lie apart" if apart else "but the intervals overlap"
    texts = [
        f"{100 * part.estimate:.2f} [{100 * part.low:.2f}, {100 * part.high:.2f}]"
        for part in (named["fine-tuning seeds"], named["search seeds"])
    ]
    return (
        f"The seed of the fine-tuning moves the result by {texts[0]} points (standard deviation), "
        f"{order} the seed of the search with {texts[1]}, {sure}; the finite test set alone has a "
        f"standard error of {100 * examples:.2f}. The paper gives no spread."
    )


ABLATION = Ablation(
    title="Noise",
    question="How much of the spread of results comes from the seed of the fine-tuning, and how "
    "much from the seed of the search? Searches of DOGE TA, each winner scored on test data, every "
    "seed of the experts with every seed of the search.",
    planned=_planned,
    find=_find,
)
