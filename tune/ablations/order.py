"""The experts in another order, and the experts of another seed.

A merge sums over experts, so that their order must not matter but for rounding. What is counted is
answers that are right under one order (or seed) and not under the other; that is at most the number
of predictions that differ.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from apgd.data import Split
from apgd.methods import methods
from apgd.statistics import Interval, accuracy
from tune.ablations.bench import Bench, Merge, Wanted
from tune.ablations.figures import Strip, illustrate, strips
from tune.ablations.finding import Ablation, Finding, Point
from tune.evaluators import Purpose
from tune.report.document import Table, TableRow, numbers, words
from tune.report.formatting import ABSENT, counted, listed

_ENTROPY = 11


def orders(tasks: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Distinct random orders, none of them the given one; more leave the earlier ones as they are.

    There are fewer where the tasks do not have so many.
    """
    found = [tuple(tasks)]
    for number in range(20 * count):
        order = np.random.default_rng([_ENTROPY, number]).permutation(len(tasks))
        shuffled = tuple(tasks[i] for i in order)
        if shuffled not in found and len(found) <= count:
            found.append(shuffled)
    return found[1:]


def _orders(bench: Bench, method: str) -> list[Merge]:
    """The suite's own order first."""
    listed = [bench.tasks, *orders(bench.tasks, bench.settings.orders)]
    return [bench.merge(Purpose.FINAL, method=method, tasks=tasks) for tasks in listed]


def _planned(bench: Bench) -> list[Wanted]:
    wanted = []
    for method in bench.settings.methods:
        merges = _orders(bench, method)
        wanted += [(merge, bench.seeds[0]) for merge in merges]
        wanted += bench.each_seed(merges[:1])
    return wanted


Answers = Mapping[str, np.ndarray]


def changed_share(first: Answers, second: Answers) -> float:
    """Share of the answers that differ, mean over tasks."""
    return float(np.mean([np.mean(first[task] != second[task]) for task in first]))


def _mean(answers: Answers) -> float:
    return float(np.mean([values.mean() for values in answers.values()]))


def _greatest(runs: Sequence[Answers]) -> tuple[float, float]:
    """Greatest difference of mean scores, and share of changed answers, over all pairs of runs."""
    pairs = list(combinations(runs, 2))
    if not pairs:
        return 0.0, 0.0
    return (
        max(abs(_mean(a) - _mean(b)) for a, b in pairs),
        max(changed_share(a, b) for a, b in pairs),
    )


def _find(bench: Bench) -> Finding:
    chosen = bench.settings.methods
    titles = {method: methods[method].title for method in chosen}
    by_order = {
        method: [bench.answers(merge, bench.seeds[0]) for merge in _orders(bench, method)]
        for method in chosen
    }
    by_seed = {method: bench.runs(_orders(bench, method)[0]) for method in chosen}
    rows, found = [], []
    for method in chosen:
        moved = {"orders": _greatest(by_order[method]), "seeds": _greatest(by_seed[method])}
        several = len(bench.seeds) > 1
        cells = [
            f"{100 * moved['orders'][0]:.3f}", f"{100 * moved['orders'][1]:.3f}",
            f"{100 * moved['seeds'][0]:.2f}" if several else ABSENT,
            f"{100 * moved['seeds'][1]:.1f}" if several else ABSENT,
            f"{100 * _deviation(by_seed[method]):.2f}" if several else ABSENT,
        ]  # fmt: skip
        rows.append(TableRow(cells=(*words(titles[method]), *numbers(cells))))
        found += [
            *(
                _point(f"method={method};order={place}", accuracy([run]))
                for place, run in enumerate(by_order[method])
            ),
            *(
                _point(f"method={method};seed={seed}", accuracy([run]))
                for seed, run in zip(bench.seeds, by_seed[method], strict=True)
            ),
        ]
    table = Table(
        name="order",
        caption="The most that another order of the experts changes, and experts of another seed",
        header=(
            *("Method", "Order: points", "Order: answers (%)"),
            *("Seed: points", "Seed: answers (%)", "SD over seeds"),
        ),
        rows=tuple(rows),
        notes=(
            f"Greatest difference of two mean test scores, and greatest share of test answers that "
            f"turn from right to wrong or back, over all pairs of "
            f"{counted(len(by_order[chosen[0]]), 'order')} (experts of seed {bench.seeds[0]}) and "
            f"of {counted(len(bench.seeds), 'seed')} of the experts.",
        ),
    )
    figure = illustrate(
        "order",
        "Mean test accuracy of every method: a point per order of the experts, and a point per "
        "seed of their fine-tuning.",
        "Accuracy by order and by seed; the table has the spreads.",
        [
            strips(
                "Orders and seeds",
                [
                    Strip(title=f"{titles[method]}, {what}", points=tuple(map(_mean, runs[method])))
                    for method in chosen
                    for what, runs in (("orders", by_order), ("seeds", by_seed))
                ],
                "test accuracy (%)",
            )
        ],
    )
    return Finding(
        sentence=_sentence(titles, by_order, by_seed),
        points=tuple(found),
        blocks=(table,),
        figure=figure,
    )


def _deviation(runs: Sequence[Answers]) -> float:
    return float(np.std([_mean(run) for run in runs], ddof=1))


def _point(point: str, value: Interval) -> Point:
    return Point(
        point=point, measure="accuracy", value=value, interval="t over examples", split=Split.TEST
    )


def _sentence(
    titles: Mapping[str, str],
    by_order: Mapping[str, Sequence[Answers]],
    by_seed: Mapping[str, Sequence[Answers]],
) -> str:
    moved = {method: _greatest(runs) for method, runs in by_order.items()}
    same = [titles[method] for method, (_, share) in moved.items() if share == 0]
    most = max(moved, key=lambda method: moved[method][1])
    first = (
        "The order of the experts changes no answer of any method"
        if len(same) == len(titles)
        else f"Another order of the experts changes at most {100 * moved[most][1]:.3f} % of the "
        f"answers ({titles[most]}) and {100 * max(m[0] for m in moved.values()):.3f} points of "
        f"accuracy" + (f", and nothing of {listed(same)}" if same else "")
    )
    expected = (
        "as it must be for a sum"
        if moved[most][1] < 0.001
        else "which is more than rounding should do"
    )
    seeds = {method: _greatest(runs) for method, runs in by_seed.items()}
    if max(map(len, by_seed.values())) < 2:
        return f"{first}, {expected}."
    widest = max(seeds, key=lambda method: seeds[method][0])
    return (
        f"{first}, {expected}; experts of another seed change up to "
        f"{100 * max(share for _, share in seeds.values()):.1f} % of the answers and "
        f"{100 * seeds[widest][0]:.2f} points ({titles[widest]}). The paper says nothing of either."
    )


ABLATION = Ablation(
    title="Order and seed of the experts",
    question="Does it matter in which order experts are merged, and how much does it matter which "
    "run of the fine-tuning they are from? Published settings, on test data.",
    planned=_planned,
    find=_find,
)
