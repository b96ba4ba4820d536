import dataclasses
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from apgd.data import Split
from apgd.data.holdout import split_rows
from apgd.data.hub import hub_dataset
from apgd.data.origins import HubOrigin
from apgd.data.prepared import prepare
from apgd.data.retry import with_retries
from apgd.errors import InputError
from apgd.suites.facts import glue_datasets, vision_datasets
from tests.data.real_columns import FORMS, glue_copy, image_dataset, opened
from tests.data.small_hub import COMMIT, small_hub


def test_facts_of_the_twenty_vision_tasks() -> None:
    found = vision_datasets()
    assert list(found)[:8] == [
        "sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd",
    ]  # fmt: skip
    assert len(found) == 20
    classes = [dataset.classes for dataset in found.values()]
    assert classes == [
        397, 196, 45, 10, 10, 43, 10, 47, 102, 2, 7, 37, 10, 100, 10, 101, 10, 26, 10, 2,
    ]  # fmt: skip
    assert all(dataset.hub_id and "/" in dataset.hub_id for dataset in found.values())
    assert all(len(set(d.class_names or ())) == d.classes for d in found.values())
    corrupted = [name for name, dataset in found.items() if dataset.corruptions]
    assert corrupted == ["stanford-cars", "resisc45", "eurosat", "gtsrb"]
    assert {len(found[name].corruptions) for name in corrupted} == {7}
    assert found["svhn"].config == "cropped_digits"
    assert found["svhn"].rows == {"train": 73257, "test": 26032}
    assert found["food101"].splits[Split.TEST] == "validation"
    assert (found["cifar100"].class_names or ())[99] == "worm"


def test_facts_of_glue() -> None:
    found = glue_datasets()
    assert list(found) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
    assert {dataset.hub_id for dataset in found.values()} == {"nyu-mll/glue"}
    assert [dataset.config for dataset in found.values()] == list(found)
    assert found["mnli"].splits[Split.TEST] == "validation_matched"
    assert found["qnli"].text_columns == ("sentence", "question")
    assert found["stsb"].class_names is None
    assert found["stsb"].label_range == (0, 5)
    assert found["rte"].rows == {"train": 2490, "validation": 277}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"hub_id": None}, "either a hub id or a local folder"),
        ({"image_column": None}, "either an image column or text columns"),
        ({"text_columns": ("a",)}, "either an image column or text columns"),
        ({"class_names": None}, "either class names or a range"),
        ({"label_range": (0.0, 1.0)}, "either class names or a range"),
        ({"splits": {Split.TRAIN: "train"}}, "must name its test split"),
        ({"splits": {Split.VALIDATION: "v", Split.TEST: "t"}}, "must name its test split"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        image_dataset(**changes)


@pytest.mark.parametrize("entry", [{}, {"splits": {"test": "t"}, "colour": 1}, {"splits": 3}])
def test_a_bad_entry_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="data set x"):
        hub_dataset("x", entry)


def test_split_rows_are_pinned() -> None:
    # With another partition, what was chosen on VALIDATION may have been trained on.
    train, validation = (split_rows(s, 1000) for s in (Split.TRAIN, Split.VALIDATION))
    test = split_rows(Split.TEST, 1000)
    assert validation.shape == (100,)
    assert train[:5].tolist() == test[:5].tolist() == [44, 37, 675, 775, 947]
    assert validation[:5].tolist() == [884, 531, 89, 552, 389]
    assert sorted([*train, *validation]) == list(range(1000)) == sorted(test)
    assert split_rows(Split.VALIDATION, 60000)[:3].tolist() == [57000, 58148, 9287]


def test_split_rows_are_those_of_torch_random_split() -> None:
    import torch

    parts = torch.utils.data.random_split(
        range(73257), [73257 - 7325, 7325], generator=torch.Generator().manual_seed(0)
    )
    assert split_rows(Split.TRAIN, 73257).tolist() == list(parts[0].indices)
    assert split_rows(Split.VALIDATION, 73257).tolist() == list(parts[1].indices)


class Answer:
    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.headers = headers


class HttpError(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(f"status {status}")
        self.response = Answer(status, **headers)


def failing(errors: list[Exception]) -> Callable[[], str]:
    def action() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return action


def wrapped(cause: Exception) -> Exception:
    error = RuntimeError("the library's own words")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [HttpError(429), HttpError(500), HttpError(503), ConnectionResetError(), TimeoutError(),
     wrapped(HttpError(502))],
)  # fmt: skip
def test_transient_errors_are_tried_again(error: Exception) -> None:
    waits: list[float] = []
    assert with_retries(failing([error] * 3), waits.append) == "done"
    assert waits == [1, 2, 4]


