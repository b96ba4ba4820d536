"""A Tune trial, in a module of its own: its processes import nothing that computes."""

from collections.abc import Sequence
from typing import Any

import ray
from ray import tune as ray_tune
from ray.actor import ActorHandle

ENDING = ("LeakError", "InputError")
"""Errors that every other trial would meet too, so that the search ends with them."""


class MergeTrial(ray_tune.Trainable):
    """Sends its parameters to a worker, rung by rung, and waits for the scores.

    Two of these share a worker: one has its next rung ready while the other is waiting for its
    verdict.
    """

    def setup(
        self,
        config: dict[str, Any],
        shared: Any = None,
        workers: Sequence[ActorHandle[Any]] = (),
    ) -> None:
        """Keep what all trials have in common.

        Args:
            config: study, number, slot, params and rungs of the trial.
            shared: reference to the studies and the workload, which only workers read.
            workers: the actors that score.
        """
        self._shared = shared
        self._worker = workers[config["slot"] % len(workers)]
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial, which saves starting a process for it."""
        self._config = new_config
        self._rung = 0
        return True

    def step(self) -> dict[str, Any]:
        """Judge the next rung; what fails there is a result too."""
        config, rung = self._config, self._rung
        self._rung += 1
        place = (config["study"], config["number"], config["params"])
        try:
            values = ray.get(self._worker.score_trial.remote(self._shared, *place, rung))
        except ray.exceptions.RayTaskError as error:
            kind = type(error.cause).__name__
            reason = (str(error.cause).splitlines() or [""])[0]
            return {
                "error": f"{kind}: {reason}" if reason else kind,
                "ends_search": kind in ENDING,
                "done": True,
            }
        return {"values": values, "done": rung + 1 == config["rungs"]}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What a trial has done is on disk already, rung by rung."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""
