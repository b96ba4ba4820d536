"""Pairs of methods whose order here is not that of the published tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from apgd.published import IN_DOMAIN, Family, PublishedRow, published_rows
from apgd.statistics import Interval
from tune.report.document import Table, TableRow, Text, numbers, words
from tune.report.formatting import counted, plain, points
from tune.report.measures import differences, task_columns
from tune.report.published_section import FAMILIES, published_beside, sources
from tune.report.ranking import Ranking
from tune.report.run import RowKey, Run

_ROUNDING = 0.05
"""Published averages have one digit: what is closer than this, in points, has no order."""


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A pair that can be told apart here, and has the other order in a published table."""

    better: RowKey
    """The better one here."""
    worse: RowKey
    gap: Interval
    """Mean score of `better` minus that of `worse`; above zero throughout."""
    published_gap: float
    """The same of the published averages, in points; below zero."""


@dataclass(frozen=True, kw_only=True)
class Orders:
    """All pairs with published averages of one family of experts."""

    family: Family
    rows: Mapping[RowKey, PublishedRow]
    """Our rows and the published ones."""
    agree: int
    """Pairs that can be told apart here, and have the same order."""
    unclear: int
    """Pairs that cannot be told apart here."""
    contradictions: tuple[Contradiction, ...]


def published_averages(
    run: Run, rows: tuple[RowKey, ...]
) -> dict[Family, dict[RowKey, PublishedRow]]:
    """By family of experts, the published row of every row of ours that has one."""
    suite = run.manifest.published_suite
    if suite is None:
        return {}
    found = {}
    for family in Family:
        if family is Family.NOT_STATED:  # these rows have no models in common
            continue
        by_name: dict[str, PublishedRow] = {}
        for row in published_rows(suite, IN_DOMAIN, family):
            by_name.setdefault(row.method, row)  # of several documents the one that leads
        named = {ours: published_beside(by_name, ours.method) for ours in rows}
        found[family] = {
            ours: theirs
            for ours, theirs in named.items()
            if theirs is not None and theirs.average is not None
        }
    return {family: rows for family, rows in found.items() if rows}


def compare_orders(run: Run, ranking: Ranking) -> tuple[Orders, ...]:
    """Hold the order of all pairs against that of the published averages, family by family."""

    @cache
    def gap(first: RowKey, second: RowKey) -> Interval | None:
        found = differences(run, "pair", first, [second], task_columns(run)[:1])
        return found.rows[0].values[0] if found.rows else None

    orders = []
    for family, theirs in published_averages(run, ranking.rows).items():
        if len(theirs) < 2:
            continue
        agree = unclear = 0
        against = []
        for pair in combinations(theirs, 2):
            # The one that is better there comes second.
            better, worse = sorted(pair, key=lambda row: theirs[row].average or 0.0)
            there = (theirs[better].average or 0.0) - (theirs[worse].average or 0.0)
            here = gap(better, worse)
            if here is None or there > -_ROUNDING:
                continue
            if here.includes_zero:
                unclear += 1
            elif here.estimate < 0:
                agree += 1
            else:
                against.append(
                    Contradiction(better=better, worse=worse, gap=here, published_gap=there)
                )
        against.sort(key=lambda pair: -pair.gap.estimate)
        orders.append(
            Orders(
                family=family,
                rows=theirs,
                agree=agree,
                unclear=unclear,
                contradictions=tuple(against),
            )
        )
    return tuple(orders)


def contradiction_blocks(run: Run, ranking: Ranking) -> tuple[Text | Table, ...]:
    """What to say of the published order; nothing where no two methods have one."""
    return tuple(
        block for orders in compare_orders(run, ranking) for block in _of_family(run, orders)
    )


def _of_family(run: Run, orders: Orders) -> list[Text | Table]:
    contrary = len(orders.contradictions)
    pairs = orders.agree + orders.unclear + contrary
    label = FAMILIES[orders.family]
    suite = run.manifest.published_suite
    own = suite == run.manifest.suite_name
    where = f"the published averages on {suite} ({label})" + (
        "" if own else ", another model on other data,"
    )
    text = Text(
        text=f"Of the {counted(pairs, 'pair')} of methods that {where} put in an order, "
        f"{orders.agree} have the same order here, {contrary} the opposite one, and "
        f"{orders.unclear} cannot be told apart here (the 95 % interval of the paired difference "
        "holds zero)."
    )
    if not contrary:
        return [text]
    title = run.method_title
    return [
        text,
        Table(
            name=f"contradictions_{orders.family.replace(' ', '_')}",
            caption=f"Pairs whose order here contradicts the published one, {label}",
            header=("Better here", "Worse here", "Difference here", "Published difference"),
            rows=tuple(
                TableRow(
                    cells=(
                        *words(title(pair.better.method), title(pair.worse.method)),
                        *numbers([points(pair.gap), plain(pair.published_gap)]),
                    )
                )
                for pair in orders.contradictions
            ),
            notes=(
                "Percentage points of mean score, the better one here minus the worse one "
                "[95 % interval]. Every interval stands for itself: among forty pairs that do not "
                "differ, one is expected here.",
                *sources(list(orders.rows.values())),
            ),
        ),
    ]
