"""A head and two workers, each a machine of its own on one network; then they are switched off.

What is real and what is not is said in test_one_machine.py; here, the shared folder is the same
folder on all machines, as an NFS share is. A machine is switched off by SIGKILL to its process 1:
all of its processes are gone at once, and its network answers nothing any more.
"""

from collections.abc import Iterator

import pytest

from tests.cluster.machines import machines, reason_to_skip, wait_until
from tests.cluster.on_premises import OnPremises, scores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with machines(tmp_path_factory.mktemp("three"), 3) as network:
        made = OnPremises(network)
        made.do("uv run ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
        made.up()
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: OnPremises) -> dict[str, dict[str, float]]:
    cluster.finish("undisturbed")
    return scores(cluster.runs / "undisturbed")


def test_a_run_spreads_over_the_machines(
    cluster: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    assert len(undisturbed) >= 8 + 4
    assert "3 nodes, 3 CPUs" in cluster.log("undisturbed")
    # Each has worked: their own disks have what training and scoring leave there.
    for machine in cluster.machines.all:
        assert (machine.folder / "var_tmp/apgd/cache/weights").is_dir(), machine.name


def test_a_worker_machine_is_switched_off(
    cluster: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
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
    cluster: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
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
