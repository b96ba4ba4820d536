import dataclasses
from pathlib import Path

import numpy as np
import pytest

from apgd import InputError
from apgd.errors import DamagedError
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
    with pytest.raises(InputError, match=f"{RECORD.key}.json must be a JSON object"):
        store.get(Kind.EVALUATION, RECORD.key)


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RecordStore(tmp_path).add(dataclasses.replace(RECORD, scores={"x": float("nan")}))
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.part"))


def test_every_flipped_bit_of_a_record_is_found(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.add(RECORD, {"test/signs": np.arange(9) % 2 == 0})
    path = tmp_path / "records" / "evaluation" / f"{RECORD.key}.json"
    whole = path.read_bytes()
    meant = store.get(Kind.EVALUATION, RECORD.key)
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = store.get(Kind.EVALUATION, RECORD.key)
        except InputError:
            continue
        assert found == meant, f"byte {at}"  # a space that became another one, for example
    path.write_bytes(whole)
    assert store.put_damaged_aside() == []


def test_what_is_damaged_is_put_aside_and_said(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    other = dataclasses.replace(RECORD, seed=7)
    for record in (RECORD, other):
        store.add(record, {"test/signs": np.arange(9) % 2 == 0})
    folder = tmp_path / "records" / "evaluation"
    answers = folder / f"{RECORD.key}.npz"
    answers.write_bytes(answers.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="must hold the answers of a record"):
        store.answers(RECORD)
    (folder / f"{other.key}.json").write_text("{")
    said = store.put_damaged_aside()
    assert len(said) == 2
    assert all("it was put aside as" in one and "is computed again" in one for one in said)
    assert store.get(Kind.EVALUATION, RECORD.key) is None
    assert store.get(Kind.EVALUATION, other.key) is None
    assert store.put_damaged_aside() == []
    assert len(list(folder.glob("*.json.damaged"))) == 2
