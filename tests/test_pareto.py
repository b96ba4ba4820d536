"""The Pareto front against its definition and against Optuna's."""

import numpy as np
import optuna
import pytest

from apgd.errors import InputError
from apgd.pareto import pareto_front


def by_definition(points: np.ndarray) -> list[bool]:
    """Point by point and objective by objective, without arrays."""

    def beats(first: list[float], second: list[float]) -> bool:
        pairs = list(zip(first, second, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    rows = points.tolist()
    return [not any(beats(other, row) for other in rows) for row in rows]


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_it_is_what_the_definition_says(objectives):
    rng = np.random.default_rng(objectives)
    for count in (1, 2, 7, 60):
        smooth = rng.normal(size=(count, objectives))
        tied = rng.integers(0, 4, (count, objectives)).astype(float)  # many equal values
        for points in (smooth, tied):
            assert pareto_front(points).tolist() == by_definition(points)


@pytest.mark.parametrize("objectives", [2, 3])
def test_it_is_that_of_optuna(objectives):
    rng = np.random.default_rng(3)
    points = rng.integers(0, 12, (80, objectives)) / 10
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize"] * objectives)
    study.add_trials([optuna.trial.create_trial(values=point.tolist()) for point in points])
    theirs = {trial.number for trial in study.best_trials}
    assert set(np.flatnonzero(pareto_front(points)).tolist()) == theirs
    assert 0 < len(theirs) < len(points)


def test_equal_points_are_both_on_it():
    points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert pareto_front(points).tolist() == [True, True, True, False]


def test_no_points_have_an_empty_front():
    assert pareto_front(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("points", [np.zeros(3), np.zeros((3, 0)), np.array([[np.nan, 1.0]])])
def test_what_is_no_set_of_points_is_refused(points):
    with pytest.raises(InputError, match="points must be"):
        pareto_front(points)
