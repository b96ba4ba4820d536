# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = [
#     "fusion-bench==0.2.33",
#     "mergekit==0.1.5",
#     "peft==0.21.2",
#     "safetensors>=0.6",
# ]
# ///
"""Merge by others' implementations, in an environment of its own.

`uv run --no-project tests/golden/independent_methods.py IN OUT CASES PCB_MERGING` installs them
beside this project and not into it. IN is a safetensors file of tensors called
`<model>/<parameter>`, the pretrained model being `base`, and of what some methods need besides:
`fisher/<model>/<parameter>`, `gram/<model>/<parameter>`, `inputs/<model>`, `head/<model>`. CASES is
a JSON file, a list of objects with `name`, `experts`, `by` (a function of this file) and
`settings` (its arguments). PCB_MERGING is the file pcb-merging.py of the authors' repository. OUT
gets θ − θ_0 as `<case>/<parameter>`, and for some cases coefficients or task vectors. Nothing here
is a method of its own: all functions drive the published ones. The last line printed is JSON:
versions.
"""

import argparse
import ast
import contextlib
import io
import itertools
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch
from fusion_bench import BaseModelPool
from fusion_bench.method.adamerging.layer_wise_adamerging import LayerWiseAdaMergingAlgorithm
from fusion_bench.method.adamerging.task_wise_adamerging import TaskWiseAdaMergingAlgorithm
from fusion_bench.method.dare.simple_average import DareSimpleAverage
from fusion_bench.method.dare.task_arithmetic import DareTaskArithmetic
from fusion_bench.method.dare.ties_merging import DareTiesMerging
from fusion_bench.method.doge_ta import layer_wise_adamerging as doge_am
from fusion_bench.method.fisher_merging.fisher_merging import FisherMergingAlgorithm
from fusion_bench.method.isotropic_merging import ISO_C_Merge, ISO_CTS_Merge
from fusion_bench.method.regmean.regmean import RegMeanAlgorithm
from fusion_bench.method.simple_average import SimpleAverageAlgorithm
from fusion_bench.method.tall_mask import utils as tall_masks
from fusion_bench.method.task_arithmetic.task_arithmetic import TaskArithmeticAlgorithm
from fusion_bench.method.task_singular_vector.TSVM import TaskSingularVectorMerging
from fusion_bench.method.ties_merging.ties_merging import TiesMergingAlgorithm
from fusion_bench.method.ties_merging.ties_merging_utils import (
    state_dict_to_vector,
    ties_merging,
    ties_merging_split,
    vector_to_state_dict,
)
from fusion_bench.method.wudi import WUDIMerging
from fusion_bench.mixins.lightning_fabric import LightningFabricMixin
from mergekit.merge_methods import merge_state_dicts
from omegaconf import OmegaConf
from peft.utils import merge_utils as peft_merging
from safetensors.torch import load_file, save_file
from tiny_encoder import TinyEncoder, features
from torch import Tensor

State = dict[str, Tensor]

_CPU = lightning.Fabric(accelerator="cpu", devices=1)
TaskWiseAdaMergingAlgorithm._fabric = _CPU
doge_am.LayerWiseMergedModel._fabric = _CPU  # the class itself only sets one where there is a GPU


class Given:
    """What a case merges."""

    def __init__(self, tensors: State, experts: list[str], pcb_merging: Path) -> None:
        self.tensors = tensors
        self.experts = experts
        self.pcb_merging = pcb_merging

    def of(self, prefix: str) -> State:
        """The tensors under a prefix."""
        prefix += "/"
        return {
            key.removeprefix(prefix): tensor.clone()
            for key, tensor in self.tensors.items()
            if key.startswith(prefix)
        }

    def pool(self, experts: dict[str, State] | None = None) -> "Pool":
        """Models of FusionBench's kind, new ones each time: its algorithms change them."""
        states = experts or {name: self.of(name) for name in self.experts}
        models = {name: TinyEncoder(state) for name, state in states.items()}
        return Pool({"_pretrained_": TinyEncoder(self.of("base")), **models})

    def task_vectors(self) -> list[State]:
        """τ_i of every expert."""
        base = self.of("base")
        return [
            {name: tensor - base[name] for name, tensor in self.of(expert).items()}
            for expert in self.experts
        ]

    def flat(self) -> tuple[Tensor, Tensor]:
        """The base (d,) and the experts (N, d), flattened as FusionBench does."""
        experts = [state_dict_to_vector(self.of(name)) for name in self.experts]
        return state_dict_to_vector(self.of("base")), torch.stack(experts)

    def unflat(self, vector: Tensor) -> State:
        """Parameters of a vector (d,)."""
        return dict(vector_to_state_dict(vector, self.of("base")))

    def delta(self, algorithm: Any, pool: "Pool | None" = None) -> State:
        """θ − θ_0 as an algorithm of FusionBench makes it."""
        if isinstance(algorithm, LightningFabricMixin):
            algorithm.fabric = _CPU
        merged, base = algorithm.run(pool or self.pool()).state_dict(), self.of("base")
        return {name: merged[name].detach() - base[name] for name in base}


