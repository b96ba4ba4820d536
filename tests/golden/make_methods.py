"""Make the golden file of all other merge methods: small merges by others' implementations.

Run it with `uv run python -m tests.golden.make_methods PCB_MERGING`, where PCB_MERGING is the file
pcb-merging.py of the authors' repository (github.com/duguodong7/pcb-merging), the only one of
these implementations that is in no package. The others (FusionBench 0.2.33, mergekit 0.1.5, PEFT
0.21.2) get installed into an environment of their own.

What each implementation does, and where it differs from the paper or from us, is said at its cases.
Measured, relative to the norm of θ − θ_0: 1e-6 for what looks at entries or learns coefficients,
4e-6 for RegMean, 8e-6 for what looks at singular values, 2e-5 for DOGE AM (its Adam, whose eps
matters where gradients are small; one Δ for all experts would be 9e-4 off).
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from apgd.checkpoints import save_weights
from tests.golden.make_fusion_bench import models
from tests.golden.tiny_encoder import IMAGE, SIZE, TinyEncoder

METHODS_GOLDEN = Path(__file__).with_name("methods.safetensors")
MATRICES = tuple(TinyEncoder().state_dict())
_RUNNER = Path(__file__).with_name("independent_methods.py")
_EXPERTS = tuple(f"expert{i}" for i in range(8))
_WITH_EVIDENCE = _EXPERTS[:3]
_CLASSES = (4, 7, 10)
BATCH = 16

Value = float | int | str


@dataclass(frozen=True, kw_only=True)
class Case:
    """One merge, by us and by another."""

    name: str
    experts: tuple[str, ...]
    method: str
    """Ours."""
    params: Mapping[str, Value] = field(default_factory=dict)
    """Ours."""
    by: str
    """Theirs: a function of independent_methods.py."""
    settings: Mapping[str, Value] = field(default_factory=dict)
    """Theirs."""
    tolerance: float = 1e-4
    """Of ‖ours − theirs‖ / ‖theirs‖, for every matrix."""

    def as_json(self) -> dict[str, object]:
        """What the golden file's metadata say of it."""
        return {**dataclasses.asdict(self), "experts": list(self.experts)}


def _case(
    method: str,
    count: int,
    by: str,
    params: Mapping[str, Value] | None = None,
    settings: Mapping[str, Value] | None = None,
    tolerance: float = 1e-4,
) -> Case:
    ours = params or {}
    words = [method, f"n{count}", *(f"{name}={value}" for name, value in ours.items())]
    return Case(
        name="-".join(words).replace("/", "_"),
        experts=_EXPERTS[:count],
        method=method,
        params=ours,
        by=by,
        settings=settings or {},
        tolerance=tolerance,
    )


