"""The disk is full: one sentence, nothing half-written, and with room the same numbers."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from apgd.checkpoints import load_weights, save_weights
from apgd.data import Split
from apgd.errors import DiskFullError
from apgd.files import write_json
from apgd.finetune import expert_spec, find_expert, finetune
from apgd.suites import FinetuneSettings, suites
from tests.faults.small_disk import small_disk
from tests.faults.small_run import QUICK, SmallRun, assert_same
from tune.records import Kind, Record, RecordStore, Variant

Survived = Callable[..., None]
_CHECKPOINT = "full disk while a checkpoint is written"
_RECORD = "full disk while a record is written"
RECORD = Record(
    kind=Kind.EVALUATION,
    method="ties",
    variant=Variant.PUBLISHED,
    seed=0,
    params={"scaling": 0.3},
    inputs={"base": "a" * 64},
    scores={"test/signs": 0.5},
)


def is_full(error: DiskFullError, path: Path) -> bool:
    return (error.errno, error.filename) == (errno.ENOSPC, str(path)) and str(error) == (
        f"the disk of {path} is full (No space left on device); make room there and run the same "
        f"command again, which goes on from here"
    )


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        path = disk.folder / "weights.safetensors"
        old = {"w": torch.arange(1000.0)}
        save_weights(path, old)
        disk.fill(free=2**14)
        with pytest.raises(DiskFullError) as caught:
            save_weights(path, {"w": torch.zeros(2**14)})
        assert is_full(caught.value, path)
        assert torch.equal(load_weights(path, "weights")["w"], old["w"])
        with pytest.raises(DiskFullError) as caught:
            write_json(disk.folder / "new.json", "x" * 2**15)
        assert is_full(caught.value, disk.folder / "new.json")
        assert sorted(p.name for p in disk.folder.iterdir()) == ["filler", "weights.safetensors"]


@pytest.mark.fault(_RECORD)
def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path, survived: Survived) -> None:
    answers = {"test/signs": np.random.default_rng(0).random(20_000)}
    with small_disk(tmp_path / "disk", mebibytes=1) as disk:
        store = RecordStore(disk.folder)
        disk.fill(free=2**15)
        with pytest.raises(DiskFullError):
            store.add(RECORD, answers)
        assert store.get(RECORD.kind, RECORD.key) is None
        disk.make_room()
        store.add(RECORD, answers)
        assert store.put_damaged_aside() == []
        assert np.array_equal(store.answers(RECORD)["test/signs"], answers["test/signs"])
    survived(_RECORD)


@pytest.mark.fault(_CHECKPOINT)
def test_training_goes_on_when_there_is_room(tmp_path: Path, survived: Survived) -> None:
    suite = suites["mini_vision"]
    settings = FinetuneSettings(steps=6, batch_size=8, learning_rate=1e-4, checkpoint_every=2)
    data = suite.examples("signs", Split.TRAIN).sha256
    spec = expert_spec(suite, "signs", 0, settings, data)
    whole = finetune(suite, spec, tmp_path / "whole")
    with small_disk(tmp_path / "disk", mebibytes=64) as disk:

        def fill(done: int, _total: int) -> None:
            if done == 3:
                disk.fill(free=2**16)

        with pytest.raises(DiskFullError) as caught:
            finetune(suite, spec, disk.folder, report=fill)
        checkpoint = spec.folder(disk.folder) / "training.safetensors"
        assert is_full(caught.value, checkpoint)
        assert [p.name for p in checkpoint.parent.iterdir()] == [checkpoint.name]
        disk.make_room()
        again = finetune(suite, spec, disk.folder)
        assert again.manifest["resumed_at_step"] == 2
        assert again.sha256 == whole.sha256
        assert find_expert(spec, disk.folder) is not None
    survived(_CHECKPOINT)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.fault(_CHECKPOINT)
@pytest.mark.fault(_RECORD)
def test_a_run_ends_with_a_sentence_and_goes_on_when_there_is_room(
    quick: Path, tmp_path: Path, survived: Survived
) -> None:
    with small_disk(tmp_path / "disk", mebibytes=400) as disk:
        run = SmallRun(disk.folder, QUICK, disk.within)
        run.start().wait_for_log("✓ data")
        disk.fill(free=2**17)
        output = run.end(1).splitlines()
        sentence = "make room there and run the same command again, which goes on from here"
        (line,) = [line for line in output if line.startswith("error: the disk of ")]
        assert f"{tmp_path}/disk/experts/" in line
        assert "training.safetensors is full (No space left on device)" in line
        assert line.endswith(sentence)
        assert f"ended by DiskFullError: {line.removeprefix('error: ')}" in run.log()
        assert not list(disk.folder.rglob("*.part"))
        disk.make_room()
        survived(_CHECKPOINT)

        run.start().wait_for_log("✓ experts")
        disk.fill(free=2**14)
        (line,) = [x for x in run.end(1).splitlines() if x.startswith("error: the disk of ")]
        assert line.endswith(sentence)
        assert not list(disk.folder.rglob("*.part"))
        disk.make_room()
        run.start().end()
        assert_same(disk.folder, quick)
        survived(_RECORD)
