"""Statistics of training data that methods need: of one expert, computed once, and kept.

The inner products are those of RegMean (Jin et al., ICLR 2023, arXiv 2212.09849, section 3); the
Fisher information is that of Fisher merging (Matena and Raffel, NeurIPS 2022, arXiv 2111.09832,
section 3).

An expert sees its examples one at a time, so that no statistic depends on batches or has padding in
it, and in float32, which is the precision of the weights that are merged.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apgd.checkpoints import (
    WeightSource,
    items,
    load_sealed,
    load_weights,
    open_weights,
    save_sealed,
)
from apgd.data import Examples, Split
from apgd.errors import DamagedError, InputError
from apgd.evidence import Need
from apgd.files import content_key, put_aside, sha256_file
from apgd.heads import Head
from apgd.layer_inputs import LayerInputs
from apgd.source import library_versions, source_hash
from apgd.suites import Suite
from apgd.training import Report

_CODE = (
    "apgd.training_statistics",
    "apgd.layer_inputs",
    "apgd.data",
    "apgd.heads",
    "apgd.lora",
    "apgd.models",
    "apgd.numerics",
)
_LIBRARIES = ("torch", "open_clip_torch", "transformers", "tokenizers", "numpy", "pillow")
_GRADIENT_BYTES = 2**28  # of gradients at once
_MOST = 2**31


@dataclass(frozen=True, kw_only=True)
class StatisticSettings:
    """Of which training examples statistics are taken, and how.

    Raises:
        InputError: where a number is out of its range.
    """

    examples: int = 256
    """Training examples; all where there are fewer."""
    probes: int = 16
    """Gradients per example for Fisher information. It is exact for an example with no more choices
    than this, and otherwise an unbiased estimate from as many random combinations of them."""
    seed: int = 0
    """Of the choice of examples, and of the combinations."""

    def __post_init__(self) -> None:
        for name, least in (("examples", 1), ("probes", 1), ("seed", 0)):
            value = getattr(self, name)
            if not least <= value < _MOST:
                raise InputError(
                    f"{name} of statistics must lie in [{least}, {_MOST}), but got {value}"
                )


@dataclass(frozen=True, kw_only=True)
class StatisticSpec:
    """Everything that defines one expert's statistic; its content decides its file."""

    need: Need
    suite: str
    """The name under which the suite's experts are stored."""
    task: str
    settings: StatisticSettings
    expert_sha256: str
    """Hash of the expert's file, or of its adapter's folder."""
    base_sha256: str
    data_sha256: str
    """Hash of the task's training split."""
    head: str
    """Hash of the class names and templates behind the task's head."""
    versions: tuple[tuple[str, str], ...]
    """Versions of the libraries that compute."""
    code: str
    """Hash of the source that computes statistics."""

    def path(self, root: Path) -> Path:
        """The statistic's file below the folder of all statistics."""
        key = content_key(asdict(self))
        return root / f"{self.suite}-{self.task}-{self.need.name.lower()}-{key}.safetensors"


def statistic_spec(
    need: Need,
    suite: Suite,
    task: str,
    expert_sha256: str,
    data_sha256: str,
    settings: StatisticSettings,
) -> StatisticSpec:
    """The specification of an expert's statistic as it would be computed here and now.

    Raises:
        InputError: where `need` is not a statistic, or the suite has no such task.
    """
    _check_is_statistic(need)
    about = suite.task(task)
    return StatisticSpec(
        need=need,
        suite=suite.stored_as,
        task=task,
        settings=settings,
        expert_sha256=expert_sha256,
        base_sha256=sha256_file(suite.base_path()),
        data_sha256=data_sha256,
        head=content_key([about.class_names, about.templates]),
        versions=library_versions(*_LIBRARIES),
        code=source_hash(*_CODE, *suite.code),
    )


