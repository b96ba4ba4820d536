"""Files of weights in every form, whole and damaged."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from apgd import InputError
from apgd.checkpoints import INDEX, InMemory, load_weights, open_weights, save_weights
from tests.conftest import State, same_bits, save_shards

FORMS = ("file", "folder", "shards", "index")


def mixed() -> State:
    """Tensors of many types and shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        "z.matrix": torch.randn(3, 4, generator=generator),
        "bf16": torch.randn(4, 6, generator=generator).bfloat16(),
        "f16": torch.randn(5, generator=generator).half(),
        "f64": torch.randn(2, 2, 2, generator=generator).double(),
        "f8": torch.randn(2, 3, generator=generator).to(torch.float8_e4m3fn),
        "steps": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "special": torch.tensor([float("nan"), float("-inf"), -0.0]),
    }


def written(form: str, folder: Path, state: State) -> Path:
    if form == "file":
        save_file(state, folder / "any name.safetensors")
        return folder / "any name.safetensors"
    if form == "folder":
        save_file(state, folder / "model.safetensors")
        return folder
    save_shards(folder, state, 3)
    return folder if form == "shards" else folder / INDEX


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    state = mixed()
    weights = open_weights(written(form, tmp_path, state), "the base")
    assert weights.names() == tuple(sorted(state))
    for name, tensor in state.items():
        assert weights.shape(name) == tuple(tensor.shape)
        assert weights.dtype(name) == tensor.dtype
        assert same_bits(weights[name], tensor)


@pytest.mark.parametrize("form", FORMS)
def test_a_path_may_be_a_string(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path, mixed())
    assert same_bits(load_weights(path, "x")["bf16"], mixed()["bf16"])
    assert open_weights(str(path), "x").names() == open_weights(path, "x").names()


