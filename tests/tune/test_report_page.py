"""The page stands alone, escapes what it is given, and says what is missing."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apgd.data import TextExamples
from tests.tune.synthetic_run import (
    AXES,
    RATES,
    TITLES,
    add_row,
    manifest,
    pictures,
    samples,
    write_manifest,
    write_run,
)
from tune.records import Kind, RecordStore, Variant
from tune.report import Axis, Report, build_report, write_report

HOSTILE = '<script>alert("1")</script> & $\\frac$ | `x` [y](z)'


class Page(HTMLParser):
    """What a browser would find: tags with attributes, and whether every tag is closed."""

    VOID = ("meta", "link", "img", "br", "path", "use")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module", params=[1, 3], ids=["one seed", "three seeds"])
def built(request, tmp_path_factory) -> tuple[int, Report]:
    run_dir = tmp_path_factory.mktemp("run")
    write_run(run_dir, seeds=request.param, examples=120, trials=6)
    return request.param, build_report(run_dir, titles=TITLES, axes=AXES, samples=samples(4))


def test_it_is_well_formed_and_refers_to_nothing_outside(built):
    page = Page(built[1].html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object")
        for name in ("src", "href", "srcset", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), (tag, name, target)
        assert not any(name.startswith("on") for name in attributes)
    assert "http://" not in built[1].html
    assert "https://" not in built[1].html
    assert not re.search(r"url\((?!#)", built[1].html)
    assert "@import" not in built[1].html


def test_identifiers_are_unique_and_links_lead_somewhere(built):
    page = Page(built[1].html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        target = attributes.get("href") or ""
        if target.startswith("#"):
            assert target[1:] in ids


def test_figures_take_the_colours_of_the_page(built):
    assert "var(--accent)" in built[1].html
    assert "#010a0" not in built[1].html
    assert "prefers-color-scheme: dark" in built[1].html


def test_pictures_have_alternative_texts(built):
    page = Page(built[1].html)
    assert all("alt" in attributes for tag, attributes in page.tags if tag == "img")
    labelled = [a for _, a in page.tags if a.get("role") == "img"]
    assert labelled
    assert all(attributes.get("aria-label") for attributes in labelled)
    assert sum(tag == "img" for tag, _ in page.tags) == 4 * len(samples(1))


def test_seeds_are_said_plainly(built):
    seeds, report = built
    alone = "the intervals come from the choice of test examples alone"
    for text in (report.html, report.markdown):
        assert (alone in text) == (seeds == 1)
        assert ("Means over 3 seeds" in text) == (seeds == 3)


def test_reference_rows_come_first(built):
    rows = [row.cells[0].text for row in built[1].tables["main"].rows]
    assert rows[:2] == ["Zero-shot (pretrained)", "Single experts"]
    assert rows[2:5] == [
        "Weight averaging (published)",
        "Task Arithmetic (published)",
        "Task Arithmetic (tuned)",
    ]


def test_sections_are_in_order(built):
    names = [section.name for section in built[1].document.sections]
    assert names == [
        *("accuracy", "differences", "ranking", "unseen", "corruptions", "search", "published"),
        *("samples", "experts", "cost", "reproduce"),
    ]


def test_page_and_markdown_say_the_same(built):
    _, report = built
    for table in report.tables.values():
        assert table.caption in report.html
        for row in table.rows:
            for cell in row.cells[1:]:
                assert cell.text in report.html
                assert cell.text in report.markdown
    assert report.document.headline in report.html
    assert report.document.headline in report.markdown


def test_published_rows_stay_in_their_own_tables(built):
    _, report = built
    ours = {name for name in report.tables if not name.startswith("published_")}
    for name in ours:
        assert "clip_vit_b32" not in report.tables[name].caption
    theirs = report.tables["published_clip_vit_b32_8_in_domain_openclip"]
    assert [row.cells[1].text for row in theirs.rows if row.cells[0].text == "DOGE AM †"] == [
        "85.9"
    ]
    assert "85.9" not in report.csv.split("\n", 1)[0]
    assert "DOGE AM" not in report.csv


def test_search_figures_exist_for_searched_methods(built):
    figures = built[1].figures
    assert {"search_task_arithmetic", "search_ties", "search_doge_ta"} <= set(figures)
    assert "search_average" not in figures
    assert all(png.startswith(b"\x89PNG") for png in figures.values())


def test_writing(built, tmp_path):
    _, report = built
    page = write_report(report, tmp_path / "report")
    assert page.read_text(encoding="utf-8") == report.html
    written = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*.*")}
    assert {"report.html", "report.md", "table.csv", "figures/accuracy.png"} <= written
    for name in re.findall(r"\]\((figures/[^)]+)\)", report.markdown):
        assert name in written
    write_report(report, tmp_path / "report")  # Again, over what is there.


def test_the_same_run_gives_the_same_bytes(tmp_path):
    write_run(tmp_path, examples=30, trials=3)
    first, second = (
        build_report(tmp_path, titles=TITLES, axes=AXES, samples=samples(2)) for _ in range(2)
    )
    assert first.html == second.html
    assert first.figures == second.figures


def test_hostile_names_are_text(tmp_path):
    content = manifest(1, command=HOSTILE, git_commit=HOSTILE)
    content["suite"]["title"] = HOSTILE
    content["suite"]["tasks"] = [
        {"name": "a", "title": HOSTILE, "stands_for": HOSTILE, "classes": 2}
    ]
    content["machine"]["description"] = HOSTILE
    write_manifest(tmp_path, content)
    right = np.arange(40) < 20
    for method in ("doge_ta", "ties"):
        add_row(tmp_path, method, Variant.PUBLISHED, 0, {"test/a": right}, {HOSTILE: 1.0})
    report = build_report(
        tmp_path,
        titles={"doge_ta": HOSTILE, "ties": f"other {HOSTILE}"},
        axes={"ties": [Axis(name=HOSTILE, meaning=HOSTILE)]},
        samples={"a": pictures(np.zeros((2, 32, 32, 3)))},
    )
    assert "<script" not in report.html
    assert "&lt;script&gt;" in report.html
    Page(report.html)
    assert "<script" not in report.markdown.replace("\\<script", "").replace(f"    {HOSTILE}", "")
    header = next(line for line in report.markdown.splitlines() if line.startswith("| Method"))
    assert len(re.findall(r"(?<!\\)\|", header)) == 5
    assert "](z)" not in header.replace("\\](z)", "")


def test_a_run_in_progress_shows_what_exists(tmp_path):
    rates = {name: RATES[name] for name in ("pretrained", "ties")}
    write_run(tmp_path, seeds=2, examples=30, rates=rates, trials=2)
    content = manifest(2, finished=None, stages=[], split_reads={}, git_commit=None, git_dirty=None)
    write_manifest(tmp_path, content)
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={})
    assert report.document.headline == "DOGE TA has no complete result yet."
    for sentence in (
        "The run has not finished; this is what it has so far.",
        "DOGE TA: not evaluated yet.",
        "Weight averaging: not evaluated yet.",
        "Single experts: not evaluated yet, so nothing is relative to them.",
    ):
        assert sentence in report.html
        assert sentence in report.markdown
    assert "differences_tuned" not in report.tables
    assert {cell.cells[2].text for cell in report.tables["main"].rows} == {"–"}


def test_a_run_without_any_record(tmp_path):
    write_manifest(tmp_path, manifest(2, finished=None))
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={})
    assert "No row has been evaluated yet." in report.html
    assert "main" not in report.tables
    Page(report.html)


def test_an_unevaluated_winner_is_said(tmp_path):
    write_run(tmp_path, examples=30, trials=2)
    store = RecordStore(tmp_path)
    for record in list(store.all(Kind.EVALUATION)):
        if (record.method, record.variant) == ("ties", Variant.TUNED):
            (store.root / "evaluation" / f"{record.key}.json").unlink()
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={})
    assert "Ties-Merging: searched, but no winner evaluated yet." in report.html


def test_a_smoke_run_says_that_it_means_nothing(tmp_path):
    content = manifest(1)
    content["experiment"]["smoke"] = True
    write_manifest(tmp_path, content)
    report = build_report(tmp_path, titles={}, axes={}, samples={})
    assert "Its numbers mean nothing." in report.html


def test_prompts_are_shown_in_a_table(tmp_path: Path) -> None:
    write_run(tmp_path, seeds=1)
    prompts = TextExamples(("is it <so>? " + "long " * 90, "b", "c"), ("yes", "no", "no"))
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={"digits": prompts})
    rows = report.tables["samples"].rows
    assert [row.cells[2].text for row in rows] == ["yes", "no"]
    assert len(rows[0].cells[1].text) == 160
    assert "is it &lt;so&gt;?" in report.html
    assert "samples" not in report.figures


def test_samples_are_one_picture_too(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples=samples(3))
    with Image.open(io.BytesIO(report.figures["samples"])) as sheet:
        # Three images of 64 pixels and six rows of them, 4 pixels apart.
        assert sheet.size == (3 * 64 + 2 * 4, 6 * 64 + 5 * 4)
        first = samples(3)["digits"].images[0]
        assert sheet.getpixel((0, 0)) == tuple(first[0, 0])
        assert sheet.getpixel((63, 63)) == tuple(first[31, 31])
        assert sheet.getpixel((65, 0)) == (255, 255, 255)
    assert "figures/samples.png" in report.markdown
