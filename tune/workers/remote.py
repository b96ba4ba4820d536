"""The worker as Ray's actor.

Whoever gets a handle of an actor loads its class; a Tune trial does, too, which only passes
parameters on. So this module imports nothing that computes.
"""

from collections.abc import Callable
from typing import Any


def _passed_on(name: str) -> Callable[..., Any]:
    def call(self: "RemoteWorker", *arguments: Any) -> Any:
        return getattr(self.worker, name)(*arguments)

    call.__name__ = name
    return call


class RemoteWorker:
    """Passes calls on to a `tune.workers.process.Worker`, which is imported where it runs.

    Args:
        threads: as `Worker`.
        share: as `Worker`.
    """

    def __init__(self, threads: int, share: int = 1) -> None:
        from tune.workers.process import Worker

        self.worker = Worker(threads, share)

    introduce = _passed_on("introduce")
    identify = _passed_on("identify")
    prepare = _passed_on("prepare")
    prepare_corrupted = _passed_on("prepare_corrupted")
    train = _passed_on("train")
    collect = _passed_on("collect")
    score = _passed_on("score")
    measure = _passed_on("measure")
    decompose = _passed_on("decompose")
    score_trial = _passed_on("score_trial")
    progress = _passed_on("progress")
    peak = _passed_on("peak")