def _elementwise_cases() -> list[Case]:
    """Methods that look at entries."""
    cases = [
        # FusionBench SimpleAverageAlgorithm, TaskArithmeticAlgorithm: as the papers.
        _case("weight_averaging", 8, "simple_average"),
        _case("task_arithmetic", 8, "task_arithmetic", {"coefficient": 0.3},
              {"scaling_factor": 0.3}),
    ]  # fmt: skip
    # FusionBench TiesMergingAlgorithm. Magnitudes of an expert are ranked over the whole model;
    # those are kept that reach the (d − ⌊K·d⌋)-th smallest. `threshold` is in percent where above
    # 1, and fails where it is 1. Its configuration says merge_func "sum" with 0.3 (so do
    # AdaMerging's tables); the paper takes the mean of what agrees.
    for count, coefficient, keep_ratio, aggregate in ((8, 0.3, 0.2, "sum"), (3, 1.0, 0.5, "mean")):
        cases.append(
            _case("ties", count, "ties",
                  {"coefficient": coefficient, "keep_ratio": keep_ratio, "aggregate": aggregate},
                  {"scaling_factor": coefficient, "threshold": keep_ratio,
                   "merge_func": aggregate})
        )  # fmt: skip
    # PEFT ties, density 1: nothing is trimmed, an exact zero elects + (we: the model's majority).
    cases.append(
        _case("ties", 8, "peft_ties", {"coefficient": 0.3, "keep_ratio": 1.0, "aggregate": "mean"},
              {"weight": 0.3, "density": 1.0})
    )  # fmt: skip
    # mergekit `breadcrumbs`: of the n entries of a matrix, the ⌊gamma·n⌋ largest are dropped, the
    # ⌊density·n⌋ that follow are kept, unscaled; a density of 1 keeps all, outliers too. The
    # authors' own code ranks within rows.
    for count, coefficient, density, gamma in ((8, 0.3, 0.14, 0.01), (3, 1.0, 0.5, 0.1)):
        cases.append(
            _case("breadcrumbs", count, "breadcrumbs",
                  {"coefficient": coefficient, "keep_ratio": density, "outlier_ratio": gamma},
                  {"weight": coefficient, "density": density, "gamma": gamma})
        )  # fmt: skip
    # The authors' PCB_merge, over the whole model. |τ| is clamped to its order statistics at 1e-4
    # and 1 − 1e-4 (1e-2 in their code for language); intra balance exp(N·minmax(|τ|)²), inter
    # balance tanh(τ_i ⊙ Σ τ_j) of unnormalised τ (the paper: softmax of normalised ones); their
    # product is clamped from below at the (1 − pcb_ratio) quantile and scaled to [0, 1]; these are
    # the weights of the clamped entries' mean.
    for count, coefficient, keep_ratio in ((8, 1.2, 0.1), (3, 1.0, 0.2)):
        cases.append(
            _case("pcb", count, "pcb", {"coefficient": coefficient, "keep_ratio": keep_ratio},
                  {"coefficient": coefficient, "pcb_ratio": keep_ratio})
        )  # fmt: skip
    # FusionBench tall_mask.utils (generate_task_masks, construct_consensus_mask); there is no class
    # that merges with them, and TallMaskTaskArithmeticAlgorithm compares task vectors with weights.
    # Masks: |θ_0 − θ_i| > λ |θ_0 + τ − θ_i|, with τ the unscaled sum, for Ties its summed and not
    # averaged entries. There each task's λ is the best of 0.2 to 0.6 on validation data; here all
    # tasks have one.
    for count, tall_lambda, agreement in ((8, 0.4, 2), (8, 0.2, 5), (3, 0.6, 1)):
        ours = {"coefficient": 0.3, "tall_lambda": tall_lambda, "agreement": agreement}
        theirs = {
            "scaling_factor": 0.3,
            "tall_mask_lambda": tall_lambda,
            "prun_thre_k": agreement,
        }
        cases.append(_case("consensus_ta", count, "consensus_ta", ours, theirs))
    cases.append(
        _case("consensus_ties", 8, "consensus_ties",
              {"coefficient": 0.5, "tall_lambda": 0.4, "agreement": 2, "keep_ratio": 0.2},
              {"scaling_factor": 0.5, "tall_mask_lambda": 0.4, "prun_thre_k": 2,
               "threshold": 0.2, "merge_func": "sum"})
    )  # fmt: skip
    return cases


def _dare_cases() -> list[Case]:
    """DARE in the limit where nothing is dropped; random masks differ by construction.

    FusionBench keeps an entry where torch.rand exceeds the sparsity ratio, and divides it by
    1 − ratio; with Ties, this comes before the trimming, so that nothing is trimmed where DARE
    keeps less. Its defaults: sparsity 0.5, 0.3 for task arithmetic, 0.5 with threshold 20 and
    merge_func "sum" for Ties. PEFT's dare_ties trims nothing; mergekit rescales by the ratio of L1
    norms.
    """
    return [
        _case("dare_average", 8, "dare_average", {"keep_ratio": 1.0, "seed": 0},
              {"sparsity_ratio": 0.0, "seed": 0}),
        _case("dare_task_arithmetic", 8, "dare_task_arithmetic",
              {"coefficient": 0.3, "keep_ratio": 1.0, "seed": 0},
              {"scaling_factor": 0.3, "sparsity_ratio": 0.0, "seed": 0}),
        _case("dare_ties", 8, "dare_ties",
              {"coefficient": 0.5, "keep_ratio": 1.0, "ties_keep_ratio": 0.2, "seed": 0,
               "aggregate": "sum"},
              {"scaling_factor": 0.5, "sparsity_ratio": 0.0, "threshold": 0.2,
               "merge_func": "sum", "seed": 0}),
        _case("dare_ties", 3, "peft_dare_ties",
              {"coefficient": 0.5, "keep_ratio": 1.0, "ties_keep_ratio": 1.0, "seed": 0,
               "aggregate": "mean"},
              {"weight": 0.5, "density": 1.0}),
    ]  # fmt: skip