@pytest.mark.parametrize(
    "error",
    [HttpError(404), HttpError(401), ValueError("no"), OfflineModeIsEnabled("offline"),
     wrapped(HttpError(403))],
)  # fmt: skip
def test_other_errors_are_not(error: Exception) -> None:
    waits: list[float] = []
    with pytest.raises(type(error)):
        with_retries(failing([error]), waits.append)
    assert waits == []


def test_the_servers_wish_is_respected_within_limits() -> None:
    waits: list[float] = []
    errors: list[Exception] = [HttpError(429, **{"Retry-After": t}) for t in ("7", "0", "9999")]
    with_retries(failing([*errors, HttpError(429, **{"Retry-After": "Fri"})]), waits.append)
    assert waits == [7, 2, 120, 8]


@pytest.mark.parametrize(("error", "waited"), [(HttpError(429), 7), (ConnectionError(), 3)])
def test_retries_end(error: Exception, waited: int) -> None:
    waits: list[float] = []
    with pytest.raises(type(error)):
        with_retries(failing([error] * 99), waits.append)
    assert len(waits) == waited


class Hub:
    """Stands in for `load_dataset` and for the question which commit is meant."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load(self, *arguments: Any, **options: Any) -> Any:
        self.asked.append((arguments, options))
        if self.errors:
            raise self.errors.pop(0)
        return opened(options["split"])

    def origin(self, tmp_path: Path, **changes: Any) -> HubOrigin:
        return HubOrigin(
            image_dataset(**changes),
            tmp_path,
            load=self.load,
            resolve=lambda _, revision: f"commit of {revision}",
            sleep=lambda _: None,
        )


def test_all_splits_come_from_one_commit_and_no_code_is_asked_for(tmp_path: Path) -> None:
    hub = Hub(HttpError(429), HttpError(429))
    origin = hub.origin(tmp_path, config="rgb", revision="v2")
    assert origin.split("train").rows == 12
    assert len(hub.asked) == 3
    arguments, options = hub.asked[-1]
    assert arguments == ("someone/land", "rgb")
    assert options == {
        "split": "train", "revision": "commit of v2", "cache_dir": str(tmp_path),
    }  # fmt: skip
    assert origin.describe()["commit"] == "commit of v2"


def test_without_an_answer_the_caches_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    (tmp_path / "someone___land").mkdir()

    def unreachable(_id: str, _revision: str | None) -> str:
        raise ConnectionError("no route")

    hub = Hub()
    waits: list[float] = []
    origin = HubOrigin(
        image_dataset(), tmp_path, load=hub.load, resolve=unreachable, sleep=waits.append
    )
    assert waits == [1, 2, 4]
    assert origin.split("test").rows == 12
    assert hub.asked[0][1] == {"split": "test", "revision": None}


def test_an_unknown_data_set_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        Hub(HttpError(404)).origin(tmp_path).split("train")
    message = str(caught.value)
    for part in ("someone/land", "status 404", "hf download someone/land --repo-type dataset",
                 "apgd data prepare SUITE --task land --from DIR"):  # fmt: skip
        assert part in message


def hub_cache(home: Path, *missing: str) -> None:
    """A repository in the layout of the hub's cache, without some files."""
    repository = home / "hub" / "datasets--someone--land"
    data = repository / "snapshots" / COMMIT / "data"
    data.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for split in ("train", "test", "contrast"):
        for i in range(2):
            name = f"{split}-{i:05d}-of-00002.parquet"
            if name not in missing:
                opened(split).shard(2, i, contiguous=True).to_parquet(data / name)


