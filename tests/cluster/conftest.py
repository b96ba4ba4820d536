"""Three machines, made once for all tests that use them."""

from collections.abc import Iterator

import pytest

from tests.cluster.machines import machines, reason_to_skip
from tests.cluster.on_premises import OnPremises, scores


@pytest.fixture(scope="session")
def three_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPremises]:
    reason = reason_to_skip()
    if reason is not None:
        pytest.skip(reason)
    with machines(tmp_path_factory.mktemp("three"), 3) as network:
        made = OnPremises(network)
        made.do("uv run ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
        made.up()
        yield made


@pytest.fixture(scope="session")
def undisturbed(three_machines: OnPremises) -> dict[str, dict[str, float]]:
    three_machines.finish("undisturbed")
    return scores(three_machines.runs / "undisturbed")
