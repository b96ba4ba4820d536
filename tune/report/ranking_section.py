"""The section that ranks the methods, and says which of them cannot be told apart."""

from apgd.evidence import Need
from apgd.statistics import LEVEL
from tune.report.contradictions import contradiction_blocks, published_averages
from tune.report.document import Block, Section, Table, TableRow, Text, Warnings, numbers, words
from tune.report.formatting import ABSENT, counted, listed, percent, plain, points
from tune.report.published_section import FAMILIES
from tune.report.ranking import Ranking, rank_methods
from tune.report.ranking_figure import ranking_figure
from tune.report.run import RowKey, Run

_NEEDS = {
    Need.NOTHING: "nothing",
    Need.FISHER: "training data",
    Need.GRAM: "training data",
    Need.INPUTS: "test inputs, unlabelled",
}


def ranking_section(run: Run) -> Section | None:
    """Ranks, groups and the published order; None where there are not three methods to rank."""
    ranking = rank_methods(run)
    if ranking is None or len(ranking.rows) < 3:
        return None
    missing = [run.method_title(row.method) for row in ranking.left_out]
    blocks: list[Block] = [_method(run, ranking), _caution(ranking)]
    if missing:
        said = f"Not ranked, because seeds or tasks of theirs are missing: {listed(missing)}."
        blocks.append(Warnings(items=(said,)))
    blocks += [ranking_figure(run, ranking), _two_ideas(run, ranking), _table(run, ranking)]
    blocks += contradiction_blocks(run, ranking)
    return Section(name="ranking", title="Ranks of the methods", blocks=tuple(blocks))


def _method(run: Run, ranking: Ranking) -> Text:
    cells, tasks = ranking.over_cells, ranking.over_tasks
    return Text(
        text=f"Each of {counted(len(ranking.tasks), 'task')} and "
        f"{counted(len(ranking.seeds), 'seed')} ranks the {len(ranking.rows)} methods by test "
        f"{run.manifest.measure}; parameters are those tuned on validation data, where a method "
        f"has some to tune. Friedman's test that all are alike gives χ² = {plain(cells.statistic)} "
        f"with {cells.df} degrees of freedom, {p_value(cells.p_value)}, on the "
        f"{counted(len(ranking.cells), 'cell')}, and {p_value(tasks.p_value)} on the "
        f"{counted(len(ranking.tasks), 'task')} with their seeds averaged."
    )


def _caution(ranking: Ranking) -> Text:
    return Text(
        text="Read this with care. Seeds of one task share their test examples, and tasks of one "
        "suite share the model and those who chose them, so the cells are not independent samples "
        f"of tasks in general. The critical distance of {plain(ranking.distance)} ranks counts "
        f"every cell as one; if only whole tasks count, it is {plain(ranking.distance_of_tasks)}, "
        "and fewer methods can be told apart. The more methods are ranked together, the wider it "
        "gets, and the rank of a method depends on which others are there." + _floor(ranking)
    )


def _floor(ranking: Ranking) -> str:
    """What to say where no pair can be told apart by its p, whatever its scores."""
    if ranking.least_p <= 1 - LEVEL:
        return ""
    return (
        f" With {counted(len(ranking.cells), 'cell')} and so many pairs no corrected p can be "
        f"below {ranking.least_p:.2f}, so here a large p says nothing."
    )


def _two_ideas(run: Run, ranking: Ranking) -> Text:
    best = ranking.best_free
    against = f" ({run.method_title(best.method)})" if best else ""
    return Text(
        text="Two ideas of a difference stand side by side in the table. Groups and p ask whether "
        "a method is better on most tasks. Methods that share a letter have average ranks within "
        "the critical distance (Nemenyi), which sees no margins; p is that of Wilcoxon's "
        "signed-rank test, corrected for all pairs (Holm), which sees their order. The paired "
        f"difference from the best data-free method{against} asks how much mean "
        f"{run.manifest.measure} lies between the two on these tasks, with an interval over test "
        "examples and seeds, and no correction, not even for that method being chosen by these "
        "results. They may disagree: a large gain on one task moves the mean and hardly the ranks."
    )


def _table(run: Run, ranking: Ranking) -> Table:
    best = ranking.best_free
    published = published_averages(run, ranking.rows)
    families = [family for family, rows in published.items() if len(rows) > 1]

    def against(row: RowKey) -> list[str]:
        if best is None:
            return []
        if row == best:
            return [ABSENT, ABSENT]
        p = ranking.p_values[frozenset((row, best))]
        return [points(ranking.gaps[row]), p_value(p, named=False)]

    rows = tuple(
        TableRow(
            cells=(
                *words(run.method_title(row.method)),
                *numbers([plain(rank), percent(ranking.means[row]), *against(row)]),
                *words(ranking.letters(row) or ABSENT, _NEEDS[run.need(row.method)]),
                *numbers(
                    [
                        plain(theirs.average if (theirs := published[family].get(row)) else None)
                        for family in families
                    ]
                ),
            )
        )
        for row, rank in zip(ranking.rows, ranking.average_ranks, strict=True)
    )
    comparison = ("Against best data-free", "p") if best else ()
    return Table(
        name="ranking",
        caption="Average ranks, means and groups, best rank first",
        header=(
            *("Method", "Rank", "Mean (%)", *comparison, "Groups", "Needs"),
            *(f"Published, {FAMILIES[family]}" for family in families),
        ),
        rows=rows,
        notes=(
            "Mean: with the half-width of its 95 % interval. Against best data-free: percentage "
            "points [95 % interval], paired. Needs: besides the base and the experts. Published: "
            f"averages on {run.manifest.published_suite}, to look at and not to subtract from."
            if families
            else "Mean: with the half-width of its 95 % interval. Against best data-free: "
            "percentage points [95 % interval], paired. Needs: besides the base and the experts.",
        ),
    )


def p_value(value: float, *, named: bool = True) -> str:
    """`p = 0.03`, `p < 0.001`; without the `p =` where not `named`."""
    if value < 0.001:
        return "p < 0.001" if named else "< 0.001"
    text = f"{value:.2f}" if value >= 0.095 else f"{value:.3f}"
    return f"p = {text}" if named else text
