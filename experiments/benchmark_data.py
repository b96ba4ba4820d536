"""How fast images reach a model: decoded at every reading, beside decoded once, in one run.

Pictures of a photograph's size are generated, prepared as a data set is, and read in batches as
scoring reads them. With `--model` each batch also goes through an image encoder with random
weights, and the share of the time in which the device computed is shown.
"""

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import create_model
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from apgd.data import Split
from apgd.data.examples import image_examples
from apgd.data.hub import HubDataset
from apgd.data.prepared import prepare
from apgd.files import write_json
from apgd.machine import name_of

_CLASSES = ("one", "two")
_QUALITY = 90


def main() -> None:
    """Generate, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--width", type=int, default=500, help="of the encoded pictures")
    parser.add_argument("--height", type=int, default=375, help="of the encoded pictures")
    parser.add_argument("--size", type=int, default=224, help="pixels per side for the model")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="that decode at once")  # fmt: skip
    parser.add_argument("--model", nargs="?", const="ViT-B-32-quickgelu",
                        help="an open_clip model to score with, random weights")  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    device = torch.device(options.device)
    model = None
    if options.model is not None:
        model = create_model(options.model, pretrained=None).visual.to(device).eval()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APGD_CACHE"] = folder
        dataset = _generate(Path(folder) / "pictures", options)
        seconds, _ = _timed(lambda: prepare(dataset))
        read = {
            kept: lambda kept=kept: (
                image_examples(
                    dataset,
                    Split.TEST,
                    size=options.size,
                    keep_pixels=kept,
                    threads=options.threads,
                ).images
            )
            for kept in (False, True)
        }
        filling, _ = _timed(read[True])
        rows = [_measure(name, read[kept](), model, device, options.batch)
                for name, kept in (("decoded at every reading", False), ("decoded once", True))
               ]  # fmt: skip
    report = {
        "machine": name_of(device), "threads": options.threads, "images": options.images,
        "encoded": [options.width, options.height], "size": options.size, "model": options.model,
        "device": str(device), "preparing_seconds": seconds, "filling_seconds": filling,
        "rows": rows, "torch": torch.__version__, "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    _print(report)
    if options.out is not None:
        write_json(options.out, report)


def _generate(folder: Path, options: argparse.Namespace) -> HubDataset:
    """JPEG files with about as much detail as photographs have."""
    rng = np.random.default_rng(0)
    shape = (options.height // 8, options.width // 8, 3)
    for i in range(options.images):
        coarse = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        whole = coarse.resize((options.width, options.height), Image.Resampling.BICUBIC)
        noisy = np.asarray(whole) + rng.normal(0, 8, (options.height, options.width, 3))
        stream = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
        path = folder / "test" / _CLASSES[i % 2] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stream.getvalue())
    return HubDataset(
        name="pictures", local=folder, splits={Split.TEST: "test"}, image_column="image",
        class_names=_CLASSES,
    )  # fmt: skip


@torch.inference_mode()
def _measure(
    name: str, images: Any, model: nn.Module | None, device: torch.device, batch: int
) -> dict[str, Any]:
    mean = torch.tensor(OPENAI_DATASET_MEAN, device=device).view(1, 3, 1, 1)
    deviation = torch.tensor(OPENAI_DATASET_STD, device=device).view(1, 3, 1, 1)

    def whole_pass() -> float:
        busy = 0.0
        for start in range(0, len(images), batch):
            pixels = torch.from_numpy(np.array(images[start : start + batch])).to(device)
            if model is None:
                continue
            scaled = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / deviation
            busy += _computing(model, scaled)
        return busy

    if model is not None:
        _computing(model, torch.zeros(batch, 3, *images.shape[1:3], device=device))
    seconds, busy = _timed(whole_pass)
    return {"row": name, "seconds": seconds, "images_per_second": len(images) / seconds,
            "device_busy": None if model is None else busy / seconds}  # fmt: skip


def _computing(model: nn.Module, pixels: Tensor) -> float:
    """Seconds of one forward pass on its device."""
    cuda = pixels.is_cuda
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    model(pixels)  # in float32, as scoring does
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def _print(report: dict[str, Any]) -> None:
    console = Console(width=100)
    width, height = report["encoded"]
    console.print(
        f"{report['images']} JPEG pictures of {width} x {height}, read as {report['size']} x "
        f"{report['size']}; {report['machine']}, {report['threads']} threads decode\n"
        f"prepared in {report['preparing_seconds']:.1f} s, decoded once in "
        f"{report['filling_seconds']:.1f} s\n",
        highlight=False,
    )
    table = Table("", "images per second", "speed-up", "device busy", box=None)
    first = report["rows"][0]["seconds"]
    for row in report["rows"]:
        busy = row["device_busy"]
        table.add_row(
            row["row"], f"{row['images_per_second']:.0f}", f"{first / row['seconds']:.1f} x",
            "–" if busy is None else f"{100 * busy:.0f} %",
        )  # fmt: skip
    console.print(table)
    if report["model"] is not None:
        console.print(f"\neach batch through {report['model']} on {report['device']}")


if __name__ == "__main__":
    main()
