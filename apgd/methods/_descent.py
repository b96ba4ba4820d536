"""APGD under way: modification vectors at growing numbers of iterations."""

from typing import Any

from torch import Tensor

from apgd.methods._apgd import ApgdParams, basis_sizes, coefficients_of, engine_for
from apgd.shared_work import SharedWork


class Modifications:
    """One descent for every matrix; Δ is kept at the numbers of iterations that were asked for.

    The exact solver's Δ is one, found at once, and has no number of iterations.

    Args:
        shared: the task vectors, and what is known of them.
        params: APGD's parameters; their iterations count for the exact solver alone.
    """

    def __init__(self, shared: SharedWork, params: ApgdParams) -> None:
        self.coefficients: dict[str, Tensor] = {}
        """λ of every matrix, (N,)."""
        self._descents: dict[str, Any] = {}
        self._kept: dict[int | None, dict[str, Tensor]] = {}
        exact: dict[str, Tensor] = {}
        for name in shared.vectors.names:
            tau = shared.vectors[name]
            engine = engine_for(tau)
            coefficients = self.coefficients[name] = coefficients_of(tau, params)
            subspace = shared.subspace(name, *basis_sizes(tau, params))
            if params.solver == "exact":
                exact[name] = engine.exact_modification_vector(
                    tau, coefficients, subspace, params.tolerance, params.iterations
                )
            else:
                self._descents[name] = engine.Descent(
                    tau, coefficients, subspace, params.learning_rate
                )
        if exact:
            self._kept[None] = exact

    def reaches(self, iterations: int | None) -> bool:
        """Whether Δ after so many iterations is there, or lies ahead; None is the exact one."""
        if iterations is None or not self._descents:
            return iterations in self._kept
        return iterations in self._kept or iterations >= self._done

    @property
    def _done(self) -> int:
        return max((found for found in self._kept if found is not None), default=0)

    def at(self, iterations: int | None) -> dict[str, Tensor]:
        """Δ of every matrix, (m, n), after so many iterations; None for the exact one.

        Raises:
            ValueError: where they are fewer than before, and were not asked for then.
        """
        if iterations in self._kept:
            return self._kept[iterations]
        if iterations is None or not self.reaches(iterations):
            raise ValueError(
                f"iterations must grow from {self._done}, but {iterations} were asked for"
            )
        for descent in self._descents.values():
            descent.advance(iterations)
        kept = {name: descent.delta.clone() for name, descent in self._descents.items()}
        self._kept[iterations] = kept
        return kept


def growing(params: ApgdParams) -> bool:
    """Whether more iterations continue fewer ones: those of Adam do."""
    return params.solver == "adam"
