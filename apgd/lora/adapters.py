"""Folders of PEFT: `adapter_config.json`, and the factors in `adapter_model.safetensors`.

Each adapted matrix W changes by ΔW = s B A, with A (r, n), B (m, r), and s = alpha / r, or
alpha / √r with `use_rslora`. Whatever else a configuration asks for is refused, not ignored.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apgd.checkpoints import InFiles, save_weights
from apgd.errors import InputError
from apgd.files import content_key, write_json

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (_CONFIG, _WEIGHTS)
"""All that there is of an adapter."""
_PREFIX = "base_model.model."
_KEY = re.compile(re.escape(_PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_USED = frozenset(
    {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
     "fan_in_fan_out", "init_lora_weights", "bias"}
)  # fmt: skip
# These say how the adapter was trained, where it belongs, or how it is to be computed.
_WITHOUT_EFFECT = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
     "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
     "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
     "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"}
)  # fmt: skip
# Other starting points also change the base, to which the factors then belong.
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Factors:
    """ΔW = scale · B A of one matrix."""

    a: Tensor
    """(r, n)."""
    b: Tensor
    """(m, r)."""
    scale: float = 1.0
    transposed: bool = False
    """Whether the layer keeps ΔWᵀ, as those with `fan_in_fan_out` do."""

    def change(self) -> Tensor:
        """ΔW, (m, n) float32 (or as kept), correctly rounded: the product is taken in float64."""
        product = (self.b.double() @ self.a.double()).mul_(self.scale)
        return (product.T if self.transposed else product).to(torch.float32).contiguous()


@dataclass(frozen=True)
class _Entry:
    """What the header and the configuration say of one matrix."""

    a: str
    b: str
    shape: tuple[int, int]
    scale: float
    transposed: bool


def is_adapter(path: Path) -> bool:
    """Whether a path is the folder of an adapter."""
    return (path / _CONFIG).is_file()


class Adapter:
    """The changes that an adapter's folder holds, read matrix by matrix.

    Args:
        label: what messages call it.
        folder: where configuration and factors lie.

    Raises:
        InputError: where the folder holds something other than plain LoRA factors of matrices.
    """

    def __init__(self, label: str, folder: Path) -> None:
        self.label = f"{label} ({folder})"
        self.folder = folder.absolute()
        self._config = self._read_config()
        if not (folder / _WEIGHTS).exists():
            raise InputError(
                f"{self.label} must keep its factors in {_WEIGHTS}, which it lacks; other formats "
                f"(.bin) could run code, and are not read"
            )
        self._files = InFiles(label, folder / _WEIGHTS)
        self._entries = self._match()

    def _read_config(self) -> dict[str, Any]:
        try:
            config: dict[str, Any] = json.loads((self.folder / _CONFIG).read_text(encoding="utf-8"))
            kind = str(config["peft_type"])
            int(config["r"]), float(config["lora_alpha"])
            dict(config.get("rank_pattern") or {}), dict(config.get("alpha_pattern") or {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{_CONFIG} of {self.label} is damaged: {error!r}") from error
        if kind != "LORA":
            raise InputError(f"{self.label} must be of the type LORA, but is {kind}")
        if (bias := config.get("bias", "none")) != "none":
            raise InputError(f"{self.label} must leave biases alone (bias none), but has {bias!r}")
        if (initial := config.get("init_lora_weights", True)) not in _INITIAL:
            raise InputError(
                f"{self.label} was made with init_lora_weights {initial!r}, which changes the base "
                f"too; convert it to a plain LoRA with PEFT first"
            )
        for key, value in config.items():
            if value and key not in _USED | _WITHOUT_EFFECT:
                raise InputError(
                    f"{self.label} must be a plain LoRA, but its {_CONFIG} sets {key} to {value!r}"
                )
        return config

    def _match(self) -> dict[str, _Entry]:
        sides: dict[str, dict[str, str]] = {}
        for key in self._files.names():
            match = _KEY.fullmatch(key)
            if match is None:
                raise InputError(
                    f"keys of {self.label} must be {_PREFIX}MODULE.lora_A.weight or the same with "
                    f"lora_B, but it holds {key}"
                )
            sides.setdefault(match["module"], {})[match["side"]] = key
        if not sides:
            raise InputError(f"{self.label} holds no factors")
        return {f"{module}.weight": self._entry(module, keys) for module, keys in sides.items()}

    def _entry(self, module: str, keys: Mapping[str, str]) -> _Entry:
        for side in "AB":
            if side not in keys:
                raise InputError(
                    f"{self.label} lacks lora_{side} of {module}, but has the other one"
                )
        a, b = (self._files.shape(keys[side]) for side in "AB")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise InputError(
                f"factors must be matrices (r, n) and (m, r), but {module} of {self.label} has "
                f"{a} and {b}"
            )
        rank = self._of_pattern("rank_pattern", "r", module)
        if rank != a[0]:
            raise InputError(
                f"{module} of {self.label} must have the rank {rank:g} that {_CONFIG} names, but "
                f"its factors have {a[0]}"
            )
        alpha = self._of_pattern("alpha_pattern", "lora_alpha", module)
        divisor = math.sqrt(rank) if self._config.get("use_rslora") else rank
        transposed = bool(self._config.get("fan_in_fan_out"))
        shape = (a[1], b[0]) if transposed else (b[0], a[1])
        return _Entry(keys["A"], keys["B"], shape, alpha / divisor, transposed)

    def _of_pattern(self, patterns: str, default: str, module: str) -> float:
        """A module's rank or alpha: that of the first pattern that ends its name, as in PEFT."""
        for pattern, value in (self._config.get(patterns) or {}).items():
            try:
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return float(value)
            except (re.error, ValueError, TypeError) as error:
                raise InputError(
                    f"{patterns} of {self.label} must map regular expressions to numbers, but has "
                    f"{pattern!r}: {value!r}"
                ) from error
        return float(self._config[default])

    def names(self) -> tuple[str, ...]:
        """The parameters that are changed, sorted."""
        return tuple(sorted(self._entries))

    def shape(self, name: str) -> tuple[int, int]:
        """Shape of a changed parameter."""
        return self._entries[name].shape

    def factors(self, name: str) -> Factors:
        """The factors of one parameter, read now."""
        entry = self._entries[name]
        a, b = self._files[entry.a], self._files[entry.b]
        return Factors(a, b, entry.scale, entry.transposed)

    def identity(self) -> str:
        """What tells this adapter from others without reading its factors."""
        return content_key([self._config, self._files.identity()])

    def paths(self) -> tuple[Path, ...]:
        """Its two files."""
        return (self.folder / _CONFIG, *self._files.paths())


