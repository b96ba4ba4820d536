"""A Tune trial, in a module of its own: its processes import nothing that computes."""

from collections.abc import Sequence
from typing import Any

from ray import tune as ray_tune
from ray.actor import ActorHandle

from tune.search.judges import Judges, Order, Stuck

_STEP_SECONDS = 1.0
_IDLE_SECONDS = 0.1
_REPORT_SECONDS = 0.05
"""A result costs Tune as much with many trials in it as with one; workers have their next ones."""


class MergeTrial(ray_tune.Trainable):
    """Has merges judged by workers, several at a time, and reports them as they end.

    To begin a trial costs Tune some 20 ms, to take a result of one that runs a tenth of that; so a
    trial of Tune's goes on to the next trials of the studies, as Tune's `reuse_actors` has it for
    processes. The driver hands them out with `take`, as its answer to a result.
    """

    def setup(
        self,
        config: dict[str, Any],  # noqa: ARG002 - Tune's interface
        shared: Any = None,
        workers: Sequence[ActorHandle[Any]] = (),
        stuck: Stuck | None = None,
        identity: str | None = None,
    ) -> None:
        """Keep what all trials have in common.

        Args:
            config: not used.
            shared: reference to the studies and the workload, which only workers read.
            workers: the actors that score.
            stuck: when a rung is given to a second worker.
            identity: see `Judges`.
        """
        self._judges = Judges(workers, shared, stuck or Stuck(), identity)

    def take(self, orders: Sequence[Order]) -> None:
        """Begin with trials."""
        self._judges.take(orders)

    def step(self) -> dict[str, Any]:
        """Wait until a trial ends, or for a second; what fails in a trial is a result too."""
        seconds = _IDLE_SECONDS if self._judges.idle else _STEP_SECONDS
        self._judges.wait(seconds, _REPORT_SECONDS)
        return {"news": self._judges.news()}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What a trial has done is on disk already, rung by rung."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""
