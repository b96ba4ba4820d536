"""From a run folder to a finished report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from apgd.data import Examples
from apgd.evidence import Need
from apgd.files import atomic_path, write_text
from apgd.published import TOLERANCE
from tune.report.axis import Axis
from tune.report.comparison import compare, comparison_section
from tune.report.document import (
    Block,
    Document,
    Plot,
    Report,
    Section,
    Table,
    Warnings,
)
from tune.report.geometry_section import geometry_section
from tune.report.headline import headline, tiles
from tune.report.markdown import render_markdown
from tune.report.measures import task_columns, tidy_csv
from tune.report.page import render_page
from tune.report.published_section import published_section
from tune.report.ranking_section import ranking_section
from tune.report.reproduce_section import reproduce_section, setting_line
from tune.report.result_sections import (
    accuracy_section,
    corruption_measures,
    corruption_section,
    difference_measures,
    difference_section,
    main_table,
    unseen_measures,
    unseen_section,
)
from tune.report.run import Run, read_run
from tune.report.run_sections import cost_section, experts_section, samples_section
from tune.report.samples import sample_grid, sample_sheet, sample_table
from tune.report.search_section import search_section

_NO_NEEDS: Mapping[str, Need] = MappingProxyType({})
_SMOKE = (
    "This is a smoke run: its sizes are cut down to prove that everything works. "
    "Its numbers mean nothing."
)


def build_report(
    run_dir: Path,
    *,
    titles: Mapping[str, str],
    axes: Mapping[str, Sequence[Axis]],
    samples: Mapping[str, Examples],
    needs: Mapping[str, Need] = _NO_NEEDS,
    tolerance: float = TOLERANCE,
) -> Report:
    """Make the report of a run folder, finished or not.

    Args:
        run_dir: the folder with `manifest.json` and `records/`.
        titles: names of the methods for people.
        axes: the searched parameters of every method.
        samples: a few test examples by task.
        needs: what methods need besides base and experts; nothing, where not given.
        tolerance: percentage points within which a published value counts as reproduced.

    Returns:
        The report; what the folder does not hold yet is left out, and said to be.

    Raises:
        InputError: when the manifest or a record is malformed.
    """
    run = read_run(run_dir, titles=titles, axes=axes, needs=needs)
    main, unseen, corrupted = main_table(run), unseen_measures(run), corruption_measures(run)
    paired = difference_measures(run)
    compared = compare(run, tolerance)
    grid = sample_grid(run, samples)
    sections: list[Section | None] = [
        accuracy_section(run, main),
        difference_section(run, paired),
        ranking_section(run),
        geometry_section(run, run_dir),
        unseen_section(run, unseen),
        corruption_section(run, corrupted),
        search_section(run),
        comparison_section(compared),
        published_section(run),
        samples_section(grid, sample_table(run, samples)),
        experts_section(run),
        cost_section(run),
        reproduce_section(run),
    ]
    document = Document(
        title=_title(run),
        headline=headline(run, main, task_columns(run)),
        setting=setting_line(run),
        lead=_lead(run, tiles(run, main)),
        sections=tuple(section for section in sections if section is not None),
    )
    blocks = document.blocks()
    figures = {block.name: block.png for block in blocks if isinstance(block, Plot)}
    if grid is not None:
        figures["samples"] = sample_sheet(grid)
    return Report(
        document=document,
        markdown=render_markdown(document),
        html=render_page(document),
        csv=tidy_csv([main, *paired, unseen, corrupted]),
        compared=compared.sentence,
        tables={block.name: block for block in blocks if isinstance(block, Table)},
        figures=figures,
    )


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html`, `report.md`, `table.csv` and `figures/*.png` into `folder`.

    Returns:
        The path of the page.
    """
    for name, png in report.figures.items():
        with atomic_path(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    write_text(folder / "table.csv", report.csv)
    write_text(folder / "report.md", report.markdown)
    page = folder / "report.html"
    write_text(page, report.html)
    return page


def _title(run: Run) -> str:
    return f"Merged experts: {run.manifest.name}" if run.manifest.name else "Merged experts"


def _lead(run: Run, numbers: Block) -> tuple[Block, ...]:
    return (Warnings(items=(_SMOKE,)), numbers) if run.manifest.smoke else (numbers,)
