"""A Tune trial, in a module of its own: its processes import nothing that computes."""

from collections.abc import Sequence
from typing import Any

import ray
from ray import tune as ray_tune
from ray.actor import ActorHandle

METRIC = "accuracy"


class MergeTrial(ray_tune.Trainable):
    """Sends its parameters to a worker and waits for the score."""

    def setup(
        self,
        config: dict[str, Any],
        shared: Any = None,
        workers: Sequence[ActorHandle[Any]] = (),
    ) -> None:
        """Keep what all trials have in common.

        Args:
            config: study, number, worker and params of the trial.
            shared: reference to the studies and the workload, which only workers read.
            workers: the actors that score.
        """
        self._shared = shared
        self._workers = workers
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial, which saves starting a process for it."""
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Merge and score once."""
        config = self._config
        worker = self._workers[config["worker"]]
        accuracy = ray.get(
            worker.score_trial.remote(
                self._shared, config["study"], config["params"], config["number"]
            )
        )
        return {METRIC: accuracy, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A trial is one step long: there is nothing to save."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""
