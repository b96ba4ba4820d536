"""The section that looks for why: merges beside the task vectors that they are made of."""

from pathlib import Path

from apgd.analysis import DeltaFigures, expert_figures
from tune.report.document import Block, Section, Table, TableRow, Text, numbers, words
from tune.report.formatting import ABSENT, counted, minus, plain
from tune.report.geometry import Association, Geometry, association, gather_geometry
from tune.report.geometry_figure import geometry_figure
from tune.report.ranking_section import p_value
from tune.report.run import Run


def geometry_section(run: Run, run_dir: Path) -> Section | None:
    """Lengths, angles and subspaces; None where nothing was measured."""
    geometry = gather_geometry(run, run_dir)
    if geometry is None:
        return None
    blocks: tuple[Block, ...] = (
        _experts_text(geometry),
        _experts_table(run, geometry),
        _merges_table(run, geometry),
        *_association_text(geometry),
        geometry_figure(run, geometry),
    )
    return Section(name="geometry", title="Task vectors and merges", blocks=blocks)


def _experts_text(geometry: Geometry) -> Text:
    whole = expert_figures(geometry.experts)
    count = counted(len(geometry.experts), "matrix", "matrices")
    return Text(
        text=f"What the merges of seed {geometry.seed} are made of, over {count}. τ_i is a task "
        "vector, τ̄ the mean of them, δ what a merge adds to the base, Δ APGD's modification "
        "vector, and U the subspace that APGD calls shared, at the paper's size k = ⌊r/N⌋. The "
        f"task vectors have a mean cosine of {_two(whole.cosine)} with each other; their leading "
        f"subspaces have {_percent(whole.overlap)} % in common; and {_percent(whole.shared)} % of "
        f"their energy lies in U, against {_percent(whole.shared_by_chance)} % for a random "
        "subspace of that size. APGD's gradient keeps out of U. So does the exact Δ; Adam's, whose "
        "steps differ in length from entry to entry, only in part."
    )


def _experts_table(run: Run, geometry: Geometry) -> Table:
    whole = expert_figures(geometry.experts)
    rows = []
    for i, task in enumerate(geometry.tasks):
        energy = sum(layer.products[i][i] for layer in geometry.experts)
        inside = sum(layer.shared[i] for layer in geometry.experts)
        others = [j for j in range(len(geometry.tasks)) if j != i]
        overlaps = [layer.overlaps[i][j] for layer in geometry.experts for j in others]
        rows.append(
            TableRow(
                cells=(
                    *words(run.manifest.task(task).title),
                    *numbers(
                        [
                            _two(whole.norms[i] / whole.mean_norm) if whole.mean_norm else ABSENT,
                            _percent(inside / energy) if energy else ABSENT,
                            _percent(sum(overlaps) / len(overlaps)) if overlaps else ABSENT,
                        ]
                    ),
                )
            )
        )
    return Table(
        name="geometry_experts",
        caption=f"Task vectors of seed {geometry.seed}",
        header=("Task", "‖τ_i‖ / ‖τ̄‖", "Energy in U (%)", "Overlap with others (%)"),
        rows=tuple(rows),
        notes=(
            "Overlap: share of the k leading left singular directions that two task vectors have "
            "in common, mean over matrices and the other tasks.",
        ),
    )


def _merges_table(run: Run, geometry: Geometry) -> Table:
    rows = []
    for row, score in geometry.scores.items():
        found = geometry.figures(row)
        least = found.cosines.index(min(found.cosines))
        rows.append(
            (
                score,
                TableRow(
                    cells=(
                        *words(run.row_title(row)),
                        *numbers(
                            [
                                plain(100 * score),
                                _two(found.size),
                                _two(_mean_cosine(found)),
                                _two(found.cosines[least]),
                            ]
                        ),
                        *words(run.manifest.task(geometry.tasks[least]).title),
                        *numbers(
                            [
                                _percent(found.shared),
                                ABSENT if found.modification is None else _two(found.modification),
                            ]
                        ),
                    )
                ),
            )
        )
    rows.sort(key=lambda pair: -pair[0])
    return Table(
        name="geometry_merges",
        caption=f"Merges of seed {geometry.seed}, best mean score first",
        header=(
            *("Method", "Mean (%)", "‖δ‖ / ‖τ̄‖", "Mean cosine", "Least cosine", "With"),
            *("Energy in U (%)", "‖Δ‖ / ‖τ‖"),
        ),
        rows=tuple(line for _, line in rows),
        notes=(
            "‖δ‖ / ‖τ̄‖: 1 for weight averaging, N times the coefficient for task arithmetic. "
            "Cosines: of δ with the task vectors; the least one says which task the merge serves "
            "worst. ‖Δ‖ / ‖τ‖: against the root mean square length of the task vectors.",
        ),
    )


def _association_text(geometry: Geometry) -> tuple[Text, ...]:
    """Which figure goes with the score over the methods."""
    rows = list(geometry.merges)
    found = {row: geometry.figures(row) for row in rows}
    scores = [geometry.scores[row] for row in rows]
    columns = {
        "the length ‖δ‖ / ‖τ̄‖": [found[row].size for row in rows],
        "the mean cosine": [_mean_cosine(found[row]) for row in rows],
        "the least cosine": [min(found[row].cosines) for row in rows],
        "the energy in U": [found[row].shared for row in rows],
    }
    tests = {name: association(values, scores) for name, values in columns.items()}
    known = {name: test for name, test in tests.items() if test is not None}
    if not known:
        return ()
    said = "; ".join(f"{name} {_correlation(test)}" for name, test in known.items())
    return (
        Text(
            text=f"Over these {len(rows)} methods, the rank correlation (Spearman) of the mean "
            f"score with each figure is: {said}. Methods are no random sample, and several share "
            "most of what they do, so this is a hint of where to look and no explanation."
        ),
    )


def _correlation(found: Association) -> str:
    return f"{_two(found.coefficient)} ({p_value(found.p_value)})"


def _mean_cosine(found: DeltaFigures) -> float:
    return sum(found.cosines) / len(found.cosines)


def _two(value: float) -> str:
    text = f"{value:.2f}"
    return minus(text) if float(text) != 0 else text.lstrip("-")


def _percent(share: float) -> str:
    return plain(100 * share)