DARE_LAW = _case(
    "dare_task_arithmetic",
    1,
    "dare_task_arithmetic",
    {"coefficient": 1.0, "keep_ratio": 0.4, "seed": 0},
    {"scaling_factor": 1.0, "sparsity_ratio": 0.6, "seed": 0},
)
"""One expert with a random mask: which entries are kept differs, what becomes of them does not."""


def _spectral_cases() -> list[Case]:
    """Methods that look at singular values or at inner products."""
    cases = []
    # FusionBench TaskSingularVectorMerging: ⌊r · (1/N)⌋ triplets of every task vector; both sides'
    # vectors replaced by the polar factor of all side by side; alpha 1. Parameters that are no
    # matrices are averaged.
    for count, coefficient in ((8, 1.0), (5, 1.0), (3, 0.7)):
        cases.append(
            _case("tsv_m", count, "tsv_m", {"coefficient": coefficient}, {"alpha": coefficient})
        )
    # FusionBench ISO_C_Merge: all singular values of Σ τ_i become their mean.
    for count, coefficient in ((8, 1.0), (3, 1.3)):
        cases.append(
            _case("iso_c", count, "iso_c", {"coefficient": coefficient},
                  {"scaling_factor": coefficient})
        )  # fmt: skip
    # FusionBench ISO_CTS_Merge: of r directions, T = round((r − ⌊share·r⌋) / N)·N are the tasks'
    # (Python's round: halves to even), r − T are common. The common ones are projected out on the
    # left side only. Two experts: a half is rounded; share 0.95 of eight: no task's directions.
    for count, share, coefficient in ((8, 0.8, 1.0), (3, 0.5, 1.5), (2, 0.75, 1.0), (8, 0.95, 1.0)):
        cases.append(
            _case("iso_cts", count, "iso_cts",
                  {"coefficient": coefficient, "common_share": share},
                  {"scaling_factor": coefficient, "common_space_fraction": share})
        )  # fmt: skip
    # FusionBench WUDIMerging: from Σ τ_i, Adam with 1e-5 (not to be set there), 400 steps in its
    # configuration (300 in the paper), loss Σ ‖(x − τ_i) τ_iᵀ‖² / ‖τ_i‖²; no coefficient.
    for count, iterations in ((8, 300), (3, 30)):
        cases.append(
            _case("wudi", count, "wudi",
                  {"iterations": iterations, "learning_rate": 1e-5, "solver": "adam"},
                  {"iter_num": iterations})
        )  # fmt: skip
    return cases


def _statistics_cases() -> list[Case]:
    """Methods with statistics of training data, which are given."""
    count = len(_WITH_EVIDENCE)
    # FusionBench merging_with_fisher_weights: Σ c_i (F_i + ε) θ_i / Σ c_i (F_i + ε), ε = 1e-6; c_i
    # in proportion to 1 / (‖F_i‖ + ε), the norm over all merged parameters, or equal where not
    # normalised. So is ours. F is given, since its F is not ours on purpose: it squares the
    # gradient of a batch's sum of √p log p, with cross terms, where ours is the mean of squares. On
    # 64 inputs of these models, merges with the two are 0.23 apart with batches of 1, 0.66 with 32.
    cases = [
        _case("fisher", count, "fisher", {"normalisation": "norm", "minimal_weight": 1e-12},
              {"normalize_fisher_weight": True, "minimal_fisher_weight": 1e-20}),
        _case("fisher", count, "fisher", {"normalisation": "none", "minimal_weight": 0.01},
              {"normalize_fisher_weight": False, "minimal_fisher_weight": 0.01}),
    ]  # fmt: skip
    # FusionBench merging_with_regmean_weights: means of x xᵀ with off-diagonal entries scaled (0.95
    # for CLIP, 0.6 for GPT-2, 0.1 in the base configuration), and a plain inverse.
    for ratio in (0.95, 0.1):
        cases.append(
            _case("regmean", count, "regmean", {"off_diagonal": ratio},
                  {"reduce_non_diagonal_ratio": ratio})
        )  # fmt: skip
    return cases


