"""What tests of methods with training statistics have in common."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import torch
from torch import Tensor

from apgd import TaskVectors, merge
from apgd.checkpoints import load_weights, save_weights
from apgd.evidence import Evidence
from apgd.methods import methods
from apgd.streaming import merge_files
from tests.conftest import State, same_bits

COMBINE_ELSEWHERE = """
import sys, cloudpickle, torch
torch.set_num_threads(1)
with open(sys.argv[1], "rb") as file:
    method, vectors, params, prepared = cloudpickle.load(file)
made = dict(method.layers(vectors, params, prepared))
with open(sys.argv[2], "wb") as file:
    cloudpickle.dump({name: layer.delta for name, layer in made.items()}, file)
"""


def merged(
    method: str,
    base: State,
    experts: Mapping[str, State],
    statistics: Mapping[str, State],
    **params: Any,
) -> State:
    return merge(method, base, experts, evidence=Evidence(statistics=statistics), **params)


def in_files(folder: Path, states: Mapping[str, State]) -> dict[str, Path]:
    for name, state in states.items():
        save_weights(folder / f"{name}.safetensors", state)
    return {name: folder / f"{name}.safetensors" for name in states}


def check_streaming_equals_memory(
    method: str,
    base: State,
    experts: Mapping[str, State],
    statistics: Mapping[str, State],
    folder: Path,
) -> None:
    for part in ("weights", "statistics", "base"):
        (folder / part).mkdir()
    save_weights(folder / "base" / "base.safetensors", base)
    evidence = Evidence(statistics=in_files(folder / "statistics", statistics))
    merge_files(
        method,
        folder / "base" / "base.safetensors",
        in_files(folder / "weights", experts),
        folder / "out",
        evidence=evidence,
        shard_bytes=400,
    )
    streamed = load_weights(folder / "out", "merged")
    whole = merged(method, base, experts, statistics)
    assert all(same_bits(streamed[name], whole[name]) for name in base)


def check_works_in_another_process(
    method: str,
    base: State,
    experts: Mapping[str, State],
    statistics: Mapping[str, Any],
    folder: Path,
) -> None:
    found = methods[method]
    vectors = TaskVectors(base, experts)
    params = found.parse({})
    evidence = Evidence(statistics=statistics)
    prepared = found.prepare(vectors, params, evidence)
    (folder / "in").write_bytes(cloudpickle.dumps((found, vectors, params, prepared)))
    command = [sys.executable, "-c", COMBINE_ELSEWHERE, folder / "in", folder / "out"]
    subprocess.run(command, check=True, timeout=400)
    there: dict[str, Tensor] = cloudpickle.loads((folder / "out").read_bytes())
    here = found.merge(vectors, params, evidence)
    assert all(torch.equal(here[name], there[name]) for name in vectors.names)
