"""How fast a merge is: ours beside FusionBench's, on the same tensors and threads, in one run.

Measures whole merges of random weights of a model's shapes, says how far the results differ, and
holds the time against what the machine could do: the floating-point operations at the rate of a
matrix product, and the bytes at the rate of a triad, both measured in the same run. FusionBench is
installed into an environment of its own, the first time.
"""

import argparse
import dataclasses
import functools
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from apgd import TaskVectors, __version__, projective
from apgd.checkpoints import load_weights, save_weights
from apgd.cost import Cost
from apgd.files import write_json
from apgd.machine import measured_rates, name_of
from apgd.merging import merge_vectors
from apgd.methods import Method, doge_ta, methods

_WIDTHS = {"block": (768, 1), "vit_b": (768, 12), "vit_l": (1024, 24)}
_RUNNER = Path(__file__).with_name("fusion_bench_doge.py")

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to merge."""

    label: str
    method: Method
    params: dict[str, Any]
    tolerance: float | None
    """How far it may be from FusionBench's result, relative to that; None where it is another."""


def rows() -> list[Row]:
    """Ours, fastest last."""
    ours = methods["doge_ta"]
    plain = dataclasses.replace(ours, combine=functools.partial(doge_ta.combine, engine=projective))
    return [
        Row("apgd, plain torch", plain, {}, 1e-4),
        Row("apgd", ours, {}, 1e-4),
        Row("apgd, exact solver", ours, {"solver": "exact"}, None),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    models = "one transformer block of width 768, or all of a ViT-B or ViT-L"
    parser.add_argument("--model", choices=_WIDTHS, default="block", help=models)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1, help="the fastest of so many is shown")
    parser.add_argument("--without", nargs="*", default=[], metavar="ROW",
                        choices=["fusion-bench", "plain", "adam", "exact"],
                        help="rows to leave out: fusion-bench, plain, adam, exact")  # fmt: skip
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    base, experts = random_weights(*_WIDTHS[options.model], options.experts)
    found: list[dict[str, Any]] = []
    reference: State | None = None
    if "fusion-bench" not in options.without:
        seconds, reference, told = _fusion_bench(base, experts, options.threads)
        found.append({"row": f"FusionBench {told['fusion_bench']}", "seconds": seconds} | told)
    rates = measured_rates(device)
    by_name = dict(zip(("plain", "adam", "exact"), rows(), strict=True))
    for row in [row for name, row in by_name.items() if name not in options.without]:
        found.append(_measure(row, base, experts, device, options.repeats, reference))
    report = {
        "machine": name_of(device), "threads": options.threads, "model": options.model,
        "experts": options.experts, "matrices": len(base),
        "parameters": sum(t.numel() for t in base.values()),
        "gemm_flops": rates.gemm_flops, "triad_bytes": rates.triad_bytes,
        "torch": torch.__version__, "python": platform.python_version(), "apgd": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": found,
    }  # fmt: skip
    _print(report)
    if options.out is not None:
        write_json(options.out, report)
    for row in found:
        if row.get("difference") is not None and row["difference"] > (row["allowed"] or 1):
            raise SystemExit(f"{row['row']} differs from FusionBench by {row['difference']:.1e}")


