"""Memory and time of a step of test-time adaptation: AdaMerging and DOGE AM, and FusionBench's.

The model is CLIP's vision tower at real size with random weights; experts differ from it by noise
in the merged matrices, pictures and class vectors are random. Every row runs in a process of its
own, so that its peak memory is its own: on a GPU what torch had allocated at most, otherwise the
largest resident memory. Adaptation starts with the same weights and batches everywhere, so the
coefficients that FusionBench's wrapper has learned must be ours. Nothing is downloaded but
FusionBench.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apgd import TaskVectors, numerics
from apgd.checkpoints import load_weights, save_weights
from apgd.data import UnlabelledImages
from apgd.evidence import Evidence
from apgd.machine import name_of
from apgd.methods import methods
from apgd.models.activations import vit_activations
from apgd.models.clip_geometry import GEOMETRIES, Geometry
from apgd.models.clip_hub import vision_encoder
from apgd.models.zero_shot import ZeroShotHead
from apgd.suites.clip import CLIP_SUITES, ClipSuite, encode, encode_class_token
from apgd.unlabelled import UnlabelledInputs

_REFERENCE = "fusion_bench"
_ROWS = {
    "adamerging_layer_wise": "AdaMerging, layer-wise",
    "adamerging_layer_wise re-read": "AdaMerging, layer-wise, task vectors read from files",
    "doge_am": "DOGE AM",
    _REFERENCE: "FusionBench's layer-wise AdaMerging",
}
_RUNNER = Path(__file__).with_name("fusion_bench_adamerging.py")
_CLASSES = 100
_GIB = 2**30
_LIBRARIES = int(0.7 * _GIB)  # CUDA's context and workspaces, of which torch does not know


def main() -> None:
    """Write the models, run every row, print a table and the calculation for a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", choices=GEOMETRIES, default="ViT-B-32")
    parser.add_argument("--layers", type=int, help="blocks of the model, all of them by default")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16, help="pictures of every task")
    parser.add_argument("--steps", type=int, default=3, help="the first one is not timed")
    parser.add_argument("--iterations", type=int, default=20, help="of DOGE AM's Δ, before a step")
    parser.add_argument("--device", default="cpu", help="where the model is")
    parser.add_argument("--vectors-on", default="cpu", help="where task vectors are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], choices=_ROWS, help="rows to leave out")
    parser.add_argument("--row", choices=_ROWS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2, as the first one is not timed")
    geometry = GEOMETRIES[options.model]
    if options.layers is not None:
        geometry = replace(geometry, vision=replace(geometry.vision, layers=options.layers))
    suite = ClipSuite("benchmark", "random weights", geometry, _tasks(options))
    if options.row is not None:
        print(json.dumps(_measured(suite, options)))
        return
    print(f"{options.model}, {geometry.vision.layers} blocks, {options.experts} experts, batches "
          f"of {options.batch_size}; {name_of(torch.device(options.device))}, "
          f"{options.threads} threads", flush=True)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), suite, options)
        told = {
            row: _run(row, Path(folder), options) for row in _ROWS if row not in options.without
        }
    reference = told.get(_REFERENCE)
    for row, found in told.items():
        line = (f"{_ROWS[row]:<55}{found['seconds']:8.2f} s per step   "
                f"peak memory {found['peak_bytes'] / _GIB:6.2f} GiB")  # fmt: skip
        if reference is not None and row != _REFERENCE:
            time_share = found["seconds"] / reference["seconds"]
            memory_share = found["peak_bytes"] / reference["peak_bytes"]
            line += f"   {time_share:5.2f} of the time, {memory_share:5.2f} of the memory"
        print(line)
    if "difference" in told.get(_REFERENCE, {}):
        print(f"coefficients differ from FusionBench's by at most {reference['difference']:.1e}, "
              f"having changed by up to {reference['change']:.1e}")  # fmt: skip
    _print_calculation(suite, options)


def _tasks(options: argparse.Namespace) -> tuple[str, ...]:
    """Names of so many tasks."""
    every = next(suite for suite in CLIP_SUITES if len(suite.tasks) == 20)
    return tuple(task.name for task in every.tasks[: options.experts])


def _write(folder: Path, suite: ClipSuite, options: argparse.Namespace) -> None:
    """Base and experts, what they look at, and the configuration that FusionBench needs."""
    torch.manual_seed(0)
    model = vision_encoder(suite.geometry)
    base = model.state_dict()
    save_weights(folder / "base.safetensors", base)
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))
    inputs: dict[str, Tensor] = {}
    for number, task in enumerate(suite.tasks):
        generator = torch.Generator().manual_seed(number + 1)
        tuned = {
            name: tensor + 3e-4 * torch.randn(tensor.shape, generator=generator)
            if suite.is_merged(name, tensor) else tensor
            for name, tensor in base.items()
        }  # fmt: skip
        save_weights(folder / f"{task.name}.safetensors", tuned)
        inputs[f"{task.name}/pixels"] = suite.preprocess(_images(suite, number, options.batch_size))
        inputs[f"{task.name}/classes"] = _classes(suite.geometry, number)
    save_weights(folder / "inputs.safetensors", inputs)


def _images(suite: ClipSuite, number: int, count: int) -> np.ndarray:
    size = suite.geometry.vision.image_size
    return np.random.default_rng(number).integers(0, 256, (count, size, size, 3), np.uint8)


