"""The README's commands for machines of one's own, on three machines, from `ray up` to `ray down`.

In between, a worker and then the head are switched off in the middle of a run: SIGKILL to their
process 1, with which all of their processes are gone and their network answers nothing any more.

Real: ssh, rsync, the cluster file (filled in), its set-up script, Ray's commands and its token, the
driver in the head's home, which has nothing but what was copied there. Not real: the shared folder
is the same folder on all machines, as an NFS share is; `uv` on the machines is a stand-in, which
makes an environment out of the packages that are installed here, as there is no network; rendered
data are those of this machine; the smoke run is shorter. The tests go on from one another.
"""

from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.cluster.machines import machines, reason_to_skip, wait_until
from tests.cluster.on_premises import SHORT, OnPremises, readme_commands, scores

pytestmark = pytest.mark.slow
TOKEN, UP, STATUS, SUBMIT, FETCH, DOWN = readme_commands()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with machines(tmp_path_factory.mktemp("three"), 3) as network:
        made = OnPremises(network)
        made.do(TOKEN)
        made.do(UP)
        made.wait_for_all(STATUS)
        yield made


@pytest.fixture(scope="module")
def undisturbed(cluster: OnPremises) -> dict[str, dict[str, float]]:
    printed = cluster.do(f"{SUBMIT} {SHORT}", timeout=500)
    assert "3 nodes, 3 CPUs" in printed
    assert "report.html" in printed
    cluster.do(FETCH)
    (run,) = cluster.fetched.glob("full_repro-*")
    assert (run / "report.html").stat().st_size > 10_000
    return scores(run)


def test_nobody_else_can_reach_or_use_them(cluster: OnPremises) -> None:
    everywhere = {"*:6380", "*:6381", "0.0.0.0:22", "[::]:22"}
    head, *_ = cluster.machines.all
    for machine in cluster.machines.all[:2]:
        printed = cluster.machines.on(machine, "stat -c %a ~/.ray/auth_token")
        assert printed.split()[-1] == "600"
        of_head = {"*:6379"} if machine is head else set()
        expected = everywhere | of_head | {f"{machine.address}:6382"}
        wait_until(lambda: expected <= cluster.listening(machine), "all of Ray to listen")  # noqa: B023
        assert cluster.listening(machine) == expected
    asked = f"timeout 120 ray status --address {head.address}:6379"
    assert "3 local.cluster.node" in cluster.machines.operate(f"RAY_AUTH_MODE=token {asked}")
    for stranger in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"):
        refused = cluster.machines.start(f"{stranger} {asked}")
        printed, _ = refused.communicate(timeout=200)
        assert refused.returncode != 0, printed
        assert "local.cluster.node" not in printed


def test_a_run_spreads_over_them_and_is_fetched(
    cluster: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    (run,) = cluster.runs.glob("full_repro-*")
    assert undisturbed == scores(run)
    assert len(undisturbed) >= 8 + 4
    # Each has worked: their own disks have what training and scoring leave there.
    for machine in cluster.machines.all:
        assert (machine.folder / "var_tmp/apgd/cache/weights").is_dir(), machine.name


def test_a_worker_is_switched_off(
    cluster: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    worker = cluster.machines.all[1]
    run = cluster.start("less")
    wait_until(lambda: "✓ data" in cluster.log("less"), "data to be ready", 300)
    wait_until(lambda: bool(worker.processes("ray::RemoteWorker")), "its worker to be there")
    (process,) = worker.processes("ray::RemoteWorker")
    process.suspend()
    # The others do everything but what this one has begun.
    wait_until(lambda: cluster.experts("less", "manifest.json") >= 7, "the others' experts", 200)
    worker.kill()
    printed, _ = run.communicate(timeout=500)
    assert run.returncode == 0, printed
    assert f"on {worker.name} died while" in cluster.log("less")
    assert scores(cluster.runs / "less") == undisturbed


def test_it_joins_again_once_it_is_on(cluster: OnPremises) -> None:
    worker = cluster.machines.all[1]
    cluster.machines.switch_on(worker)
    # The cluster notices half a minute after the loss, and counts it until then.
    wait_until(lambda: bool(worker.processes("raylet")), "Ray to be started on it", 300)
    cluster.wait_for_all(STATUS)


@pytest.mark.soak
def test_the_head_is_switched_off(
    cluster: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    head = cluster.machines.all[0]
    run = cluster.start("headless")
    wait_until(lambda: cluster.experts("headless") >= 3, "experts in training", 300)
    head.kill()
    run.communicate(timeout=300)
    assert run.returncode != 0
    assert not (cluster.runs / "headless/report.html").exists()

    cluster.machines.switch_on(head)
    cluster.do(UP)
    cluster.wait_for_all(STATUS)
    cluster.finish("headless")
    assert "reused" in cluster.log("headless")
    assert scores(cluster.runs / "headless") == undisturbed


def test_nothing_is_installed_twice(cluster: OnPremises) -> None:
    assert "up to date" in cluster.do(UP)
    assert len(list((cluster.machines.shared / "apgd").glob("versions-*"))) == 1


def is_of_ray(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        name = process.name()
        return name in ("raylet", "gcs_server") or "ray::" in name
    return False


@pytest.mark.soak
def test_nothing_is_left_running(cluster: OnPremises) -> None:
    cluster.do(DOWN)
    # Ray ends on the head at once, and on the others when they have missed it for a minute.
    wait_until(lambda: not any(map(is_of_ray, cluster.machines.processes())), "Ray to end", 300)
