"""Make the golden file of DOGE TA: small merges by FusionBench 0.2.33, with their inputs.

Run it with `uv run python -m tests.golden.make_fusion_bench`; it installs FusionBench into an
environment of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from apgd.checkpoints import save_weights

GOLDEN = Path(__file__).with_name("fusion_bench_doge_ta.safetensors")
_RUNNER = Path(__file__).parents[2] / "experiments" / "fusion_bench_doge.py"
_SHAPES = {
    "encoder.0.q.weight": (36, 36),
    "encoder.0.up.weight": (60, 30),
    "encoder.0.down.weight": (30, 60),
}
_NOT_MERGED = {"encoder.0.layer_norm.weight": (36,), "head.weight": (7, 36)}


def cases() -> list[dict[str, object]]:
    """What is merged, and how.

    Not one expert alone: all singular values of its basis are 1, so that which of its directions
    make the shared subspace is up to rounding. Nor a keep ratio of 1, with which FusionBench fails.
    """
    named = [f"expert{i}" for i in range(8)]
    grid = [
        (8, 0.07, 0.3, 8), (8, 0.07, 0.3, 6), (8, 0.3, 0.1, 8), (8, 0.3, 0.9, 6),
        (3, 0.07, 0.3, 3), (3, 0.15, 0.5, 6), (2, 0.07, 0.3, 2), (2, 1.0, 0.3, 6),
        (5, 0.07, 0.3, 6),
    ]  # fmt: skip
    return [
        {
            "name": f"n{count}_eta{eta}_keep{keep}_sub{subspace}",
            "experts": named[:count],
            "eta": eta,
            "keep_ratio": keep,
            "subspace": subspace,
        }
        for count, eta, keep, subspace in grid
    ]


def models() -> dict[str, Tensor]:
    """A base and eight experts; changes have a decaying spectrum, as those of fine-tuning have."""
    generator = torch.Generator().manual_seed(0)
    base = {
        name: torch.randn(shape, generator=generator) / 6
        for name, shape in (_SHAPES | _NOT_MERGED).items()
    }
    tensors = {f"base/{name}": tensor for name, tensor in base.items()}
    for i in range(8):
        for name, tensor in base.items():
            change = 3e-3 * torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 2:
                left = torch.randn(tensor.shape[0], 12, generator=generator)
                right = torch.randn(12, tensor.shape[1], generator=generator)
                change += 1e-2 * (left * torch.linspace(1, 0.05, 12)) @ right
            tensors[f"expert{i}/{name}"] = tensor + change
    return tensors


def main() -> None:
    """Merge by FusionBench and write the golden file."""
    tensors = models()
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_weights(given, tensors)
        command = ["uv", "run", "--no-project", _RUNNER, given, made, json.dumps(cases())]
        answer = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
        told = json.loads(answer.stdout.splitlines()[-1])
        merged = {f"merged/{name}": tensor for name, tensor in load_file(made).items()}
    versions = {name: told[name] for name in ("fusion_bench", "torch")}
    save_weights(GOLDEN, tensors | merged, {"cases": cases(), "versions": versions})
    size = GOLDEN.stat().st_size / 1e3
    sys.stdout.write(f"{GOLDEN.name}: {size:.0f} kB, {versions}\n")


if __name__ == "__main__":
    main()
