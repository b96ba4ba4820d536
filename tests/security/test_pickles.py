"""A pickle that lies where a file of ours should be is never run."""

import ast
import io
import json
import os
import pickle
import sqlite3
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

import apgd
import experiments
import tune
from apgd import InputError, merge
from apgd.checkpoints import load_weights, read_metadata
from apgd.data import ImageExamples, Split
from apgd.data.rendered import RenderedStore
from apgd.finetune import expert_spec, find_expert, finetune
from apgd.hub import PYTORCH
from apgd.suites import FinetuneSettings, suites, with_tasks
from tests.tune.synthetic_run import AXES, TITLES, write_run
from tune.experiment import Experiment, check, run_id
from tune.records import Kind, RecordStore
from tune.report import build_report
from tune.search.storage import open_storage

SUITE = suites["mini_vision"]
TINY = FinetuneSettings(steps=2, batch_size=4, learning_rate=1e-4, checkpoint_every=1)


class _Bomb:
    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.sign),)


def bombs(sign: Path) -> dict[str, bytes]:
    """The same bomb in every wrapping that some reader would unpack."""
    plain = pickle.dumps(_Bomb(sign), 2)
    in_zip = io.BytesIO()
    with zipfile.ZipFile(in_zip, "w") as archive:
        archive.writestr("archive/data.pkl", plain)
        archive.writestr("archive/version", "3")
    array, arrays = io.BytesIO(), io.BytesIO()
    content = np.empty(1, dtype=object)
    content[0] = _Bomb(sign)
    np.save(array, content, allow_pickle=True)
    np.savez(arrays, **{"test/signs": content, "images": content})
    return {
        "pickle": plain,
        "torch": in_zip.getvalue(),
        "npy": array.getvalue(),
        "npz": arrays.getvalue(),
    }


