"""One of the paper's models at real size on this machine: experts in, merge, a forward pass.

Weights are random, with the real names, shapes and storage: the base as OpenAI's repository has
it, the experts as the hub's are (names of transformers, float16). Prints what every step takes, and
the peak memory of the process after it. Nothing is downloaded.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from apgd import merge
from apgd.checkpoints import save_weights
from apgd.models.clip_geometry import GEOMETRIES, Geometry
from apgd.models.clip_hub import read_vision_tower, vision_encoder
from apgd.models.clip_layouts import PROJECTION
from apgd.models.zero_shot import ZeroShotHead
from apgd.suites.clip import CLIP_SUITES, ClipSuite, encode_class_token


def main() -> None:
    """Make the files, then do what a run does with them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", choices=GEOMETRIES, default="ViT-B-32")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--method", default="doge_ta", help="as `apgd merge` has them")
    parser.add_argument("--solver", default="exact", help="of doge_ta")
    parser.add_argument("--images", type=int, default=64, help="in the forward pass")
    options = parser.parse_args()
    geometry = GEOMETRIES[options.model]
    suite = next(suite for suite in CLIP_SUITES if suite.geometry == geometry)
    with tempfile.TemporaryDirectory() as folder:
        base, experts = _write(Path(folder), geometry, options.experts)
        _run(suite, geometry, base, experts, options)


def _run(
    suite: ClipSuite,
    geometry: Geometry,
    base: Path,
    experts: dict[str, Path],
    options: argparse.Namespace,
) -> None:
    with _step("read and normalise the experts"):
        projection = load_file(base)[PROJECTION]
        for name, path in experts.items():
            state = read_vision_tower(path, geometry, name, projection=projection)
            save_weights(path, state)
    with _step(f"merge {len(experts)} experts ({options.method})"):
        chosen = {"solver": options.solver} if options.method == "doge_ta" else {}
        merged = merge(options.method, base, experts, select=suite.is_merged, **chosen)
    with _step("load the merged weights"):
        model = vision_encoder(geometry)
        model.load_state_dict(merged)
        model.eval()
    size = geometry.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (options.images, size, size, 3), np.uint8)
    head = ZeroShotHead(torch.randn(10, geometry.projection), suite.preprocess, encode_class_token)
    with _step(f"classify {options.images} images") as took, torch.inference_mode():
        finite = bool(head.logits(model, images).isfinite().all())
    print(f"{options.images / took[0]:.1f} images per second, all outputs finite: {finite}; "
          f"{torch.get_num_threads()} threads")  # fmt: skip


def _write(folder: Path, geometry: Geometry, count: int) -> tuple[Path, dict[str, Path]]:
    """A base, and experts that differ from it as much as fine-tuned ones do."""
    torch.manual_seed(0)
    state = vision_encoder(geometry).state_dict()
    base = folder / "base.safetensors"
    save_weights(base, state)
    experts = {}
    for number in range(count):
        generator = torch.Generator().manual_seed(number + 1)
        path = folder / f"expert{number}.safetensors"
        tuned = {
            name: (t + 3e-4 * torch.randn(t.shape, generator=generator)).half()
            for name, t in state.items()
            if name != PROJECTION
        }
        save_file(tuned, path)
        experts[f"expert{number}"] = path
    return base, experts


@contextmanager
def _step(what: str) -> Iterator[list[float]]:
    started, took = time.perf_counter(), []
    yield took
    took.append(time.perf_counter() - started)
    print(f"{what:<42}{took[0]:7.1f} s   peak memory {_peak() / 2**30:.2f} GiB", flush=True)


def _peak() -> int:
    """Most memory that this process has had at once, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise OSError("/proc/self/status must say VmHWM, which it does on Linux")
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    main()
