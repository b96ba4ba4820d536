# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["fusion-bench==0.2.33", "safetensors>=0.6"]
# ///
"""Layer-wise AdaMerging by FusionBench's own wrapper, in an environment of its own.

`uv run --no-project experiments/fusion_bench_adamerging.py FOLDER OUT` installs FusionBench beside
this project and not into it. FOLDER is what experiments/benchmark_adaptation.py writes: the
configuration of a CLIP vision tower, base and experts, pixels and class vectors by expert. OUT gets
the coefficients, (N,) by parameter. FusionBench's wrapper learns one for every parameter and
expert; the loop around it follows its algorithm: the entropy of every task's batch is
differentiated, and after all of them there is one step of Adam and one merge. The last line printed
is JSON: seconds per step, peak memory in bytes, versions.
"""

import argparse
import json
import re
import time
from importlib.metadata import version
from pathlib import Path

import torch
from fusion_bench.method.adamerging.entropy_loss import entropy_loss
from fusion_bench.models.wrappers.layer_wise_fusion import (
    LayerWiseMergedModel,
    get_layer_wise_weights,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


def main() -> None:
    """Read, adapt, write, and say what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = CLIPVisionConfig(**json.loads((options.folder / "config.json").read_text()))

    def model(name: str) -> CLIPVisionModelWithProjection:
        made = CLIPVisionModelWithProjection(config)
        made.load_state_dict(load_file(options.folder / f"{name}.safetensors"))
        return made.to(device)

    inputs = load_file(options.folder / "inputs.safetensors", device=options.device)
    experts = sorted({key.partition("/")[0] for key in inputs})
    base = model("base")
    names = [name for name, _ in base.named_parameters()]
    merged = LayerWiseMergedModel(
        get_layer_wise_weights(len(experts), len(names), 0.3).to(device),
        base,
        [model(name) for name in experts],
        clamp_weights=False,
        strict=False,  # its state dict lacks a buffer that is not saved
    )
    optimizer = torch.optim.Adam([merged.merge_weight], lr=options.learning_rate)
    merged.train()
    merged.merge_weights()
    ends = []
    for _ in range(options.steps):
        for name in experts:
            embedded = merged(pixel_values=inputs[f"{name}/pixels"]).image_embeds
            unit = torch.nn.functional.normalize(embedded, dim=-1)
            loss = entropy_loss(unit @ inputs[f"{name}/classes"].T)
            loss.backward(retain_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        merged.merge_weights()
        ends.append(time.perf_counter())
    found = merged.merge_weight.detach().cpu()
    columns = {name: found[:, number].contiguous() for number, name in enumerate(names)}
    save_file(columns, options.out)
    print(
        json.dumps(
            {
                "seconds": (ends[-1] - ends[0]) / (options.steps - 1),
                "peak_bytes": _peak(device),
                "versions": {"fusion_bench": version("fusion-bench"), "torch": torch.__version__},
            }
        )
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise OSError("/proc/self/status must say VmHWM, which it does on Linux")
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    main()