def _test_time_cases() -> list[Case]:
    """Methods that look at predictions of unlabelled inputs, all of one batch.

    FusionBench's classes: coefficients start at 0.3 and are not clamped; loss −Σ p log(p + 1e-8),
    mean over the batch, its gradients summed over tasks, then one step of Adam (1e-3; 1000 steps).
    A coefficient for every parameter that is trained, here the three matrices. AdaMerging++ is not
    there: its task vectors are those that FusionBench's ties_merging_split selects (20 %). DOGE AM:
    η 0.07, 400 steps with 1e-4, 30 % kept over the whole model, ⌊r/N⌋ for both bases, none of them
    to be set; one Δ_i per expert, which differ only through Adam's eps; Δ_i and masks, but no λ_i,
    make the new task vectors.
    """
    count = len(_WITH_EVIDENCE)
    cases = []
    for steps, learning_rate in ((5, 1e-3), (20, 1e-2)):
        ours: dict[str, Value] = {"iterations": steps, "learning_rate": learning_rate}
        theirs: dict[str, Value] = {"steps": steps, "learning_rate": learning_rate}
        cases += [
            _case("adamerging_task_wise", count, "adamerging_task_wise", ours, theirs),
            _case("adamerging_layer_wise", count, "adamerging_layer_wise", ours, theirs),
        ]
    for grain in ("task_wise", "layer_wise"):
        name = f"adamerging_plusplus_{grain}"
        cases.append(
            _case(name, count, name, {**ours, "keep_ratio": 0.2}, {**theirs, "threshold": 0.2})
        )
    ours = {f"adaptation_{name}": value for name, value in ours.items()}
    cases.append(_case("doge_am", count, "doge_adamerging", ours, theirs))
    return cases


def cases() -> list[Case]:
    """What is merged, by whom, and how."""
    return [
        *_elementwise_cases(),
        *_dare_cases(),
        *_spectral_cases(),
        *_statistics_cases(),
        *_test_time_cases(),
    ]


def evidence() -> dict[str, Tensor]:
    """Fisher information, inner products, inputs and heads for three experts."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    tensors = {}
    shapes = {name: tensor.shape for name, tensor in TinyEncoder().state_dict().items()}
    for i, (expert, classes) in enumerate(zip(_WITH_EVIDENCE, _CLASSES, strict=True)):
        for name, (rows, columns) in shapes.items():
            tensors[f"fisher/{expert}/{name}"] = 10.0**-i * random(rows, columns).square()
            inputs = random(200, columns) @ random(columns, columns) / columns**0.5
            tensors[f"gram/{expert}/{name}"] = inputs.T @ inputs / len(inputs)
        tensors[f"inputs/{expert}"] = torch.randint(
            256, (BATCH, *IMAGE), generator=generator, dtype=torch.uint8
        )
        tensors[f"head/{expert}"] = random(classes, SIZE)
    return _with_unit_fisher(tensors)


def _with_unit_fisher(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fisher information with a root mean square of 1 over all experts."""
    names = [name for name in tensors if name.startswith("fisher/")]
    size = torch.cat([tensors[name].flatten() for name in names]).square().mean().sqrt()
    return {name: t / size if name in names else t for name, t in tensors.items()}


def main() -> None:
    """Merge by the others' implementations and write the golden file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pcb_merging", type=Path, metavar="PCB_MERGING")
    pcb_merging = parser.parse_args().pcb_merging.resolve()
    told = [case.as_json() for case in (*cases(), DARE_LAW)]
    found = evidence()
    given = {key: tensor for key, tensor in models().items() if key.partition("/")[2] in MATRICES}
    with tempfile.TemporaryDirectory() as folder:
        read, made = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        listed = Path(folder) / "cases.json"
        save_weights(read, given | found)
        listed.write_text(json.dumps(told))
        command = ["uv", "run", "--no-project", _RUNNER, read, made, listed, pcb_merging]
        answer = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
        versions = json.loads(answer.stdout.splitlines()[-1])
        merged = {f"merged/{name}": tensor for name, tensor in load_file(made).items()}
    save_weights(METHODS_GOLDEN, found | merged, {"cases": told, "versions": versions})
    size = METHODS_GOLDEN.stat().st_size / 1e3
    sys.stdout.write(f"{METHODS_GOLDEN.name}: {size:.0f} kB, {versions}\n")


if __name__ == "__main__":
    main()
