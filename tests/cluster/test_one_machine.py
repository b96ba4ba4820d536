"""The README's commands for machines of one's own, on one machine, from `ray up` to `ray down`.

Real: ssh, rsync, the cluster file (filled in), its set-up script, Ray's commands and its token, the
driver in the machine's home, which has nothing but what was copied there. Not real: `uv` on the
machine is a stand-in, which makes an environment out of the packages that are installed here, as
there is no network; rendered data are those of this machine; the smoke run has two methods.
"""

from collections.abc import Iterator

import pytest

from tests.cluster.machines import machines, reason_to_skip, wait_until
from tests.cluster.on_premises import SHORT, OnPremises, readme_commands, scores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with machines(tmp_path_factory.mktemp("one"), 1) as network:
        yield OnPremises(network)


def test_the_readme_word_by_word(cluster: OnPremises) -> None:
    (machine,) = cluster.machines.all
    token, up, status, submit, fetch, down = readme_commands()

    cluster.do(token)
    cluster.do(up)
    wait_until(lambda: "1 local.cluster.node" in cluster.do(status), "the machine's status", 30)
    on = cluster.machines.on
    assert on(machine, "stat -c %a ~/.ray/auth_token").split()[-1] == "600"
    # Nothing else can be reached, and nobody without the token is answered.
    everywhere = {"*:6379", "*:6380", "*:6381", "0.0.0.0:22", "[::]:22"}
    assert cluster.listening(machine) == everywhere | {f"{machine.address}:6382"}
    asked = f"timeout 20 ray status --address {machine.address}:6379"
    assert "1 local.cluster.node" in cluster.machines.operate(f"RAY_AUTH_MODE=token {asked}")
    for stranger in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"):
        refused = cluster.machines.start(f"{stranger} {asked}")
        printed, _ = refused.communicate(timeout=60)
        assert refused.returncode != 0, printed
        assert "local.cluster.node" not in printed

    printed = cluster.do(f"{submit} {SHORT}", timeout=240)
    assert "report.html" in printed
    cluster.do(fetch)
    (run,) = cluster.fetched.glob("full_repro-*")
    assert (run / "report.html").stat().st_size > 10_000
    assert scores(run) == scores(cluster.runs / run.name) != {}

    assert "up to date" in cluster.do(up)  # nothing is installed twice
    assert len(list((cluster.machines.shared / "apgd").glob("versions-*"))) == 1

    cluster.do(down)
    left = [p.name() for p in cluster.machines.processes()]
    assert [name for name in left if name in ("raylet", "gcs_server") or "ray::" in name] == []