def statistics_file(
    spec: StatisticSpec, root: Path, say: Callable[[str], None] = lambda _sentence: None
) -> Path | None:
    """The file of this specification below `root`, or None where it is not computed yet.

    A damaged one is put aside, so that it can be computed again.

    Args:
        spec: what was computed.
        root: folder of all statistics.
        say: called with a sentence on what was damaged, and where it went.
    """
    path = spec.path(root)
    if not path.exists():
        return None
    try:
        load_sealed(path, f"the training statistic {spec.need.name} of {spec.task}")
    except DamagedError as damage:
        aside = put_aside(path)
        say(f"{damage}; it was put aside as {aside.name} and is computed again")
        return None
    return path


def collect_to(
    root: Path,
    spec: StatisticSpec,
    suite: Suite,
    weights: WeightSource,
    *,
    device: str = "cpu",
    report: Report | None = None,
) -> Path:
    """Compute an expert's statistic into a file below `root`, unless it is there already.

    Args:
        root: folder of all statistics; several processes may use it at once. Those that compute
            the same write the same, and none waits for another, which may hang.
        spec: what is computed.
        suite: the suite of `spec`.
        weights: the expert that `spec` names.
        device: for example "cpu" or "cuda:0".
        report: called after every example.

    Returns:
        A safetensors file with a tensor for every merged matrix (see `apgd.evidence.Need`).

    Raises:
        InputError: as `collect` does.
    """
    path = spec.path(root)
    if statistics_file(spec, root) is None:
        found = collect(
            spec.need, suite, spec.task, weights, spec.settings, device=device, report=report
        )
        # As plain JSON values, because an enumeration is not one everywhere.
        save_sealed(path, found, {**asdict(spec), "need": spec.need.name})
    return path


def collect(
    need: Need,
    suite: Suite,
    task: str,
    weights: WeightSource,
    settings: StatisticSettings,
    *,
    device: str = "cpu",
    report: Report | None = None,
) -> dict[str, Tensor]:
    """An expert's statistic over examples of its task's train split, by merged matrix.

    Args:
        need: `Need.FISHER` for (m, n) tensors, `Need.GRAM` for (n, n) ones.
        suite: where model, head and examples come from.
        task: the expert's.
        weights: the expert: a state dict, a file, or the folder of an adapter of the suite's base.
        settings: which examples, and how.
        device: for example "cpu" or "cuda:0".
        report: called after every example.

    Returns:
        float32 tensors on the CPU, under the matrices' names.

    Raises:
        InputError: where `need` is not a statistic, the weights do not fit the suite's model, or
            one of its merged matrices does not take part in its predictions.
    """
    _check_is_statistic(need)
    examples = suite.examples(task, Split.TRAIN)
    model, head = _expert(suite, task, weights, device)
    matrices = {n: p for n, p in model.state_dict(keep_vars=True).items() if suite.is_merged(n, p)}
    rows = chosen_rows(len(examples), settings)
    if need is Need.GRAM:
        found = inner_products(model, head, examples, rows, matrices, report)
    else:
        found = fisher_information(model, head, examples, rows, matrices, settings, report)
    return {name: tensor.cpu() for name, tensor in found.items()}


def chosen_rows(
    count: int,  # of all examples
    settings: StatisticSettings,
) -> np.ndarray:  # (at most settings.examples,), int64
    """Which examples are taken: the first of an order that the seed decides."""
    generator = torch.Generator(device="cpu").manual_seed(settings.seed)
    order = torch.randperm(count, generator=generator, device="cpu")
    rows: np.ndarray = order[: settings.examples].numpy()
    return rows


@torch.no_grad()
def inner_products(
    model: nn.Module,
    head: Head,
    examples: Examples,
    rows: np.ndarray,  # (examples,)
    matrices: Mapping[str, Tensor],  # (m, n)
    report: Report | None = None,
) -> dict[str, Tensor]:  # (n, n) each
    """The mean of x xᵀ over all inputs x (n,) that each matrix gets from some examples.

    Of an image these are its patches, of a text its tokens, and of an answer those before the last.

    Raises:
        InputError: where a matrix gets no inputs, or is not used as a linear layer's.
    """
    with LayerInputs(matrices) as inputs:
        for done, row in enumerate(rows, start=1):
            head.loss(model, examples, np.array([row]))
            if report is not None:
                report(done, len(rows))
    return inputs.means()


