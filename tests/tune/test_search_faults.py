"""Ray Tune around workers that fail."""

from pathlib import Path

import pytest
import ray

from tune.cluster import ray_session
from tune.evaluators import Workload
from tune.search import run_searches
from tune.studies import Study

STUDIES = (Study("ties", 0, 5, 128, 8), Study("task_arithmetic", 0, 5, 128, 8))
WORKLOAD = Workload("mini_vision", Path("none"), (), ((0, (("data", "abc"),)),), None, 0)


class Flaky:
    """Stands in for a worker; fails on one trial of one study as long as it is told to."""

    def __init__(self, failing: bool) -> None:
        self._failing = failing

    def score_trial(
        self, shared: object, study: int, params: dict[str, float], number: int
    ) -> float:
        if self._failing and (study, number) == (0, 2):
            raise OSError("the disk is on fire")
        return -abs(params["coefficient"] - 0.3)


def test_failed_trials_are_named_and_the_others_finish(tmp_path: Path) -> None:
    done: list[int] = []
    with ray_session(address="local", cpus=1):
        failing = ray.remote(num_cpus=0)(Flaky).remote(True)
        with pytest.raises(RuntimeError, match=r"1 trials failed \(ties/seed0 #2\)") as error:
            run_searches(STUDIES, WORKLOAD, [failing], tmp_path / "tune", lambda: done.append(1))
        assert "the disk is on fire" in str(error.value)
        assert len(done) == 9
        healthy = ray.remote(num_cpus=0)(Flaky).remote(False)
        found = run_searches(STUDIES, WORKLOAD, [healthy], tmp_path / "tune", lambda: None)
    assert [len(set(keys)) for keys in found.values()] == [5, 5]
    assert not (tmp_path / "tune").exists()
