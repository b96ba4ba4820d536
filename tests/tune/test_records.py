import dataclasses
from pathlib import Path

import numpy as np
import pytest

from apgd import InputError
from tune.records import Kind, Record, RecordStore, Variant

RECORD = Record(
    kind=Kind.EVALUATION,
    method="doge_ta",
    variant=Variant.TUNED,
    seed=1,
    params={"eta": 0.1, "basis_size": None},
    inputs={"data": "abc"},
    scores={"test/signs": 0.4},
)


def test_round_trip_with_correctness(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    hits = np.array([True, False, False, True, False, True, True, False, True])
    store.add(RECORD, {"test/signs": hits})
    found = store.get(Kind.EVALUATION, RECORD.key)
    assert found == RECORD
    assert np.array_equal(store.answers(RECORD)["test/signs"], hits)
    assert list(store.all(Kind.EVALUATION)) == [RECORD]
    assert store.get(Kind.TRIAL, RECORD.key) is None


def test_key_follows_what_determines_the_result() -> None:
    same = dataclasses.replace(RECORD, scores={}, seconds={"merge": 1.0}, details={"x": 1})
    assert same.key == RECORD.key
    for change in (
        {"method": "ties"},
        {"seed": 2},
        {"params": {"eta": 0.2, "basis_size": None}},
        {"inputs": {"data": "abd"}},
        {"kind": Kind.TRIAL},
        {"variant": Variant.PUBLISHED},
    ):
        assert dataclasses.replace(RECORD, **change).key != RECORD.key


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.add(RECORD)
    path = tmp_path / "records" / "evaluation" / f"{RECORD.key}.json"
    path.write_text(path.read_text()[:30])
    with pytest.raises(InputError, match=f"{RECORD.key}.json is not a record"):
        store.get(Kind.EVALUATION, RECORD.key)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RecordStore(tmp_path).add(dataclasses.replace(RECORD, scores={"x": float("nan")}))
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.part"))