OFFLINE = """
    import json, sys
    from apgd.data.examples import image_examples
    from apgd.data.prepared import prepare
    from apgd.data import Split
    from apgd.errors import InputError
    from tests.data.real_columns import image_dataset
    try:
        prepared = prepare(image_dataset())
        shape = image_examples(image_dataset(), Split.TEST, size=8).images.shape
        print(json.dumps([prepared.manifest["splits"]["test"]["origin"], shape]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


def offline(tmp_path: Path, program: str = OFFLINE, **environment: str) -> Any:
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | {
            "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "APGD_CACHE": str(tmp_path / "apgd"),
        } | environment,
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(answer.stdout.splitlines()[-1])


def test_from_a_hub_then_from_its_cache_then_from_what_was_prepared(tmp_path: Path) -> None:
    FORMS["parquet"](tmp_path / "repository")
    (tmp_path / "repository" / "README.md").write_text("---\nlicense: mit\n---\n")
    with small_hub("someone/land", tmp_path / "repository", busy=1) as (address, requests):
        first = offline(tmp_path, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
        assert sum("GET" in request and "parquet" in request for request in requests) == 6
        told = len(requests)
        # Another node that shares the hub's cache, and then this one after its cache was cleaned.
        second = offline(tmp_path, HF_ENDPOINT=address, APGD_CACHE=str(tmp_path / "other"))
        (tmp_path / "hf").rename(tmp_path / "gone")
        third = offline(tmp_path, HF_ENDPOINT=address)
        assert len(requests) == told
    assert first == second == third
    origin, shape = first
    assert origin == {"kind": "hub", "hub_id": "someone/land", "config": None, "commit": COMMIT}
    assert shape == [12, 8, 8, 3]
    assert not list(tmp_path.rglob("scratch"))


@pytest.fixture
def no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of both caches."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf" / "datasets")
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "apgd"))
    return tmp_path / "hf"


def test_offline_and_missing_says_what_and_how(no_connection: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare(image_dataset())
    message = str(caught.value)
    for part in ("'train'", "data set land", "not in the hub's cache", "hf download someone/land",
                 "--from DIR"):  # fmt: skip
        assert part in message


def test_offline_with_a_download_that_was_cut_short(no_connection: Path) -> None:
    # The files that are there would make a smaller data set without a word.
    hub_cache(no_connection, "test-00001-of-00002.parquet")
    with pytest.raises(InputError, match="test-00001-of-00002.parquet is missing"):
        prepare(image_dataset())


def test_offline_the_commit_that_is_meant_comes_first(no_connection: Path) -> None:
    hub_cache(no_connection)
    snapshots = no_connection / "hub" / "datasets--someone--land" / "snapshots"
    newer = shutil.copytree(snapshots / COMMIT, snapshots / "newer")
    entry = prepare(image_dataset()).manifest["splits"]["train"]
    assert entry["origin"]["commit"] == COMMIT
    # Where only a part of that commit is there, all splits come from one that is whole.
    (snapshots / COMMIT / "data" / "test-00000-of-00002.parquet").unlink()
    again = prepare(image_dataset(name="again")).manifest["splits"]
    assert {entry["origin"]["commit"] for entry in again.values()} == {newer.name}


def test_offline_from_the_cache_of_datasets(tmp_path: Path) -> None:
    program = """
        import json
        from pathlib import Path
        from apgd.data.origins import HubOrigin
        from tests.data.real_columns import image_dataset, opened
        import datasets, tempfile

        root = Path(datasets.config.HF_DATASETS_CACHE) / "someone___land" / "default" / "0.0.0"
        root = root / "0123456789abcdef"
        root.mkdir(parents=True)
        made = opened("train")
        writer = datasets.arrow_writer.ArrowWriter(
            path=str(root / "land-train.arrow"), features=made.features)
        for row in made.cast_column("image", datasets.Image(decode=False)):
            writer.write(row)
        writer.finalize()
        info = made.info
        info.splits = datasets.SplitDict.from_split_dict(
            {"train": datasets.SplitInfo("train", num_examples=len(made))}, "land")
        info.builder_name, info.dataset_name, info.config_name = "parquet", "land", "default"
        info.version = "0.0.0"
        info.write_to_directory(str(root))
        origin = HubOrigin(image_dataset(), Path(tempfile.mkdtemp()))
        print(json.dumps(origin.split("train").rows))
    """
    assert offline(tmp_path, program) == 12


def test_offline_configuration_of_a_text_data_set(tmp_path: Path) -> None:
    repository = tmp_path / "hf" / "hub" / "datasets--nyu-mll--glue"
    for task in ("cola", "stsb"):
        glue_copy(repository / "snapshots" / COMMIT, task, ("train", "validation"))
    (repository / "snapshots" / COMMIT / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {task}\n  data_files:\n"
            f"  - split: train\n    path: {task}/train-*\n"
            f"  - split: validation\n    path: {task}/validation-*\n"
            for task in ("cola", "stsb")
        )
        + "---\n"
    )
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    program = """
        import dataclasses, json
        from apgd.data import Split
        from apgd.data.examples import text_examples
        from apgd.data.prepared import prepare
        from apgd.suites.facts import glue_datasets
        found = []
        for task in ("cola", "stsb"):
            dataset = dataclasses.replace(glue_datasets()[task], rows={})
            prepare(dataset)
            examples = text_examples(dataset, Split.TEST)
            found.append([len(examples.texts[0]), sorted(set(examples.labels.tolist()))])
        print(json.dumps(found))
    """
    (_, classes), (columns, scores) = offline(tmp_path, program)
    assert classes == [0, 1]
    assert columns == 2
    assert scores == pytest.approx([0.0, 4.6], abs=1e-6)


def test_own_data_are_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no hub id"):
        HubOrigin(image_dataset(hub_id=None, local=tmp_path), tmp_path)


def test_every_fact_may_be_replaced_by_a_local_copy(tmp_path: Path) -> None:
    own = dataclasses.replace(vision_datasets()["mnist"], hub_id=None, local=tmp_path)
    assert own.classes == 10
