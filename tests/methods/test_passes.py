"""Methods read the task vectors as often as they say."""

from collections import Counter
from collections.abc import Callable

import pytest
from torch import Tensor

from apgd import TaskVectors
from apgd.evidence import Need
from apgd.methods import methods
from apgd.transformed import Transformed
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]


@pytest.mark.parametrize("name", [n for n in methods if methods[n].needs is Need.NOTHING])
def test_every_matrix_is_read_as_often_as_declared(name: str, model: Make) -> None:
    read: Counter[str] = Counter()

    def counted(matrix: str, tau: Tensor) -> Tensor:
        read[matrix] += 1
        return tau

    vectors = Transformed(TaskVectors(*model(), keep=False), counted)
    method = methods[name]
    method.merge(vectors, method.parse({}))
    assert read == dict.fromkeys(vectors.names, method.passes)