def fisher_information(
    model: nn.Module,
    head: Head,
    examples: Examples,
    rows: np.ndarray,  # (examples,)
    matrices: Mapping[str, Tensor],  # (m, n), parameters of the model
    settings: StatisticSettings,
    report: Report | None = None,
) -> dict[str, Tensor]:  # (m, n) each
    """The diagonal of the Fisher information, a mean over examples of E_y (∇ log p(y|x))².

    The expectation is over what the model itself would answer (Matena and Raffel, equation 2), so
    labels are not used. An answer of several tokens has the sum over its positions of each token's
    information after the true ones before it: gradients at different positions are uncorrelated.

    With p_c the probability of choice c, E_y is Σ_c (√p_c ∇ log p_c)². Where this has more terms
    than there are probes, it is the mean of (Σ_c ±√p_c ∇ log p_c)² over random signs, in which
    products of different choices cancel.

    Raises:
        InputError: where predictions do not depend on a matrix.
    """
    model.requires_grad_(False)
    parameters = list(matrices.values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    at_once = max(1, _GRADIENT_BYTES // sum(4 * parameter.numel() for parameter in parameters))
    for done, row in enumerate(rows, start=1):
        likelihoods = head.log_likelihoods(model, examples, int(row))  # (positions, choices)
        probes = _probes(likelihoods.detach(), settings, int(row))
        for first in range(0, len(probes), at_once):
            gradients = torch.autograd.grad(
                likelihoods,
                parameters,
                probes[first : first + at_once],
                retain_graph=first + at_once < len(probes),
                is_grads_batched=True,
                allow_unused=True,
            )
            for name, total, several in zip(matrices, sums, gradients, strict=True):
                if several is None:
                    raise InputError(
                        f"every merged matrix must take part in predictions to have Fisher "
                        f"information, but {name} does not"
                    )
                for gradient in several:
                    total.addcmul_(gradient, gradient)
        if report is not None:
            report(done, len(rows))
    return {name: total / len(rows) for name, total in zip(matrices, sums, strict=True)}


def _probes(
    likelihoods: Tensor,  # (positions, choices), logarithms
    settings: StatisticSettings,
    row: int,
) -> Tensor:  # (probes, positions, choices)
    """Weights of the log-likelihoods whose squared gradients add up to the information."""
    roots = likelihoods.mul(0.5).exp()
    if roots.numel() <= settings.probes:
        return roots.flatten().diag().view(-1, *roots.shape)
    # A stream of its own for each example, whatever comes before it.
    rng = np.random.default_rng([settings.seed, row])
    bits = rng.integers(2, size=(settings.probes, *roots.shape), dtype=np.int8)
    signs = torch.from_numpy(2 * bits - 1).to(roots.device)
    combined: Tensor = signs * roots / float(settings.probes) ** 0.5
    return combined


def _expert(suite: Suite, task: str, weights: WeightSource, device: str) -> tuple[nn.Module, Head]:
    """The expert on its device, and the head of its task, which is made of the base."""
    label = f"expert {task}"
    base_path = suite.base_path()
    model = suite.build_model()
    model.load_state_dict(load_weights(base_path, f"the base of suite {suite.name}"))
    head = suite.head(model, suite.task(task)).to(device)
    expert = open_weights(weights, label, open_weights(base_path, f"the base of {suite.name}"))
    try:
        model.load_state_dict(dict(items(expert)))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"experts must have the parameters of suite {suite.name}'s model for statistics to be "
            f"computed, but {expert.label} does not: {reason}"
        ) from error
    return model.to(device).eval(), head


def _check_is_statistic(need: Any) -> None:
    if not isinstance(need, Need) or not need.is_statistic:
        known = ", ".join(n for n in Need if n.is_statistic)
        raise InputError(f"a statistic must be one of {known}, but got {need}")
