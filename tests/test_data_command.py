import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pytest

from apgd.cli import main
from apgd.data.hub import HubDataset
from apgd.data.prepared import folder_of
from apgd.suites.mini_vision import MiniVision
from tests.data.real_columns import FORMS, glue_copy, image_dataset


class Real(MiniVision):
    """A suite whose tasks come from data sets."""

    name = "real"

    def datasets(self) -> Mapping[str, HubDataset]:
        return {name: image_dataset(name=name) for name in ("land", "sea")}


@pytest.fixture(autouse=True)
def suites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    # Whether the hub can be reached is not what is tested here.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    known = {"real": Real(), "mini_vision": MiniVision()}
    monkeypatch.setattr("apgd.commands.data.suites", known)


def copies(root: Path, *tasks: str) -> Path:
    for task in tasks:
        FORMS["image folder"](root / task)
    return root


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip()]


def test_prepare_from_copies_then_verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copies(tmp_path / "copies", "land", "sea")
    assert main(["data", "prepare", "real", "--from", str(source)]) == 0
    header, *rows = lines(capsys.readouterr().out)
    assert header == ["task", "split", "rows", "classes", "size", "hash", "state"]
    assert [row[:4] for row in rows] == [
        [task, split, "12", "3"]
        for task in ("land", "sea")
        for split in ("train", "test", "contrast")
    ]
    assert {row[-1] for row in rows} == {"ok"}
    # The copies are not needed any more.
    (tmp_path / "copies").rename(tmp_path / "gone")
    assert main(["data", "verify", "real"]) == 0
    assert lines(capsys.readouterr().out) == [header, *rows]
    assert main(["data", "prepare", "real"]) == 0


def test_one_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = copies(tmp_path / "copies", "sea")
    assert main(["data", "prepare", "real", "--from", str(source), "--task", "sea"]) == 0
    assert main(["data", "verify", "real", "--task", "sea"]) == 0
    assert {row[0] for row in lines(capsys.readouterr().out)} == {"task", "sea"}
    assert main(["data", "verify", "real"]) == 2
    captured = capsys.readouterr()
    assert "of 6 splits of suite real, 3 are not prepared and 0 are not in order" in captured.err
    states = [(row[0], row[-1]) for row in lines(captured.out)[1:]]
    assert states == [("land", "prepared")] * 3 + [("sea", "ok")] * 3


def test_damage_is_reported_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copies(tmp_path / "copies", "land", "sea")
    arguments = ["data", "prepare", "real", "--from", str(source)]
    assert main(arguments) == 0
    path = folder_of(image_dataset(name="sea")) / "test.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:50] + b"x" + content[51:])
    assert main(["data", "verify", "real"]) == 2
    captured = capsys.readouterr()
    assert "sea, split test: test.parquet must have the hash" in captured.err
    assert "`apgd data prepare real` fetches" in captured.err
    assert main(arguments) == 0
    assert path.read_bytes() == content


def test_a_missing_copy_is_named_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copies(tmp_path / "copies", "land")
    assert main(["data", "prepare", "real", "--from", str(source)]) == 2
    assert "must hold a folder sea" in capsys.readouterr().err
    assert not folder_of(image_dataset()).exists()


def test_what_cannot_be_had_does_not_stop_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copies(tmp_path / "copies", "land")
    assert main(["data", "prepare", "real", "--from", str(source), "--task", "land"]) == 0
    capsys.readouterr()
    assert main(["data", "prepare", "real"]) == 2
    captured = capsys.readouterr()
    assert "1 of 2 data sets of suite real could not be prepared" in captured.err
    assert "hf download someone/land --repo-type dataset" in captured.err
    states = [(row[0], row[-1]) for row in lines(captured.out)[1:]]
    assert states == [("land", "ok")] * 3 + [("sea", "prepared")] * 3


@pytest.mark.parametrize("action", ["prepare", "verify"])
def test_unknown_names(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", action, "real", "--task", "space"]) == 2
    assert "unknown task 'space'; known are: land, sea" in capsys.readouterr().err
    assert main(["data", action, "mini_vision", "--task", "space"]) == 2
    assert "unknown task 'space'; known are: scenes" in capsys.readouterr().err
    assert main(["data", action, "real", "--colour"]) == 2


def test_a_rendered_suite(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "mini_vision"]) == 0
    assert "nothing to download: made on first use" in capsys.readouterr().err
    assert main(["data", "verify", "mini_vision", "--task", "shapes"]) == 0
    _, *rows = lines(capsys.readouterr().out)
    assert [(row[1], row[2]) for row in rows] == [("validation", "400"), ("test", "2400")]
    assert {" ".join(row[6:]) for row in rows} == {"ok, made now"}
    assert main(["data", "verify", "mini_vision", "--task", "shapes"]) == 0
    _, *rows = lines(capsys.readouterr().out)
    assert {" ".join(row[6:]) for row in rows} == {"ok"}


def test_numbers_instead_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apgd.suites.facts import glue_datasets

    class Texts(MiniVision):
        def datasets(self) -> Mapping[str, HubDataset]:
            return {"stsb": dataclasses.replace(glue_datasets()["stsb"], rows={})}

    monkeypatch.setattr("apgd.commands.data.suites", {"texts": Texts()})
    glue_copy(tmp_path / "stsb", "stsb", ("train", "validation"))
    assert main(["data", "prepare", "texts", "--from", str(tmp_path)]) == 0
    _, first, _ = lines(capsys.readouterr().out)
    assert first[:4] == ["stsb", "train", "10", "–"]
