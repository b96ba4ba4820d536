"""What a merge may know beyond the weights, and which methods need it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from apgd.checkpoints import WeightSource, open_weights

if TYPE_CHECKING:
    from apgd.unlabelled import UnlabelledInputs


class Need(StrEnum):
    """What a method needs besides base and experts."""

    NOTHING = "nothing"
    """It is data-free."""
    FISHER = "Fisher information on training data"
    """Of every merged matrix and expert: the mean square of the log-likelihood's gradient."""
    GRAM = "inner products of layer inputs on training data"
    """Of every merged matrix and expert: the mean of x xᵀ over its inputs x."""
    INPUTS = "unlabelled inputs"
    """Inputs of every task, on which predictions are made, but not judged."""

    @property
    def is_statistic(self) -> bool:
        """Whether it is computed once per expert, from training data."""
        return self in (Need.FISHER, Need.GRAM)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What there is besides base and experts; by default nothing."""

    statistics: Mapping[str, WeightSource] = field(default_factory=lambda: MappingProxyType({}))
    """By expert, the training statistic that the method needs: a tensor for every merged matrix,
    under the matrix's name; of shape (m, n) for `Need.FISHER`, (n, n) for `Need.GRAM`."""
    inputs: "UnlabelledInputs | None" = None
    """Unlabelled inputs, and the model and heads that make predictions of them."""

    def unlabelled(self) -> "UnlabelledInputs":
        """The inputs, of which `Method.check` has made sure that they are there."""
        if self.inputs is None:
            raise ValueError("a method whose need is not met must not be prepared")
        return self.inputs

    def meets(self, need: Need) -> bool:
        """Whether what a method needs is there."""
        if need.is_statistic:
            return bool(self.statistics)
        return need is Need.NOTHING or self.inputs is not None


NO_EVIDENCE = Evidence()
"""For merges that are data-free."""


def describe(evidence: Evidence) -> dict[str, Any]:
    """What determines a merge's result, of its evidence, as JSON values."""
    told: dict[str, Any] = {
        f"statistics of {name}": open_weights(source, f"the statistics of {name}").identity()
        for name, source in evidence.statistics.items()
    }
    return told if evidence.inputs is None else {**told, "inputs": evidence.inputs.identity()}
