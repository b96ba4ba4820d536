"""The comparison of all methods: its choices, and that equal rows are scored once."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from apgd.methods import methods
from experiments import compare_methods
from experiments.compare_methods import MethodComparison, every_method
from tune.evaluators import Purpose, ScoreJob, Workload
from tune.experiment import Experiment
from tune.progress import Display
from tune.records import Kind, Record, RecordStore, Variant
from tune.stages import evaluate


def test_every_registered_method_is_compared_once() -> None:
    chosen = every_method()
    assert len(set(chosen)) == len(chosen)
    assert set(methods) <= set(chosen)
    assert {"weight_averaging+apgd", "ties+apgd"} <= set(chosen)
    assert chosen[:2] == ("weight_averaging", "task_arithmetic")


def test_defaults() -> None:
    comparison = MethodComparison()
    assert (comparison.suite, comparison.seeds) == ("mini_vision", 3)
    assert comparison.corruption_limit == 0
    assert comparison.folder != Experiment(trials=comparison.trials).folder
    assert "compare_methods-mini_vision" in str(comparison.folder)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        compare_methods.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in (*(field.name for field in fields(MethodComparison)), "budget"):
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0"], "trials must be at least 1, but got 0"),
        (["--methods", "ties", "nope"], "unknown method 'nope'; known are: "),
        (["--methods", "doge_ta+apgd"], "doge_ta has it in it"),
        (["--methods", "ties", "ties"], "methods must not repeat"),
    ],
)
def test_bad_choices_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_methods.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


class Scorer:
    """A pool of workers that writes made-up records, and counts."""

    def __init__(self, store: RecordStore) -> None:
        self.store = store
        self.scored: list[ScoreJob] = []

    def run(self, jobs: Any, *, on_done: Any) -> list[Any]:
        for index, job in enumerate(jobs):
            workload, scored = job.arguments
            self.scored.append(scored)
            right = np.arange(10) < 5 + scored.seed
            record = Record(
                kind=Kind.EVALUATION,
                method=scored.method,
                variant=scored.variant,
                seed=scored.seed,
                params=dict(scored.params),
                inputs=workload.inputs_of(scored.seed),
                scores={"test/t": float(right.mean())},
                details={"number": 0, "reads": {"test": 1}},
            )
            assert record.key == scored.key(workload)
            self.store.add(record, {"test/t": right})
            on_done(index, None)
        return []


def test_rows_with_the_same_parameters_are_scored_once(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    pool: Any = Scorer(store)
    inputs = tuple((seed, (("base", "b"),)) for seed in range(2))
    workload = Workload("mini_vision", tmp_path, (), inputs, None, 0)

    def job(variant: Variant, coefficient: float, seed: int = 0) -> ScoreJob:
        params = (("coefficient", coefficient),)
        return ScoreJob(Purpose.FINAL, "task_arithmetic", variant, seed, params)

    jobs = [
        job(Variant.PUBLISHED, 0.3),
        job(Variant.TUNED, 0.3),
        job(Variant.PUBLISHED, 0.3, seed=1),
        job(Variant.TUNED, 0.4, seed=1),
    ]
    with Display(Console(quiet=True)) as display:
        rows = evaluate(jobs, workload, pool, store, display)
        assert [scored.seed for scored in pool.scored] == [0, 1, 1]
        assert [row.variant for row in rows] == [each.variant for each in jobs]
        assert rows[1].scores == rows[0].scores
        assert rows[1].details["same_as"] == rows[0].key
        assert rows[1].details["reads"] == {}
        np.testing.assert_array_equal(
            store.answers(rows[1])["test/t"], store.answers(rows[0])["test/t"]
        )
        again = evaluate(jobs, workload, pool, store, display)
    assert again == rows
    assert len(pool.scored) == 3
