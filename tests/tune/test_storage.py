"""A damaged database of searches costs nothing, and one that somebody gave is left alone."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from apgd import InputError
from tests.tune.small_search import (
    found_in,
    kept_in,
    make_run,
    merges_scored,
    run_here,
    said,
    small_study,
)
from tune import databases
from tune.experiment import Experiment
from tune.search.storage import open_storage

STUDIES = [small_study("doge_ta", trials=4, at_once=2), small_study("ties", seed=1, trials=4)]


def truncate(database: Path) -> None:
    database.write_bytes(database.read_bytes()[: database.stat().st_size // 2])


def truncate_in_a_page(database: Path) -> None:
    database.write_bytes(database.read_bytes()[:5000])


def overwrite(database: Path) -> None:
    database.write_bytes(b"no database at all " * 1000)


def overwrite_pages(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[8192 : len(content) - 4096] = bytes(len(content) - 12288)
    database.write_bytes(content)


def empty(database: Path) -> None:
    database.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, truncate_in_a_page, overwrite, overwrite_pages])
def test_a_search_goes_on_without_a_damaged_database(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path)
    found, kept = found_in(run_here(folder, STUDIES, monkeypatch)), kept_in(folder)
    merges = merges_scored(folder)
    database = folder / "run" / "studies.db"
    damage(database)
    damaged = database.read_bytes()
    assert found_in(run_here(folder, STUDIES, monkeypatch)) == found
    assert kept_in(folder) == kept
    assert merges_scored(folder) == merges  # the rungs were there
    (line,) = said(folder)
    assert line.startswith("the searches' database was damaged (")
    assert "it was put aside as studies.db.damaged, and trials are taken from the rungs" in line
    assert database.with_name("studies.db.damaged").read_bytes() == damaged


def test_an_emptied_database_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path)
    found = found_in(run_here(folder, STUDIES, monkeypatch))
    empty(folder / "run" / "studies.db")
    assert found_in(run_here(folder, STUDIES, monkeypatch)) == found


def test_a_journal_goes_with_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("studies.db", "studies.db-journal"):
        (tmp_path / name).write_bytes(b"damaged")
    monkeypatch.setattr(databases, "_damage", lambda _database: "malformed")
    open_storage(Experiment(run_dir=tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"studies.db", "studies.db.damaged", "studies.db-journal.damaged"}


def test_a_locked_database_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(Experiment(run_dir=tmp_path))
    with closing(sqlite3.connect(tmp_path / "studies.db")) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        connect = partial(sqlite3.connect, timeout=0.1)
        monkeypatch.setattr("tune.databases.sqlite3.connect", connect)
        assert databases._damage(tmp_path / "studies.db") is None


@pytest.mark.parametrize("damage", [truncate_in_a_page, overwrite])
def test_a_damaged_database_that_was_given_is_refused(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    database = tmp_path / "mine.db"
    experiment = Experiment(run_dir=tmp_path / "run", storage=f"sqlite:///{database}")
    open_storage(experiment)
    damage(database)
    damaged = database.read_bytes()
    with pytest.raises(InputError, match="--storage must be a database that Optuna can open"):
        open_storage(experiment)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.db"]
    assert database.read_bytes() == damaged
