"""A head and two workers, each a machine of its own on one network.

What is real and what is not is said in test_one_machine.py; here, the shared folder is the same
folder on all machines, as an NFS share is.
"""

import pytest

from tests.cluster.on_premises import OnPremises

pytestmark = pytest.mark.slow


def test_a_run_spreads_over_the_machines(
    three_machines: OnPremises, undisturbed: dict[str, dict[str, float]]
) -> None:
    assert len(undisturbed) >= 8 + 4
    assert "3 nodes, 3 CPUs" in three_machines.log("undisturbed")
    # Each has worked: their own disks have what training and scoring leave there.
    for machine in three_machines.machines.all:
        assert (machine.folder / "var_tmp/apgd/cache/weights").is_dir(), machine.name