@pytest.fixture(params=["pickle", "torch", "npy", "npz"])
def plant(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Puts a bomb in a file's place; fails where it went off."""
    sign = tmp_path / "it-was-run"
    content = bombs(sign)[request.param]

    def put(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    yield put
    assert not sign.exists()


def test_the_bombs_go_off_where_they_are_let(tmp_path: Path) -> None:
    for number, (kind, content) in enumerate(bombs(tmp_path / "sign").items()):
        file = tmp_path / f"{number}"
        file.write_bytes(content)
        if kind == "pickle":
            pickle.loads(content)  # noqa: S301
        elif kind == "npy":
            np.load(file, allow_pickle=True)
        else:
            continue
        (tmp_path / "sign").rmdir()


def test_records_and_reports(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    write_run(tmp_path / "run", examples=10, trials=1)
    store = RecordStore(tmp_path / "run")
    record = next(store.all(Kind.EVALUATION))
    path = store.root / "evaluation" / f"{record.key}.npz"
    plant(path)
    with suppress(InputError):
        store.answers(record)
    with suppress(Exception):
        build_report(tmp_path / "run", titles=TITLES, axes=AXES, samples={})
    plant(path.with_suffix(".json"))
    with pytest.raises(InputError):
        list(store.all(Kind.EVALUATION))
    plant(tmp_path / "run" / "manifest.json")
    with pytest.raises(InputError):
        build_report(tmp_path / "run", titles=TITLES, axes=AXES, samples={})
    plant(tmp_path / "run" / "experiment.json")
    with pytest.raises(InputError):
        run_id(tmp_path / "run")


def test_databases(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    experiment = Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    check(experiment)
    plant(tmp_path / "given.db")
    with pytest.raises(InputError, match="must be a database"):
        open_storage(replace(experiment, storage=f"sqlite:///{tmp_path}/given.db"))
    plant(tmp_path / "run" / "studies.db")
    open_storage(experiment)  # it is put aside
    assert (tmp_path / "run" / "studies.db.damaged").exists()
    from tune.tracking import synchronise

    with pytest.raises(InputError, match="not a database"):
        synchronise(replace(experiment, tracking_uri=f"sqlite:///{tmp_path}/given.db"))
    plant(tmp_path / "run" / "mlflow.db")
    synchronise(experiment)
    assert (tmp_path / "run" / "mlflow.db.damaged").exists()


def test_what_is_inside_of_a_database_of_studies(tmp_path: Path) -> None:
    experiment = Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts")
    check(experiment)
    storage = open_storage(experiment)
    study = optuna.create_study(storage=storage, study_name="ties/seed0")
    study.set_user_attr("a", 1)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    sign = tmp_path / "it-was-run"
    bomb = pickle.dumps(_Bomb(sign), 0).decode("latin-1")
    with sqlite3.connect(tmp_path / "run" / "studies.db") as database:
        tables = [row[0] for row in database.execute("select name from sqlite_master")]
        for table in (t for t in tables if t.endswith("attributes")):
            database.execute(f"update {table} set value_json = ?", (bomb,))  # noqa: S608
        database.execute("update trial_params set distribution_json = ?", (bomb,))
    with suppress(ValueError, KeyError):
        again = optuna.load_study(storage=open_storage(experiment), study_name="ties/seed0")
        _ = again.user_attrs, again.trials
    assert not sign.exists()


def test_experts_and_their_checkpoints(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    spec = expert_spec(SUITE, "signs", 0, TINY, SUITE.examples("signs", Split.TRAIN).sha256)
    folder = spec.folder(tmp_path / "experts")
    plant(folder / "training.safetensors")
    # It is put aside, and the training begins with its first step.
    trained = finetune(SUITE, spec, tmp_path / "experts")
    assert trained.manifest["resumed_at_step"] == 0
    assert "put aside" in trained.manifest["events"][0]
    plant(folder / "expert.json")
    plant(folder / "manifest.json")
    plant(folder / "weights.safetensors")
    with suppress(InputError):
        find_expert(spec, tmp_path / "experts")
    with pytest.raises(InputError):
        load_weights(folder / "weights.safetensors", "the expert")


def test_weights_of_a_merge(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    for name in ("x.safetensors", "x.pt", "x.bin", f"folder/{PYTORCH}", "shards/model.safetensors"):
        plant(tmp_path / name)
        with pytest.raises(InputError):
            merge("ties", SUITE.base_path(), {"a": tmp_path / name})
        with pytest.raises(InputError):
            read_metadata(tmp_path / name)
    plant(tmp_path / "shards" / "model.safetensors.index.json")
    with pytest.raises(InputError):
        load_weights(tmp_path / "shards", "shards")
    plant(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    plant(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(InputError):
        merge("ties", SUITE.base_path(), {"a": tmp_path / "adapter"})


def test_caches(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    made = ImageExamples(images, np.zeros(2, np.int64))
    store = RenderedStore(tmp_path)
    store.get("x", made.sha256, lambda: made)
    for name in ("images.npy", "labels.npy"):
        (file,) = tmp_path.rglob(name)
        plant(file)
        again = RenderedStore(tmp_path).get("x", made.sha256, lambda: made)
        assert again.sha256 == made.sha256


def test_folders_of_data(
    tmp_path: Path, plant: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    sign = tmp_path / "it-was-run"
    for number, names in enumerate(
        (
            ("train.parquet", "test.parquet"),
            ("train.arrow", "test.arrow", "state.json", "dataset_info.json"),
            ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"),
            ("train.pkl", "test.pkl", "cache.pickle"),
        )
    ):
        folder = tmp_path / f"data{number}"
        for name in names:
            plant(folder / name)
        (folder / f"data{number}.py").write_text(f"import os; os.mkdir({str(sign)!r})")
        with suppress(Exception):
            suite = suites[with_tasks("mini_vision", (f"own={folder}",))]
            suite.examples("own", Split.TEST)[:]  # type: ignore[index]


# ---- nobody else reads pickles, or runs what came from outside

_OWN_READER = "apgd/pickled.py"
_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "_pickle"}
_CALLS = {"eval", "exec", "compile", "__import__"}


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for package in (apgd, tune, experiments):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            yield f"{root.name}/{path.relative_to(root)}", ast.parse(path.read_text())


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(tree: ast.Module) -> list[str]:
    """What a module does that only the reader of pickles may do."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in _MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = _dotted(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in _CALLS:
                found.append(name)
            if name.endswith("torch.load") and given.get("weights_only") != "True":
                found.append(name)
            if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                found.append(name)
            if name in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                found.append(name)
            if "trust_remote_code" in given:
                found.append("trust_remote_code")
            if given.get("allow_pickle") == "True" or given.get("shell") == "True":
                found.append(name)
    return found


def test_nobody_but_the_reader_of_pickles_reads_them() -> None:
    found = {path: list_ for path, tree in _sources() if (list_ := offences(tree))}
    found.pop(_OWN_READER, None)
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "eval(text)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_search_for_them_finds_each(line: str) -> None:
    assert offences(ast.parse(line))