def _classes(geometry: Geometry, number: int) -> Tensor:
    """Class vectors of CLIP's length, which its logit scale is."""
    vectors = torch.randn(
        _CLASSES, geometry.projection, generator=torch.Generator().manual_seed(number)
    )
    return 100 * torch.nn.functional.normalize(vectors, dim=1)


def _run(row: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row in a process of its own."""
    common = [f"--steps={options.steps}", f"--device={options.device}",
              f"--threads={options.threads}"]  # fmt: skip
    if row == _REFERENCE:
        made = folder / "coefficients.safetensors"
        command = ["uv", "run", "--no-project", str(_RUNNER), str(folder), str(made), *common]
    else:
        command = [sys.executable, "-m", "experiments.benchmark_adaptation", *common,
                   f"--model={options.model}", f"--experts={options.experts}",
                   f"--batch-size={options.batch_size}", f"--iterations={options.iterations}",
                   f"--vectors-on={options.vectors_on}", f"--row={row}", f"--folder={folder}",
                   ]  # fmt: skip
        if options.layers is not None:
            command.append(f"--layers={options.layers}")
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    ours = folder / "ours.safetensors"
    if row == _REFERENCE and ours.exists():
        theirs = load_weights(made, "FusionBench's coefficients")
        # FusionBench's experts are in the order of their names.
        order = np.argsort(_tasks(options))
        pairs = [(value[order], theirs[n]) for n, value in load_weights(ours, "ours").items()]
        found["difference"] = max(float((a - b).abs().max()) for a, b in pairs)
        found["change"] = max(float((b - 0.3).abs().max()) for _, b in pairs)
    return found


def _measured(suite: ClipSuite, options: argparse.Namespace) -> dict[str, Any]:
    """What a row of ours takes, in this process."""
    numerics.configure(options.threads)
    folder, name = options.folder, options.row.partition(" ")[0]
    ends: list[float] = []
    model = vision_encoder(suite.geometry)
    model.load_state_dict(load_weights(folder / "base.safetensors", "the base"))
    names = [task.name for task in suite.tasks]
    heads = {
        task: ZeroShotHead(
            _classes(suite.geometry, number), suite.preprocess, encode, encode_class_token
        )
        for number, task in enumerate(names)
    }
    inputs = UnlabelledInputs(
        model.to(options.device),
        {task: head.to(options.device) for task, head in heads.items()},
        {task: UnlabelledImages(_images(suite, number, options.batch_size))
         for number, task in enumerate(names)},
        report=lambda _done, _total: ends.append(time.perf_counter()),
    )  # fmt: skip
    vectors = TaskVectors(
        folder / "base.safetensors",
        {task: folder / f"{task}.safetensors" for task in names},
        suite.is_merged,
        device=options.vectors_on,
        keep=False,
    )
    method = methods[name]
    steps = {"adaptation_iterations": options.steps, "iterations": options.iterations}
    params = method.parse(
        {"batch_size": options.batch_size}
        | (steps if name == "doge_am" else {"iterations": options.steps})
    )
    if "re-read" not in options.row:
        vectors = method.transform(vectors, params)
    found = method.prepare(vectors, params, Evidence(inputs=inputs))
    if name != "doge_am":
        save_weights(folder / "ours.safetensors", found)
    device = torch.device(options.device)
    return {
        "seconds": (ends[-1] - ends[0]) / (options.steps - 1),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak(),
    }


def _peak() -> int:
    """Most memory that this process has had at once, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise OSError("/proc/self/status must say VmHWM, which it does on Linux")
    return int(found.group(1)) * 1024


def _print_calculation(suite: ClipSuite, options: argparse.Namespace) -> None:
    """What a GPU holds, part by part, with all blocks of the model."""
    geometry = GEOMETRIES[options.model]
    with torch.device("meta"):
        state = vision_encoder(geometry).state_dict()
    merged = [t.numel() for n, t in state.items() if suite.is_merged(n, t)]
    count, largest, sizes = options.experts, max(merged), geometry.vision
    activations = vit_activations(
        layers=sizes.layers, width=sizes.width, mlp_width=sizes.mlp_width,
        tokens=sizes.positions, recomputed=False,
    )  # fmt: skip
    parts = {
        "the model, float32": 4 * sum(t.numel() for t in state.values()),
        "one gradient of the merged matrices": 4 * sum(merged),
        # In float32 every entry is twice as large as the bound has it, which is for bfloat16.
        f"activations of {options.batch_size} pictures, at most": (
            2 * options.batch_size * activations
        ),
        "task vectors of the largest matrix, and three more of it": 4 * largest * (count + 3),
        "CUDA's context and workspaces, about": _LIBRARIES,
    }
    kept = 4 * sum(merged) * (count + 1)
    print(f"\nCalculated for a GPU, {options.model} with {count} experts, GiB:")
    for part, size in {**parts, "together, task vectors on the host": sum(parts.values())}.items():
        print(f"  {part:<60}{size / _GIB:7.2f}")
    print(f"  {'with task vectors and base kept on the GPU':<60}"
          f"{(sum(parts.values()) + kept) / _GIB:7.2f}")  # fmt: skip
    during = 4 * sum(merged) * count + 4 * largest * (3 * count + 8)
    print(f"  {'DOGE AM, while its task vectors are made and kept there':<60}"
          f"{(parts['the model, float32'] + during + _LIBRARIES) / _GIB:7.2f}")  # fmt: skip
    print("  of 24 GiB")


if __name__ == "__main__":
    main()
