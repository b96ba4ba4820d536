"""A worker, then the head, of three machines is switched off in the middle of a run.

That is SIGKILL to its process 1: all of its processes are gone at once, and its network answers
nothing any more. The results have to be those of an undisturbed run, to the last bit.
"""

import pytest

from tests.cluster.machines import wait_until
from tests.cluster.on_premises import OnPremises, scores

pytestmark = pytest.mark.slow


def test_a_worker_machine_is_switched_off(
    three_machines: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    cluster = three_machines
    worker = cluster.machines.all[1]
    run = cluster.start("less")
    wait_until(lambda: cluster.experts("less") >= 3, "experts in training", 90)
    worker.kill()
    printed, _ = run.communicate(timeout=240)
    assert run.returncode == 0, printed
    assert f"on {worker.name} died while" in cluster.log("less")
    assert scores(cluster.runs / "less") == undisturbed
    cluster.machines.switch_on(worker)


def test_the_head_is_switched_off(
    three_machines: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    cluster = three_machines
    head = cluster.machines.all[0]
    run = cluster.start("headless")
    wait_until(lambda: cluster.experts("headless") >= 3, "experts in training", 90)
    head.kill()
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert not (cluster.runs / "headless/report.html").exists()

    cluster.machines.switch_on(head)
    cluster.up()
    cluster.finish("headless")
    assert "reused" in cluster.log("headless")
    assert scores(cluster.runs / "headless") == undisturbed