@pytest.mark.parametrize("form", FORMS)
def test_values_are_read_one_by_one_when_asked_for(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    class Watched:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.file: Any = safe_open(*arguments, **options)

        def __enter__(self) -> "Watched":
            self.file = self.file.__enter__()
            return self

        def __exit__(self, *_exception: object) -> None:
            self.file.__exit__(None, None, None)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> Tensor:
            read.append(name)
            value: Tensor = self.file.get_tensor(name)
            return value

    monkeypatch.setattr("apgd.checkpoints.safe_open", Watched)
    weights = open_weights(written(form, tmp_path, mixed()), "the base")
    assert [weights.shape(n) for n in weights.names()]
    assert weights.identity() is not None
    assert read == []
    assert same_bits(weights["f16"], mixed()["f16"])
    assert read == ["f16"]


def test_opening_reads_headers_alone(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    rows = 2**27
    entry = {"dtype": "F32", "shape": [rows, 256], "data_offsets": [0, rows * 256 * 4]}
    header = json.dumps({"w": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + rows * 256 * 4)  # 128 GiB of zeros that take no space
    weights = open_weights(path, "the base")
    assert weights.shape("w") == (rows, 256)
    assert weights.dtype("w") == torch.float32
    assert weights.identity() is not None


def test_a_tensor_read_does_not_change_with_its_file(tmp_path: Path) -> None:
    path = written("file", tmp_path, {"w": torch.zeros(4)})
    value = open_weights(path, "x")["w"]
    with path.open("r+b") as file:
        file.seek(-16, os.SEEK_END)
        file.write(b"\x01" * 16)
    assert torch.equal(value, torch.zeros(4))


class TestIdentity:
    def test_it_is_kept_when_a_folder_moves(self, tmp_path: Path) -> None:
        save_shards(tmp_path / "here", mixed())
        before = open_weights(tmp_path / "here", "x").identity()
        (tmp_path / "here").rename(tmp_path / "there")
        assert open_weights(tmp_path / "there", "x").identity() == before

    @pytest.mark.parametrize("change", ["value", "shape", "name"])
    def test_it_changes_with_the_weights(self, change: str, tmp_path: Path) -> None:
        path = tmp_path / "x.safetensors"
        save_file({"w": torch.zeros(2, 3)}, path)
        os.utime(path, ns=(0, 0))
        before = open_weights(path, "x").identity()
        if change == "value":
            save_file({"w": torch.ones(2, 3)}, path)
        else:
            save_file({"w": torch.zeros(3, 2)} if change == "shape" else {"v": torch.zeros(2, 3)},
                      path)  # fmt: skip
            os.utime(path, ns=(0, 0))
        assert open_weights(path, "x").identity() != before

    def test_state_dicts_have_none(self) -> None:
        assert open_weights(mixed(), "x").identity() is None


def _edit_index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def _cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def _name_file(file: str) -> Callable[[Path], object]:
    return _edit_index(lambda index: index["weight_map"].update(a=file))


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "index cut": (lambda f: _cut(f / INDEX, 20), "the index of expert x .* is damaged"),
    "index empty": (lambda f: _cut(f / INDEX, 0), "the index of expert x .* is damaged"),
    "index binary": (
        lambda f: (f / INDEX).write_bytes(b"\xff\xfe"),
        "the index of expert x .* is damaged",
    ),
    "index a list": (lambda f: (f / INDEX).write_text("[]"), "the index of expert x .* is damaged"),
    "no weight map": (
        _edit_index(lambda index: index.pop("weight_map")),
        "the index of expert x .* is damaged: 'weight_map'",
    ),
    "weight map a list": (
        _edit_index(lambda index: index.update(weight_map=["a"])),
        "the index of expert x .* is damaged",
    ),
    "weight map empty": (_edit_index(lambda index: index["weight_map"].clear()), "expert x"),
    "shard missing": (
        lambda f: (f / SECOND).unlink(),
        f"the shard {SECOND} of expert x .* does not exist",
    ),
    "shard above": (
        _name_file(f"../{FIRST}"),
        f"shards must lie beside their index, but expert x .* has ../{FIRST}",
    ),
    "shard below": (_name_file(f"sub/{FIRST}"), "must lie beside their index"),
    "shard absolute": (_name_file(f"/tmp/{FIRST}"), "must lie beside their index"),  # noqa: S108
    "shard the folder above": (_name_file(".."), "expert x"),
    "shard the folder": (_name_file("."), "expert x"),
    "shard lacks a tensor": (
        _edit_index(lambda index: index["weight_map"].update(more=FIRST)),
        f"the index of expert x .* places more in {FIRST}, which does not hold it",
    ),
    "tensor in another shard": (
        _name_file(SECOND),
        f"the index of expert x .* places a in {SECOND}, which does not hold it",
    ),
    "index lacks a tensor": (
        _edit_index(lambda index: index["weight_map"].pop("a")),
        f"{FIRST} of expert x .* holds a, which its index does not name",
    ),
    "tensor twice": (
        lambda f: save_file({"a": torch.ones(2), "b": torch.ones(2, 2)}, f / SECOND),
        f"expert x .* holds a twice: in {FIRST} and in {SECOND}",
    ),
    "shard cut": (
        lambda f: _cut(f / SECOND, -1),
        f"expert x .* is not a whole safetensors file: {SECOND}: .* may be truncated",
    ),
    "shard empty": (lambda f: _cut(f / SECOND, 0), f"not a whole safetensors file: {SECOND}"),
    "unknown type": (
        lambda f: (f / SECOND).write_bytes(
            (f / SECOND).read_bytes().replace(b'"F32"', b'"C64"').replace(b"[2,2]", b"[2,1]")
        ),
        "b of expert x .* has the type C64; known are: F64, F32",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damaged_folders_are_refused_by_the_name_of_the_culprit(
    damage: str, tmp_path: Path
) -> None:
    state = {"a": torch.ones(3), "b": torch.ones(2, 2), "c": torch.ones(1)}
    folder = save_shards(tmp_path / "x", state)
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(InputError, match=message):
        open_weights(folder, "expert x")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"the base \({tmp_path}\) holds neither .*index.json"):
        open_weights(tmp_path, "the base")


def test_a_shard_that_disappears_later_is_an_input_error(tmp_path: Path) -> None:
    folder = save_shards(tmp_path / "x", {"a": torch.ones(3), "b": torch.ones(2)})
    weights = open_weights(folder, "expert x")
    (folder / FIRST).unlink()
    with pytest.raises(InputError, match=f"{FIRST} could be read before and cannot any more"):
        weights["a"]


class Planted:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


class TestPickles:
    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.safetensors"])
    def test_a_file_is_refused_and_not_loaded(self, name: str, tmp_path: Path) -> None:
        trap = tmp_path / "trapped"
        path = tmp_path / name
        torch.save({"w": torch.ones(2, 2), "trap": Planted(trap)}, path)
        with pytest.raises(InputError, match="not a whole safetensors file.*in another format"):
            open_weights(path, "expert x")
        assert not trap.exists()
        with path.open("rb") as file:
            torch.load(file, weights_only=False)
        assert trap.exists()  # it would have been sprung

    def test_a_folder_of_them_is_refused(self, tmp_path: Path) -> None:
        torch.save({"w": torch.ones(2, 2)}, tmp_path / "pytorch_model.bin")
        with pytest.raises(InputError, match="holds neither"):
            open_weights(tmp_path, "expert x")

    def test_an_index_that_names_one_is_refused(self, tmp_path: Path) -> None:
        trap = tmp_path / "trapped"
        path = tmp_path / "pytorch_model-00001-of-00001.bin"
        torch.save({"w": Planted(trap)}, path)
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": path.name}}))
        with pytest.raises(InputError, match=f"not a whole safetensors file: {path.name}"):
            open_weights(tmp_path, "expert x")
        assert not trap.exists()


class TestInMemory:
    def test_pickling_keeps_every_bit(self) -> None:
        square = torch.arange(16.0).view(4, 4)
        state = mixed() | {"turned": square.T, "strided": square[::2, 1:], "repeated":
                           torch.ones(1, 3).expand(2, 3), "bf16 0-dim": torch.tensor(0.1).bfloat16()
                           }  # fmt: skip
        weights = InMemory("the base", state)
        again = pickle.loads(pickle.dumps(weights))  # noqa: S301
        assert again.label == "the base"
        assert again.names() == weights.names()
        for name, tensor in state.items():
            assert same_bits(again[name], tensor), name
            assert again.shape(name) == tuple(tensor.shape)
            assert again.dtype(name) == tensor.dtype

    def test_pickles_with_buffers_out_of_band(self) -> None:
        buffers: list[pickle.PickleBuffer] = []
        weights = InMemory("x", {"w": torch.arange(1000.0).bfloat16()})
        data = pickle.dumps(weights, protocol=5, buffer_callback=buffers.append)
        assert len(data) < 1000 < sum(len(buffer.raw()) for buffer in buffers)
        again = pickle.loads(data, buffers=[bytes(b.raw()) for b in buffers])  # noqa: S301
        assert same_bits(again["w"], weights["w"])

    def test_parameters_lose_their_gradients(self) -> None:
        weights = InMemory("x", {"w": torch.nn.Parameter(torch.ones(2, 2))})
        assert not weights["w"].requires_grad

    def test_tied_names_are_those_of_the_same_memory_seen_the_same_way(self) -> None:
        w = torch.ones(4, 4)
        state = {"m": w, "b": w, "z": w.view(4, 4), "turned": w.T, "half": w[:2], "copy": w.clone()}
        assert InMemory("x", state).tied == {"m": "b", "z": "b"}
        empty = torch.zeros(0, 2)
        assert InMemory("x", {"a": empty, "b": empty}).tied == {}


class TestSaving:
    def test_every_type_comes_back(self, tmp_path: Path) -> None:
        save_weights(tmp_path / "x.safetensors", mixed(), {"any": ["JSON", 1]})
        found = load_weights(tmp_path / "x.safetensors", "x")
        assert found.keys() == mixed().keys()
        assert all(same_bits(found[name], tensor) for name, tensor in mixed().items())

    def test_shared_memory_is_written_whole_for_every_name(self, tmp_path: Path) -> None:
        w = torch.arange(12.0).view(3, 4)
        state = {"w": w, "same": w, "turned": w.T, "rows": w[1:], "row": w[2], "columns": w[:, ::2]}
        save_weights(tmp_path / "x.safetensors", state)
        found = load_weights(tmp_path / "x.safetensors", "x")
        assert all(same_bits(found[name], tensor) for name, tensor in state.items())

    def test_the_same_content_is_the_same_bytes(self, tmp_path: Path) -> None:
        values = {"key": 1, "layers": [{"b": 0.1, "a": 2}], "other": "x", "more": None}
        contents = set()
        for number in range(8):
            path = tmp_path / f"{number}.safetensors"
            turned = dict(reversed(values.items())) if number % 2 else values
            save_weights(path, mixed(), turned)
            contents.add(path.read_bytes())
        assert len(contents) == 1

    def test_a_failure_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_tensors: State, path: Path, **_options: object) -> None:
            path.write_bytes(b"half a file")
            raise OSError("no space left on device")

        path = tmp_path / "x.safetensors"
        save_weights(path, {"w": torch.ones(2)})
        monkeypatch.setattr("apgd.checkpoints.save_file", full)
        with pytest.raises(OSError, match="no space left"):
            save_weights(path, {"w": torch.zeros(2)})
        assert load_weights(path, "x")["w"].tolist() == [1, 1]
        assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
