"""The paper's Adam steps against the exact minimiser of the same loss.

Each solver's η is chosen on validation data, over the seeds together; on test data both are
compared at the published η and each at its own.
"""

from apgd.data import Split
from apgd.paired import compare_all
from apgd.statistics import Interval, accuracy
from tune.ablations.bench import Bench, Merge, Wanted
from tune.ablations.figures import LOOKS, Curve, ForestRow, curves, forest, illustrate
from tune.ablations.finding import Ablation, Finding, Point, PValues, p_text, verdict
from tune.ablations.parameter_curves import published_value
from tune.evaluators import Purpose
from tune.report.document import Table, TableRow, numbers, words
from tune.report.formatting import duration, number, percent, points

SOLVERS = ("exact", "adam")
_TITLES = {"exact": "Exact", "adam": "Adam"}


def etas(bench: Bench) -> list[float]:
    """The values of η, ascending, the published one among them."""
    return sorted({*bench.settings.eta, published_value(bench, "eta")})


def _merge(bench: Bench, purpose: Purpose, solver: str, eta: float) -> Merge:
    return bench.merge(purpose, {"solver": solver, "eta": eta})


def _planned(bench: Bench) -> list[Wanted]:
    tried = [_merge(bench, Purpose.SEARCH, s, eta) for s in SOLVERS for eta in etas(bench)]
    published = published_value(bench, "eta")
    return bench.each_seed(
        [*tried, *(_merge(bench, Purpose.FINAL, solver, published) for solver in SOLVERS)]
    )


def _find(bench: Bench) -> Finding:
    tried = {
        (s, eta): accuracy(bench.runs(_merge(bench, Purpose.SEARCH, s, eta)))
        for s in SOLVERS
        for eta in etas(bench)
    }
    best = {
        s: max((value.estimate, -eta, eta) for (by, eta), value in tried.items() if by == s)[-1]
        for s in SOLVERS
    }
    published = published_value(bench, "eta")
    choices = {
        "published η": dict.fromkeys(SOLVERS, published),
        "η best on validation": best,
    }
    if set(best.values()) == {published}:
        del choices["η best on validation"]
    tested = {
        choice: {s: _merge(bench, Purpose.FINAL, s, eta[s]) for s in SOLVERS}
        for choice, eta in choices.items()
    }
    bench.score(
        "solver: test", bench.each_seed([m for pair in tested.values() for m in pair.values()])
    )
    runs = {c: {s: bench.runs(m) for s, m in pair.items()} for c, pair in tested.items()}
    found = compare_all({c: (pair["exact"], pair["adam"]) for c, pair in runs.items()})
    result = {(c, s): accuracy(r) for c, pair in runs.items() for s, r in pair.items()}

    rows = []
    for choice, test in found.items():
        eta = choices[choice]
        seconds = [duration(bench.merge_seconds(tested[choice][s])) for s in SOLVERS]
        cells = [
            *(f"{percent(result[choice, s])} (η {number(eta[s])})" for s in SOLVERS),
            points(test.difference), p_text(test.test.mid_p), p_text(test.p_adjusted), *seconds,
        ]  # fmt: skip
        rows.append(TableRow(cells=(*words(choice), *numbers(cells))))
    table = Table(
        name="solver",
        caption="Both solvers on test data (%), mean over tasks",
        header=(
            *("Choice of η", "Exact", "Adam", "Exact − Adam", "p", "p (Holm)"),
            *("Merge, exact", "Merge, Adam"),
        ),
        rows=tuple(rows),
        notes=(
            "Differences: bootstrap over examples and seeds; p: McNemar's test (mid-p). η is "
            "chosen by mean validation accuracy over seeds.",
        ),
    )
    figure = illustrate(
        "solver",
        "Validation accuracy over η, and exact minus Adam on test data, with 95 % intervals.",
        "Validation accuracy of both solvers over η, and their difference on test data; the table "
        "has the values.",
        [
            curves(
                "Validation accuracy (%)",
                etas(bench),
                [
                    Curve(
                        title=_TITLES[s],
                        values=tuple(tried[s, eta] for eta in etas(bench)),
                        look=LOOKS[place],
                    )
                    for place, s in enumerate(SOLVERS)
                ],
                label="η",
                log=True,
                marked=published,
            ),
            forest(
                "Exact − Adam, test",
                [
                    ForestRow(
                        title=choice,
                        value=test.difference,
                        strong=not test.difference.includes_zero,
                    )
                    for choice, test in found.items()
                ],
                "percentage points",
                zero=True,
            ),
        ],
    )
    listed = [
        *(
            _point(f"solver={s};eta={eta:g}", value, Split.VALIDATION)
            for (s, eta), value in tried.items()
        ),
        *(
            _point(f"solver={s};eta={choices[choice][s]:g}", value, Split.TEST)
            for (choice, s), value in result.items()
        ),
        *(
            Point(
                point=choice, measure="exact minus adam", value=test.difference,
                interval="bootstrap", split=Split.TEST, test=PValues.of(test),
            )
            for choice, test in found.items()
        ),
    ]  # fmt: skip
    said = [
        f"with {choice} the exact solver is {verdict(test.difference)} Adam "
        f"({points(test.difference)} points)"
        for choice, test in found.items()
    ]
    spans = {
        s: 100 * (max(v) - min(v))
        for s in SOLVERS
        for v in [[tried[s, eta].estimate for eta in etas(bench)]]
    }
    return Finding(
        sentence=f"On test data {' and '.join(said)}; over the range of η its validation accuracy "
        f"moves by {spans['exact']:.1f} points, Adam's by {spans['adam']:.1f}. The paper has Adam "
        "alone, so there is nothing to agree with.",
        points=tuple(listed),
        blocks=(table,),
        figure=figure,
    )


def _point(point: str, value: Interval, split: Split) -> Point:
    return Point(point=point, measure="accuracy", value=value, interval="t", split=split)


ABLATION = Ablation(
    title="Solver",
    question="Is the exact minimiser of the gap loss a better Δ than the paper's 400 Adam steps? "
    "Same experts, η chosen on validation data for each, then scored on test data.",
    planned=_planned,
    find=_find,
)