class Pool(BaseModelPool):
    """Models without datasets: what would be computed from these is given."""

    def load_train_dataset(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing."""


def simple_average(given: Given) -> State:
    return given.delta(SimpleAverageAlgorithm(inplace=False))


def task_arithmetic(given: Given, **settings: Any) -> State:
    return given.delta(TaskArithmeticAlgorithm(**settings))


def ties(given: Given, **settings: Any) -> State:
    return given.delta(TiesMergingAlgorithm(remove_keys=[], **settings))


def peft_ties(given: Given, weight: float, density: float) -> State:
    vectors = given.task_vectors()
    weights = torch.full((len(vectors),), weight)
    return {
        name: peft_merging.ties([tau[name] for tau in vectors], weights, density)
        for name in vectors[0]
    }


def peft_dare_ties(given: Given, weight: float, density: float) -> State:
    vectors = given.task_vectors()
    weights = torch.full((len(vectors),), weight)
    return {
        name: peft_merging.dare_ties([tau[name] for tau in vectors], weights, density)
        for name in vectors[0]
    }


def dare_average(given: Given, seed: int, **settings: Any) -> State:
    torch.manual_seed(seed)
    return given.delta(DareSimpleAverage(only_on_linear_weights=False, **settings))


def dare_task_arithmetic(given: Given, seed: int, **settings: Any) -> State:
    torch.manual_seed(seed)
    return given.delta(DareTaskArithmetic(only_on_linear_weights=False, **settings))


def dare_ties(given: Given, seed: int, **settings: Any) -> State:
    torch.manual_seed(seed)
    return given.delta(
        DareTiesMerging(only_on_linear_weights=False, rescale=True, remove_keys=[], **settings)
    )


def breadcrumbs(given: Given, **settings: Any) -> State:
    models = {name: given.of(name) for name in ("base", *given.experts)}
    merged = merge_state_dicts(models, "breadcrumbs", base="base", parameters=settings)
    return {name: merged[name] - tensor for name, tensor in models["base"].items()}


def pcb(given: Given, coefficient: float, pcb_ratio: float) -> State:
    """The file is a listing that cannot be imported: only its functions are taken."""
    tree = ast.parse(given.pcb_merging.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions: dict[str, Any] = {"torch": torch}
    exec(compile(tree, str(given.pcb_merging), "exec"), functions)  # noqa: S102
    base, experts = given.flat()
    merged, _, _ = functions["PCB_merge"](experts - base, pcb_ratio=pcb_ratio)
    return given.unflat(coefficient * merged)


def _consensus(
    given: Given, multi_task: Tensor, tall_mask_lambda: float, prun_thre_k: int
) -> Tensor:
    """FusionBench has the masks, but not the merge: one product is ours."""
    base, experts = given.flat()
    masks = tall_masks.generate_task_masks(
        experts - base, experts, base, tv=multi_task, tall_mask_lambda=tall_mask_lambda
    )
    states = {str(i): given.unflat(mask.float()) for i, mask in enumerate(masks)}
    tall_masks.load_tall_mask = lambda *_: states  # which would read them from a file
    return multi_task * tall_masks.construct_consensus_mask(given.of("base"), prun_thre_k, None)


def consensus_ta(given: Given, scaling_factor: float, **settings: Any) -> State:
    base, experts = given.flat()
    return given.unflat(scaling_factor * _consensus(given, (experts - base).sum(dim=0), **settings))


def consensus_ties(
    given: Given, scaling_factor: float, threshold: float, merge_func: str, **settings: Any
) -> State:
    base, experts = given.flat()
    multi_task = ties_merging(experts - base, reset_thresh=threshold, merge_func=merge_func)
    return given.unflat(scaling_factor * _consensus(given, multi_task, **settings))


def tsv_m(given: Given, **settings: Any) -> State:
    return given.delta(TaskSingularVectorMerging(**settings))


def iso_c(given: Given, **settings: Any) -> State:
    return given.delta(ISO_C_Merge(**settings))


def iso_cts(given: Given, **settings: Any) -> State:
    return given.delta(ISO_CTS_Merge(**settings))


def wudi(given: Given, **settings: Any) -> State:
    return given.delta(WUDIMerging(**settings))


def fisher(given: Given, **settings: Any) -> State:
    class Merging(FisherMergingAlgorithm):
        def get_fisher_weights(self, model_name: str, **_: Any) -> State:
            return given.of(f"fisher/{model_name}")

    return given.delta(Merging(exclude_param_names_regex=[], num_fisher_examples=0, **settings))


def regmean(given: Given, **settings: Any) -> State:
    class Merging(RegMeanAlgorithm):
        def get_regmean_weights(self, model_name: str, *_: Any, **__: Any) -> State:
            grams = given.of(f"gram/{model_name}")
            return {name.removesuffix(".weight"): gram for name, gram in grams.items()}

    return given.delta(
        Merging(
            exclude_param_names_regex=[],
            num_regmean_examples=0,
            weight_transpose=True,
            **settings,
        )
    )


def _adapting(base_class: type, given: Given) -> type:
    """An AdaMerging algorithm of FusionBench with given inputs and heads, which keeps its module.

    Every step gets the same batch of a task: all of its inputs.
    """

    class Adapting(base_class):  # type: ignore[misc]
        def get_shuffled_test_loader_iter(self, task: str) -> Iterator[list[Tensor]]:
            return itertools.repeat([features(given.tensors[f"inputs/{task}"])])

        def compute_logits(self, module: Any, batch: Any, task: str) -> Tensor:
            inputs = batch if isinstance(batch, Tensor) else batch[0]
            return module(inputs) @ given.tensors[f"head/{task}"].T

        def log_hyperparams(self, *_: Any) -> None:
            """There is no logger."""

        def test_time_adaptation(self, module: Any) -> Any:
            self.adapted = super().test_time_adaptation(module)
            return self.adapted

    return Adapting


def _adapt(
    base_class: type, given: Given, pool: Pool, steps: int, learning_rate: float
) -> tuple[State, Any]:
    settings = {
        "weights": None,
        "optimizer": "adam",
        "lr": learning_rate,
        "init_values": 0.3,
        "clamp_weights": False,
        "tie_weights": True,
        "strict": False,
        "max_steps": steps,
    }
    algorithm = _adapting(base_class, given)(OmegaConf.create(settings))
    delta = given.delta(algorithm, pool)
    coefficients = algorithm.adapted.merge_weight.detach().clone()
    return {**delta, "coefficients": coefficients}, algorithm.adapted


def adamerging_task_wise(given: Given, **settings: Any) -> State:
    """The coefficients, from which the rest follows."""
    made, _ = _adapt(TaskWiseAdaMergingAlgorithm, given, given.pool(), **settings)
    return {"coefficients": made["coefficients"]}


def adamerging_layer_wise(given: Given, **settings: Any) -> State:
    """The coefficients, from which the rest follows."""
    made, _ = _adapt(LayerWiseAdaMergingAlgorithm, given, given.pool(), **settings)
    return {"coefficients": made["coefficients"]}


def _plusplus(given: Given, threshold: float) -> Pool:
    """Experts whose task vectors are what Ties selects, as AdaMerging++ is defined."""
    base, experts = given.flat()
    selected, _ = ties_merging_split(experts - base, reset_thresh=threshold, merge_func="sum")
    return given.pool(
        {
            name: given.unflat(base + vector)
            for name, vector in zip(given.experts, selected, strict=True)
        }
    )


def adamerging_plusplus_task_wise(given: Given, threshold: float, **settings: Any) -> State:
    pool = _plusplus(given, threshold)
    return _adapt(TaskWiseAdaMergingAlgorithm, given, pool, **settings)[0]


def adamerging_plusplus_layer_wise(given: Given, threshold: float, **settings: Any) -> State:
    pool = _plusplus(given, threshold)
    return _adapt(LayerWiseAdaMergingAlgorithm, given, pool, **settings)[0]


def doge_adamerging(given: Given, **settings: Any) -> State:
    """DOGE AM; also its modified task vectors, before coefficients are learned."""
    algorithm = doge_am.LayerWiseAdaMergingAlgorithm
    made, adapted = _adapt(algorithm, given, given.pool(), **settings)
    for expert, vector in zip(given.experts, adapted.task_vectors, strict=True):
        made |= {f"tau/{expert}/{name}": tensor for name, tensor in vector.items()}
    return made


METHODS: dict[str, Callable[..., State]] = {
    function.__name__: function
    for function in (
        simple_average,
        task_arithmetic,
        ties,
        peft_ties,
        peft_dare_ties,
        dare_average,
        dare_task_arithmetic,
        dare_ties,
        breadcrumbs,
        pcb,
        consensus_ta,
        consensus_ties,
        tsv_m,
        iso_c,
        iso_cts,
        wudi,
        fisher,
        regmean,
        adamerging_task_wise,
        adamerging_layer_wise,
        adamerging_plusplus_task_wise,
        adamerging_plusplus_layer_wise,
        doge_adamerging,
    )
}


def main() -> None:
    """Read, merge, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tensors", type=Path, metavar="IN")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("cases", type=Path, metavar="CASES")
    parser.add_argument("pcb_merging", type=Path, metavar="PCB_MERGING")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = load_file(options.tensors)
    results: State = {}
    for values in json.loads(options.cases.read_text()):
        case = SimpleNamespace(**values)
        given = Given(tensors, case.experts, options.pcb_merging)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made = METHODS[case.by](given, **case.settings)
        results |= {f"{case.name}/{name}": tensor.contiguous() for name, tensor in made.items()}
    save_file(results, options.out)
    packages = ("fusion-bench", "mergekit", "peft", "torch")
    print(json.dumps({name: version(name) for name in packages}))  # noqa: T201


if __name__ == "__main__":
    main()
