"""Checkpoints of other projects: read without running them, converted strictly."""

import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from apgd import pickled
from apgd.checkpoints import load_weights, read_metadata, save_weights
from apgd.cli import main
from apgd.convert import Part, convert
from apgd.errors import InputError
from apgd.external import _stated_family
from apgd.files import sha256_file
from apgd.models.clip_geometry import GEOMETRIES, Activation
from apgd.models.clip_hub import open_clip_clip, transformers_clip, vision_config
from apgd.models.clip_layouts import PROJECTION, to_canonical, whole_to_canonical
from apgd.pickled import Refused, extract
from apgd.published import Family
from tests.conftest import same_bits
from tests.models.conftest import TINY, State, reduced


def _same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[n], second[n]) for n in first)


@pytest.fixture
def image_encoder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class of a module that the process which converts cannot import, like other projects'."""
    module = types.ModuleType("src.modeling")
    monkeypatch.setitem(sys.modules, "src", types.ModuleType("src"))
    monkeypatch.setitem(sys.modules, "src.modeling", module)

    class ImageEncoder(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.train_preprocess = open_clip.image_transform(224, is_train=True)
            self.val_preprocess = open_clip.image_transform(224, is_train=False)
            self.cache_dir = None
            self.register_buffer("passing", torch.zeros(3), persistent=False)
            if hasattr(model, "transformer"):
                del model.transformer

    ImageEncoder.__module__, ImageEncoder.__qualname__ = "src.modeling", "ImageEncoder"
    module.ImageEncoder = ImageEncoder  # type: ignore[attr-defined]
    return ImageEncoder


def test_a_module_of_an_unknown_class_converts(
    image_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = open_clip_clip(TINY)
    expected = to_canonical(model.visual.state_dict())
    torch.save(image_encoder(model), tmp_path / "finetuned.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "finetuned.pt", weights_only=True)
    monkeypatch.setenv("SECRET_TOKEN", "x")
    out = tmp_path / "out.safetensors"
    done = convert(tmp_path / "finetuned.pt", out, geometry=TINY)
    assert _same(load_weights(out, "converted"), expected)
    assert done.layout.wrapper == "model."
    assert "token_embedding.weight" in done.layout.dropped
    assert done.parameters == sum(tensor.numel() for tensor in expected.values())
    assert read_metadata(out) == {
        "source": "finetuned.pt",
        "source_sha256": sha256_file(tmp_path / "finetuned.pt"),
        "source_layout": "open_clip, vision, names like model.visual.…",
        "model": "tiny",
        "base_model": "openai/clip-vit-base-patch32",
        "activation": "quick_gelu",
    }


def test_a_module_with_the_exact_gelu_is_refused(image_encoder: Any, tmp_path: Path) -> None:
    model = open_clip_clip(replace(TINY, activation=Activation.GELU))
    torch.save(image_encoder(model), tmp_path / "finetuned.pt")
    with pytest.raises(InputError, match="must use quick_gelu, .* is said to use gelu"):
        convert(tmp_path / "finetuned.pt", tmp_path / "out.safetensors", geometry=TINY)
    assert not (tmp_path / "out.safetensors").exists()


def test_real_sizes_convert_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    geometry = GEOMETRIES["ViT-B-32"]
    visual = open_clip_clip(replace(geometry, text=reduced("ViT-B-32", vision=1).text)).visual
    state = {f"module.visual.{n}": t.half() for n, t in visual.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(tmp_path / "a.pt"), str(out)]) == 0
    assert "ViT-B-32, 87849216 parameters, quick_gelu" in capsys.readouterr().out
    expected = to_canonical({n: t.half() for n, t in visual.state_dict().items()})
    assert _same(load_weights(out, "converted"), expected)
    assert main(["convert", str(tmp_path / "a.pt"), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    arguments = ["convert", str(out), str(tmp_path / "b.safetensors"), "--model", "ViT-L-14"]
    assert main(arguments) == 2
    assert "as ViT-L-14 has it" in capsys.readouterr().err


def test_files_of_either_format_convert_alike(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = transformers_clip(TINY)
    whole = whole_to_canonical(model.state_dict())
    model.save_pretrained(tmp_path / "folder")
    state = {**model.state_dict(), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save(state, tmp_path / "new.bin")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    save_weights(tmp_path / "file.safetensors", state)
    for name in ("folder", "new.bin", "old.bin", "file.safetensors"):
        out = tmp_path / f"{name}-whole.safetensors"
        convert(tmp_path / name, out, part=Part.WHOLE, geometry=TINY)
        assert _same(load_weights(out, name), whole)
    convert(tmp_path / "folder", tmp_path / "vision.safetensors", geometry=TINY)
    assert _same(load_weights(tmp_path / "vision.safetensors", "v"), to_canonical(whole))


def test_the_bases_projection_completes_a_vision_model(tmp_path: Path) -> None:
    state = CLIPVisionModel(vision_config(TINY)).state_dict()
    save_weights(tmp_path / "expert.safetensors", state)
    save_weights(tmp_path / "base.safetensors", transformers_clip(TINY).state_dict())
    out = tmp_path / "out.safetensors"
    with pytest.raises(InputError, match=r"must hold visual_projection\.weight of shape"):
        convert(tmp_path / "expert.safetensors", out, geometry=TINY)
    convert(tmp_path / "expert.safetensors", out, geometry=TINY, base=tmp_path / "base.safetensors")
    base = load_weights(tmp_path / "base.safetensors", "base")
    assert torch.equal(load_weights(out, "out")[PROJECTION], base[PROJECTION])
    with pytest.raises(InputError, match=r"must hold logit_scale|must hold text_model"):
        convert(out, tmp_path / "whole.safetensors",
                part=Part.WHOLE, geometry=TINY)  # fmt: skip


class _Call:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("kind", ["system", "eval", "write", "open", "nested", "partial"])
def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, kind: str, wrapped: bool
) -> None:
    import functools

    sign = tmp_path / "was-run"
    attack = {
        "system": _Call(os.system, f"touch {sign}"),
        "eval": _Call(eval, f"open({str(sign)!r}, 'w')"),
        "write": _Call(Path.write_text, sign, "x"),
        "open": _Call(io.open, str(sign), "w"),
        "nested": _Call(getattr, _Call(__import__, "os"), "system"),
        "partial": _Call(_Call(functools.partial, os.system, f"touch {sign}")),
    }[kind]
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        value = OrderedDict(weight=attack) if wrapped else attack
        archive.writestr("bad/data.pkl", _dumps(value, 2))
    with pytest.raises(Refused, match=r"asks to call .*nothing of it was run|must hold a module"):
        extract(tmp_path / "bad.pt", tmp_path / "out")
    assert not sign.exists()


def _dumps(value: Any, protocol: int) -> bytes:
    if isinstance(value, _Call) and isinstance(value.call[0], _Call):
        # A call of what a call returned, which `pickle` refuses to write.
        inner = pickle.dumps(value.call[0], protocol)
        return inner[:-1] + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.STOP
    if isinstance(value, OrderedDict) and isinstance(value["weight"], _Call):
        inner = _dumps(value["weight"], protocol)
        start = pickle.EMPTY_DICT + pickle.dumps("weight", protocol)[2:-1]
        return inner[:2] + start + inner[2:-1] + pickle.SETITEM + pickle.STOP
    return pickle.dumps(value, protocol)


@pytest.mark.parametrize("name", ["system", "eval"])
def test_the_process_that_reads_tells_why_it_refuses(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sign = tmp_path / "was-run"
    attack = {
        "system": _Call(os.system, f"touch {sign}"),
        "eval": _Call(eval, f"open({str(sign)!r}, 'w')"),
    }
    torch.save({"weight": torch.ones(2), "bad": attack[name]}, tmp_path / "bad.pt")
    arguments = ["convert", str(tmp_path / "bad.pt"), str(tmp_path / "out.safetensors")]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert f"bad.pt was refused: it asks to call {_named(attack[name])}, and only" in said
    assert not sign.exists()
    # In the old format torch.load itself refuses it.
    torch.save(attack[name], tmp_path / "bad.pt", _use_new_zipfile_serialization=False)
    assert main(arguments) == 2
    assert (
        "nor a state dict that torch.load reads with weights_only=True" in capsys.readouterr().err
    )
    assert not sign.exists()


def test_a_refusal_is_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickled, "_limit", lambda *_args, **_names: None)  # this is no process
    content = b"\x80\x02cos\n\x1b[31msystem\xc3\xa9" + b"x" * 600 + b"\n)R."
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("bad/data.pkl", content)
    assert pickled.main([str(tmp_path / "bad.pt"), str(tmp_path / "out")]) == pickled.REFUSED
    said = capsys.readouterr().err
    assert said.startswith("it asks to call os.?[31msystem\\xe9xxx")
    assert len(said) < 510


def _named(attack: _Call) -> str:
    function = attack.call[0]
    return f"{function.__module__}.{function.__name__}".replace("__builtin__", "builtins")


def test_the_process_that_reads_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 1000)
    program = (
        "import sys, resource\n"
        f"sys.path.insert(0, {str(Path(pickled.__file__).parent)!r})\n"
        "import pickled\nfrom pathlib import Path\n"
        f"pickled._limit(Path({str(tmp_path / 'x')!r}), memory=1 << 28)\n"
        "try:\n    bytearray(1 << 29)\nexcept MemoryError:\n    print('bounded')\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU)[0])\n"
        "file = open('y', 'wb')\nfile.seek(1 << 29)\nfile.write(b'x')\nfile.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["bounded", "60"]
    assert "File too large" in done.stderr


def _archive(tmp_path: Path, state: dict[str, Tensor], **members: bytes | None) -> Path:
    """A checkpoint, with members replaced, or left out where None."""
    torch.save(state, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad,
    ):
        for name in whole.namelist():
            content = members.get(Path(name).name.replace(".", "_"), whole.read(name))
            if content is not None:
                bad.writestr(name, content)
    return tmp_path / "bad.pt"


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3)}
    out = tmp_path / "out"
    torch.save(state, tmp_path / "whole.pt")
    extract(tmp_path / "whole.pt", out)
    whole = (tmp_path / "whole.pt").read_bytes()
    for part in (0.5, 0.9, 0.999):
        (tmp_path / "cut.pt").write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(Refused, match="not a whole archive"):
            extract(tmp_path / "cut.pt", out)
    flipped = bytearray(whole)
    place = whole.index(torch.arange(6.0).numpy().tobytes())
    flipped[place] ^= 1
    (tmp_path / "flipped.pt").write_bytes(flipped)
    with pytest.raises(Refused, match="is damaged"):
        extract(tmp_path / "flipped.pt", out)
    for members, message in (
        ({"0": b"12"}, "must have 24 bytes as its pickle says, but has 2"),
        ({"0": None}, "it lacks the numbers whole/data/0"),
        ({"data_pkl": b"\x80\x02}q\x00."}, "must hold tensors"),
        ({"data_pkl": b"\x80\x02K\x01."}, "must hold a module or a state dict, but holds a int"),
        ({"data_pkl": b"\x80\x02"}, "its pickle is damaged"),
        ({"data_pkl": None}, "must hold one data.pkl, but holds 0"),
        ({"byteorder": b"big"}, "must be little-endian"),
    ):
        with pytest.raises(Refused, match=message):
            extract(_archive(tmp_path, state, **members), out)  # type: ignore[arg-type]


def test_archives_that_unfold_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(Refused, match="must lie in it uncompressed, but they have 10000000 bytes"):
        extract(tmp_path / "bomb.pt", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "two.pt", "w") as archive:
        archive.writestr("a/data.pkl", b".")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b".")
    with pytest.raises(Refused, match="a member twice"):
        extract(tmp_path / "two.pt", tmp_path / "out")


class _Storage:
    """Pickles as a tensor's numbers."""

    def __init__(self, count: int) -> None:
        self.reference = ("storage", torch.FloatStorage, "0", "cpu", count)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.reference if isinstance(value, _Storage) else None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (4,), (1,)), None),
        ((1, (4,), (1,)), "reaches beyond the 4 numbers"),
        ((0, (2, 2), (3, 1)), "reaches beyond the 4 numbers"),
        ((0, (1 << 40,), (0,)), "a tensor of 1099511627776 entries repeats the 4"),
        ((0, (2,), (-1,)), "no count"),
        ((-1, (2,), (1,)), "no count"),
        ((0, (2.0,), (1,)), "no count"),
        ((0, (2,), (1, 1)), "something else than numbers"),
        ((0, (0, 3), (3, 1)), None),
    ],
)
def test_a_tensor_stays_within_its_numbers(
    tmp_path: Path, arguments: tuple[Any, ...], message: str | None
) -> None:
    class Rebuilt:
        def __reduce__(self) -> Any:
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (_Storage(4), *arguments, False, OrderedDict())

    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump({"weight": Rebuilt()})
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", buffer.getvalue())
        archive.writestr("a/data/0", torch.arange(4.0).numpy().tobytes())
    if message is None:
        extract(tmp_path / "a.pt", tmp_path / "out.safetensors")
        expected = torch.arange(4.0)[: arguments[1][0]] if arguments[1][0] else torch.zeros(0, 3)
        assert torch.equal(load_weights(tmp_path / "out.safetensors", "a")["weight"], expected)
    else:
        with pytest.raises(Refused, match=message):
            extract(tmp_path / "a.pt", tmp_path / "out.safetensors")


