# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["fusion-bench==0.2.33", "safetensors>=0.6"]
# ///
"""Merge by FusionBench's own DOGE TA, in an environment of its own.

`uv run --no-project experiments/fusion_bench_doge.py IN OUT CASES` installs FusionBench beside this
project and not into it. IN is a safetensors file whose tensors are called `<model>/<parameter>`,
the pretrained model being `base`. CASES is JSON, a list of objects with `name`, `experts` (names of
models), `eta`, `keep_ratio` and `subspace` (the subspace has r / subspace dimensions). OUT gets
θ − θ_0 as `<case>/<parameter>`. FusionBench merges the parameters whose name holds "encoder" and
"weight" and not "layer_norm". The last line printed is JSON: seconds of every case, peak memory of
the process in bytes, versions.
"""

import argparse
import contextlib
import io
import json
import resource
import time
from importlib.metadata import version
from pathlib import Path

import torch
from fusion_bench.method.doge_ta.doge_ta import DOGE_TA_Algorithm
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class Model(nn.Module):
    """A module with the given state dict: nested modules hold the parts of a dotted name."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))


def main() -> None:
    """Read, merge, write, and say how long each merge took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tensors", type=Path, metavar="IN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("cases", type=json.loads, metavar="CASES")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(options.tensors).items():
        model, _, name = key.partition("/")
        states.setdefault(model, {})[name] = tensor
    base = states["base"]
    deltas, seconds = {}, {}
    for case in options.cases:
        pool = {name: Model(states[name]) for name in case["experts"]}
        algorithm = DOGE_TA_Algorithm(
            subspace=case["subspace"], K=case["keep_ratio"], lamda=case["eta"]
        )
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            merged = algorithm.run({"_pretrained_": Model(base), **pool})
        seconds[case["name"]] = time.perf_counter() - started
        for name, tensor in merged.state_dict().items():
            deltas[f"{case['name']}/{name}"] = tensor - base[name]
    save_file(deltas, options.out)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "fusion_bench": version("fusion-bench"),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
