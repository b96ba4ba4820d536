"""SQLite databases of a run folder, which hold nothing that is not also in its files."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from apgd.files import put_aside


def put_damaged_aside(
    database: Path, what: str, instead: str, say: Callable[[str], None] = lambda _sentence: None
) -> None:
    """Rename a database that is damaged, so that a new one takes its place.

    Args:
        database: where it is, if it is there; no connection to it may be open.
        what: what the sentence calls it.
        instead: what happens then, for the sentence.
        say: called with the sentence.
    """
    damage = _damage(database) if database.exists() else None
    if damage is None:
        return
    aside = put_aside(database)
    for ending in ("-journal", "-wal", "-shm"):  # which belong to the damaged one
        beside = database.with_name(f"{database.name}{ending}")
        if beside.exists():
            put_aside(beside)
    say(f"{what} was damaged ({damage}); it was put aside as {aside.name}, and {instead}")


def _damage(database: Path) -> str | None:
    """What SQLite finds wrong with a file; None where it is whole, or cannot be asked."""
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as connection:
            # Its pages, in milliseconds for thousands of trials; up to the first that is wrong.
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        # Others, as of one that is locked or may not be written to, are told when it is opened.
        wrong = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        return str(error) if wrong else None
    return None if found == "ok" else " ".join(str(found).split())