def test_a_built_tensor_cannot_be_changed(tmp_path: Path) -> None:
    class Rebuilt:
        def __reduce__(self) -> Any:
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (_Storage(4), 0, (2,), (1,), False, {}), {"stride": (-1000,)}

    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump({"weight": Rebuilt()})
    with pytest.raises(Refused, match="it changes a tensor that it built"):
        pickled.read_structure(io.BytesIO(buffer.getvalue()))


def test_views_types_and_nesting_are_as_torch_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(OrderedDict(first=nn.Linear(3, 2), none=nn.Identity()))
            self.scale = nn.Parameter(torch.tensor(3.0))
            self.register_buffer("kept", torch.arange(3))
            self.register_buffer("passing", torch.arange(3), persistent=False)
            self.register_parameter("empty", None)
            self.missing = None
            self.inner = nn.ModuleList([nn.ModuleList([nn.LayerNorm(2)])])
            self.short = nn.Parameter(torch.randn(4, 6).half().T[1:5:2])
            self.brain = nn.Parameter(torch.randn(3).bfloat16())

    Net.__qualname__, Net.__module__ = "Net", "src.nets"
    model = Net()
    module = types.ModuleType("src.nets")
    module.Net = Net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "src", types.ModuleType("src"))
    monkeypatch.setitem(sys.modules, "src.nets", module)
    torch.save(model, tmp_path / "net.pt")
    extract(tmp_path / "net.pt", tmp_path / "net.safetensors")
    expected = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert _same(load_weights(tmp_path / "net.safetensors", "net"), expected)
    torch.save({"state_dict": model.state_dict(), "step": 3}, tmp_path / "net.pt")
    extract(tmp_path / "net.pt", tmp_path / "net.safetensors")
    assert _same(load_weights(tmp_path / "net.safetensors", "net"), expected)
    torch.save({"weight": torch.ones(1), "step": 3}, tmp_path / "net.pt")
    with pytest.raises(Refused, match="must map names to tensors, but 'step' is a int"):
        extract(tmp_path / "net.pt", tmp_path / "net.safetensors")


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    torch.save(types.SimpleNamespace(a=1), tmp_path / "a.pt")
    with pytest.raises(Refused, match=r"asks to call types\.SimpleNamespace|must be a module"):
        extract(tmp_path / "a.pt", tmp_path / "out")
    module = nn.Linear(2, 2)
    module._modules["loop"] = module
    torch.save(module, tmp_path / "a.pt")
    with pytest.raises(Refused, match="nested more than 64 deep"):
        extract(tmp_path / "a.pt", tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/data.pkl", "a/constants.pkl"):
            archive.writestr(name, b".")
    with pytest.raises(Refused, match="a compiled model"):
        extract(tmp_path / "a.pt", tmp_path / "out")


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.safetensors, but got"):
        convert(tmp_path / "a.pt", tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"a\.pt does not exist"):
        convert(tmp_path / "a.pt", tmp_path / "a.safetensors")
    save_weights(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    with pytest.raises(InputError, match="must be another one than its source"):
        convert(tmp_path / "a.safetensors", tmp_path / "a.safetensors", overwrite=True)
    with pytest.raises(InputError, match="weights must be those of a CLIP"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_the_family_of_a_converted_expert_reaches_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "task", "other"):
        save_weights(tmp_path / f"{name}.safetensors", transformers_clip(TINY).state_dict())
    monkeypatch.setattr("apgd.convert.geometry_of", lambda _vision: TINY)
    for name, options in (("task", ["--family", "openclip"]), ("other", [])):
        source = str(tmp_path / f"{name}.safetensors")
        assert (
            main(["convert", source, str(tmp_path / "out" / f"{name}.safetensors"), *options]) == 0
        )
    for name, family in (("task", Family.OPENCLIP), ("other", None)):
        assert _stated_family(tmp_path / "out" / f"{name}.safetensors") is family
    assert _stated_family(tmp_path / "out") is None