def random_weights(width: int, blocks: int, experts: int) -> tuple[State, dict[str, State]]:
    """Random weights; what fine-tuning changed has a decaying spectrum, as it has in reality."""
    generator = torch.Generator().manual_seed(0)
    shapes = dict.fromkeys(("q", "k", "v", "out"), (width, width))
    shapes |= {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    base: State = {}
    tuned: dict[str, State] = {f"expert{i}": {} for i in range(experts)}
    for block in range(blocks):
        for part, (rows_, columns) in shapes.items():
            name = f"encoder.layers.{block}.{part}.weight"
            base[name] = 0.03 * torch.randn(rows_, columns, generator=generator)
            decay = torch.linspace(1, 0, width // 4).square()
            for state in tuned.values():
                left = torch.randn(rows_, width // 4, generator=generator) * decay
                right = torch.randn(width // 4, columns, generator=generator)
                noise = torch.randn(rows_, columns, generator=generator)
                state[name] = base[name] + 2e-4 * (noise + left @ right / 5)
    return base, tuned


def _fusion_bench(
    base: State, experts: dict[str, State], threads: int
) -> tuple[float, State, dict[str, Any]]:
    count = len(experts)
    case = {"name": "it", "experts": list(experts), "eta": 0.07, "keep_ratio": 0.3,
            "subspace": count}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        states = {"base": base} | experts
        save_weights(given, {f"{m}/{n}": t for m, s in states.items() for n, t in s.items()})
        command = ["uv", "run", "--no-project", str(_RUNNER), str(given), str(made)]
        command += [json.dumps([case]), "--threads", str(threads)]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        told = json.loads(answer.stdout.splitlines()[-1])
        merged = load_weights(made, "FusionBench's result")
    return told.pop("seconds")["it"], {n.removeprefix("it/"): t for n, t in merged.items()}, told


def _measure(
    row: Row,
    base: State,
    experts: dict[str, State],
    device: torch.device,
    repeats: int,
    reference: State | None,
) -> dict[str, Any]:
    params = row.method.parse(row.params)
    small = {name: tensor[:8, :8].clone() for name, tensor in list(base.items())[:1]}
    warm = TaskVectors(
        small, {"a": small, "b": {n: t + 1 for n, t in small.items()}}, device=device
    )
    compiling = _seconds(lambda: merge_vectors(row.method, params, warm), device)
    times = []
    for _ in range(repeats):
        vectors = TaskVectors(base, experts, device=device, keep=False)
        started = time.perf_counter()
        merged = merge_vectors(row.method, params, vectors)
        times.append(time.perf_counter() - started)
    shapes = [vectors.shape(name) for name in vectors.names]
    cost = sum((row.method.cost((m, n), len(experts), params) for m, n in shapes), start=Cost())
    difference = None
    if reference is not None:
        errors = [(merged[n].double() - base[n] - reference[n]).square().sum() for n in reference]
        sizes = [tensor.double().square().sum() for tensor in reference.values()]
        difference = float((torch.stack(errors).sum() / torch.stack(sizes).sum()).sqrt())
    return {"row": row.label, "seconds": min(times), "first_call_seconds": compiling,
            "flops": cost.flops, "bytes": cost.bytes, "difference": difference,
            "allowed": row.tolerance}  # fmt: skip


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _print(report: dict[str, Any]) -> None:
    console = Console(width=110)
    console.print(
        f"{report['model']}: {report['parameters'] / 1e6:.1f} M parameters in "
        f"{report['matrices']} matrices, {report['experts']} experts\n"
        f"{report['machine']}, {report['threads']} threads: matrix product "
        f"{report['gemm_flops'] / 1e9:.0f} GFlop/s, triad {report['triad_bytes'] / 1e9:.1f} GB/s\n",
        highlight=False,
    )
    table = Table("", "time", "speed-up", "difference", "GFlop", "GB", "of the machine", box=None)
    first = report["rows"][0]["seconds"]
    for row in report["rows"]:
        cells = [row["row"], f"{row['seconds']:.2f} s", f"{first / row['seconds']:.1f} x"]
        if "flops" in row:
            limit = row["flops"] / report["gemm_flops"] + row["bytes"] / report["triad_bytes"]
            far = row["difference"]
            cells.append("–" if far is None else f"{far:.1e}")
            cells += [f"{row['flops'] / 1e9:.0f}", f"{row['bytes'] / 1e9:.0f}"]
            cells.append(f"{100 * limit / row['seconds']:.0f} %")
        table.add_row(*cells)
    console.print(table)
    console.print(
        "\nDifference: ‖ours − FusionBench's‖ / ‖FusionBench's‖ of θ − θ0; the exact solver's "
        "result is another on purpose.\nOf the machine: the time that the operations and bytes "
        "would take at its measured rates, one after the other\n(decompositions, slower than "
        "matrix products, are counted with a weight from measurements).",
        highlight=False,
    )


if __name__ == "__main__":
    main()
