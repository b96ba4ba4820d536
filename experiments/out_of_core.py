"""Show that a merge needs no more memory than one layer does, whatever the model's size.

Writes a synthetic model and its experts to disk in shards (bfloat16), merges them with `apgd merge`
in a process of its own, kills that process once on its way, resumes it, and compares the peak
memory of both with the bound: largest matrix x (N + 6) x 4 bytes + 1.5 GB.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from apgd.checkpoints import INDEX, load_weights, open_weights, save_weights, write_index
from apgd.methods import methods

_FIXED_BYTES = 1.5e9
_SHARD_BYTES = 10**9


def main() -> None:
    """Make what is missing, merge, kill, resume, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/out_of_core"), help="for it all")
    parser.add_argument("--blocks", type=int, default=64, help="transformer blocks")
    parser.add_argument("--width", type=int, default=1536, help="of the four square matrices")
    parser.add_argument("--hidden", type=int, default=12288, help="of the two others")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--method", nargs=argparse.REMAINDER, default=["doge_ta"],
                        help="method and its options, last on the line; for example: "
                        "--method doge_ta --solver exact")  # fmt: skip
    options = parser.parse_args()
    name = options.method[0] if options.method else ""
    if name not in methods:
        parser.error(f"--method must be one of {', '.join(methods)}, but got {name!r}")
    for size in ("blocks", "width", "hidden", "experts"):
        if getattr(options, size) < 1:
            parser.error(f"--{size} must be at least 1, but got {getattr(options, size)}")
    shapes = _shapes(options.blocks, options.width, options.hidden)
    names = ["base", *(f"expert{i}" for i in range(options.experts))]
    started = time.perf_counter()
    for seed, name in enumerate(names):
        _write_model(options.folder / name, options.folder / "base", shapes, seed)
    print(f"{sum(r * c for r, c in shapes.values()) / 1e9:.2f} billion parameters, "
          f"{options.experts} experts, on disk after {time.perf_counter() - started:.0f} s",
          flush=True)  # fmt: skip
    out = options.folder / "merged"
    # The program of this environment, as `apgd` on the command line would find it.
    command = [
        sys.executable, "-m", "apgd.cli", "merge", "--base", str(options.folder / "base"),
        *(f"--expert={name}={options.folder / name}" for name in names[1:]),
        "--out", str(out), "--method", *options.method,
    ]  # fmt: skip
    shards = lambda: len(list(out.glob("model-*.safetensors")))  # noqa: E731
    before = shards()
    runs = [_run(command, lambda: shards() >= before + 2), _run(command, lambda: False)]
    largest = max(rows * columns for rows, columns in shapes.values())
    bound = largest * (options.experts + 6) * 4 + _FIXED_BYTES
    summary = json.loads((out / "merge_summary.json").read_text())
    for label, (seconds, peak, status) in zip(("killed", "resumed"), runs, strict=True):
        print(f"{label}: {seconds:.0f} s, exit status {status}, "
              f"peak memory {peak / 1e9:.2f} GB of {bound / 1e9:.2f} GB allowed")  # fmt: skip
    print(f"{shards()} shards, {len(summary['layers'])} matrices in the summary, "
          f"{len(open_weights(out, 'the result').names())} tensors in them")  # fmt: skip
    if any(peak > bound for _, peak, _ in runs) or runs[1][2] != 0:
        sys.exit("the bound does not hold")


def _shapes(blocks: int, width: int, hidden: int) -> dict[str, tuple[int, int]]:
    one = dict.fromkeys(("q", "k", "v", "o"), (width, width))
    one |= {"up": (hidden, width), "down": (width, hidden)}
    return {f"blocks.{i:03d}.{n}.weight": shape for i in range(blocks) for n, shape in one.items()}


def _write_model(folder: Path, base: Path, shapes: dict[str, tuple[int, int]], seed: int) -> None:
    """A model of random weights; an expert is the base with small changes. Made once."""
    if (folder / INDEX).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    groups: list[list[str]] = [[]]
    for name in shapes:
        groups[-1].append(name)
        if sum(2 * shapes[n][0] * shapes[n][1] for n in groups[-1]) > _SHARD_BYTES:
            groups.append([])
    placed = {}
    for number, group in enumerate(filter(None, groups), start=1):
        file = f"model-{number:05d}-of-{len(list(filter(None, groups))):05d}.safetensors"
        origin = load_weights(base / file, "the base") if folder != base else {}
        tensors = {}
        for name in group:
            noise = torch.randn(shapes[name], generator=generator)
            tensors[name] = (
                (origin[name].float() + 1e-3 * noise).bfloat16() if origin
                else (0.02 * noise).bfloat16()
            )  # fmt: skip
        save_weights(folder / file, tensors)
        placed |= dict.fromkeys(group, file)
    write_index(folder, placed, sum(2 * rows * columns for rows, columns in shapes.values()))


def _run(command: list[str], is_enough) -> tuple[float, int, int]:  # type: ignore[no-untyped-def]
    """Run until done, or kill it as soon as `is_enough`; seconds, peak memory, exit status."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)  # noqa: S603 - our own command
    while process.poll() is None:
        # Not ru_maxrss, in which this process's own peak would count from before the exec.
        peak = max(peak, _peak_of(process.pid))
        if is_enough():
            process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    return time.perf_counter() - started, peak, process.returncode


def _peak_of(pid: int) -> int:
    """Peak resident memory of a process so far, in bytes; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
