"""A report of hostile words is a page of words: nothing in it runs, loads or leads elsewhere."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import TEXTS
from tests.tune.search_run import SEARCH_AXES, SEARCH_TITLES, failed, trial
from tests.tune.synthetic_run import AXES, TITLES, samples, write_run
from tune.records import Record, RecordStore
from tune.report import Axis, Report, build_report, write_report

_TITLED = ("title", "stands_for", "description", "command", "git_commit", "torch", "python")
_ACTIVE = {"script", "iframe", "object", "embed", "form", "input", "base", "foreignobject", "image"}
_ADDRESSES = ("href", "src", "xlink:href", "action", "formaction", "data", "poster", "srcset")


class Page(HTMLParser):
    """Every element and attribute that a browser would find."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def dangers(self) -> list[str]:
        found = []
        for tag, attributes in self.found:
            if tag in _ACTIVE:
                found.append(f"<{tag}>")
            for name, value in attributes.items():
                if name.startswith("on"):
                    found.append(f"{tag} {name}")
                outside = name in _ADDRESSES and not (value or "").startswith(("#", "data:"))
                if outside or ("javascript:" in (value or "") and name != "aria-label"):
                    found.append(f"{tag} {name}={value}")
        return found


def worded(value: Any, word: str, key: str = "") -> Any:
    """A JSON value whose texts for people hold a hostile word."""
    if isinstance(value, dict):
        return {k: worded(v, word, k) for k, v in value.items()}
    if isinstance(value, list):
        return [worded(v, word, key) for v in value]
    return f"{value} {word}" if isinstance(value, str) and key in _TITLED else value


def one_rung() -> Record:
    """A trial that judged one setting on all examples."""
    return trial(0, rungs=[(1.0, [({}, {"accuracy": 0.5})])])


def hostile_report(folder: Path, word: str) -> Report:
    write_run(folder, examples=20, trials=2)
    store = RecordStore(folder)
    for record in (one_rung(), failed(1, error=word), failed(2, error=f"KeyError: {word}")):
        store.add(record)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest = worded(manifest, word)
    manifest["machine"][word] = word
    manifest["experiment"]["note"] = word
    (folder / "manifest.json").write_text(json.dumps(manifest))
    axes = {name: [Axis(name=a.name, meaning=word) for a in of] for name, of in AXES.items()}
    report = build_report(
        folder,
        titles={name: f"{title} {word}" for name, title in {**TITLES, **SEARCH_TITLES}.items()},
        axes={**axes, **SEARCH_AXES},
        samples=samples(2),
    )
    write_report(report, folder)
    return report


@pytest.fixture(scope="module", params=[*range(len(TEXTS) // 4)])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    # Several at a time: each page takes a second of drawing.
    word = " ".join(TEXTS[request.param :: len(TEXTS) // 4])
    return hostile_report(tmp_path_factory.mktemp("run"), word)


def test_the_page_holds_nothing_active(report: Report) -> None:
    page = Page(report.html)
    assert page.dangers == []
    policies = [a["content"] for _, a in page.found if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert len(page.text) > 100


def test_hostile_words_are_shown_as_words(tmp_path: Path) -> None:
    word = TEXTS[0]
    page = Page(hostile_report(tmp_path, word).html)
    assert word in "".join(page.text)


def test_files_stay_in_the_run_folder(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    hostile_report(run, "../../x /etc ")
    assert [f.name for f in tmp_path.iterdir()] == ["deep"]
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["run"]


def test_markdown_holds_no_html_and_no_foreign_link(report: Report) -> None:
    fenced = re.sub(r"(?m)^ {4}.*$", "", report.markdown)  # a command, shown as it was typed
    for raw in (r"(?<!\\)<[a-zA-Z/!]", r"(?<!\\)\]\((?!figures/)", r"(?m)^\[[^\]]*(?<!\\)\]:"):
        assert not re.search(raw, fenced), re.search(raw, fenced)
    lines = report.markdown.splitlines()
    commands = [n for n, line in enumerate(lines) if line.startswith("    ")]
    assert commands
    # Indented text is code after a heading; in a list it would be a paragraph.
    assert all(lines[n - 2].startswith("## ") for n in commands)
    assert not re.search(r"(?m)^# heading", report.markdown)


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path) -> None:
    report = hostile_report(tmp_path, "a\x1b[2Jb\u202ec")
    assert not set(report.markdown) & {"\x1b", "\u202e"}