def write_adapter(
    folder: Path,
    factors: Mapping[str, Factors],
    *,
    alpha: float | None = None,
    targets: tuple[str, ...] | None = None,
    base: str | None = None,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write a folder that PEFT loads, float32.

    Factors of lower rank are filled up with zeros, so that one rank is every matrix's.

    Args:
        folder: made where it is missing; the configuration, written last, makes it an adapter.
        factors: by the name of the parameter (`….weight`); at least one.
        alpha: the rank times the scale that all factors have; where None, the scale is put into B
            and alpha is the rank.
        targets: the last parts of the adapted modules' names; their full names where None.
        base: hub id or path of the base, for those who load the adapter.
        metadata: JSON values, kept in the header of the factors' file.
    """
    if not factors:
        raise InputError(f"an adapter must change something, but {folder} would hold no factors")
    rank = max(len(one.a) for one in factors.values())
    transposed = {one.transposed for one in factors.values()}
    scales = {one.scale for one in factors.values()}
    if len(transposed) > 1 or (alpha is not None and scales != {alpha / rank}):
        raise ValueError(f"one adapter has one kind of layers and one scale, not {scales}")
    tensors: dict[str, Tensor] = {}
    for name, one in factors.items():
        module = _PREFIX + name.removesuffix(".weight")
        scale = one.scale if alpha is None else 1.0
        a, b = one.a.new_zeros(rank, one.a.shape[1]), one.b.new_zeros(one.b.shape[0], rank)
        a[: len(one.a)], b[:, : len(one.a)] = one.a, one.b * scale
        tensors |= {f"{module}.lora_A.weight": a.float(), f"{module}.lora_B.weight": b.float()}
    config = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": transposed.pop(),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": 0.0,
        "r": rank,
        "target_modules": sorted(targets or (name.removesuffix(".weight") for name in factors)),
        "task_type": None,
    }
    (folder / _CONFIG).unlink(missing_ok=True)
    save_weights(folder / _WEIGHTS, tensors, metadata, for_transformers=True)
    write_json(folder / _CONFIG, config)
