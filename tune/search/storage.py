"""Where studies are kept, which optuna-dashboard opens."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from apgd.errors import InputError
from apgd.masking import masked_address, without_secrets
from tune.databases import put_damaged_aside
from tune.experiment import Experiment


def storage_url(experiment: Experiment) -> str:
    """The chosen database, or else one in the run folder."""
    return experiment.storage or f"sqlite:///{_own_database(experiment)}"


def _own_database(experiment: Experiment) -> Path:
    return (experiment.folder / "studies.db").resolve()


def open_storage(
    experiment: Experiment, say: Callable[[str], None] = lambda _sentence: None
) -> optuna.storages.BaseStorage:
    """The database of an experiment's studies, made where it is not there.

    A damaged one in the run folder is put aside, and nothing is lost with it: a search takes what
    it would suggest again from the rungs on disk.

    Args:
        experiment: says which it is.
        say: called with a sentence on what was damaged, and where it went.

    Raises:
        InputError: where Optuna cannot open it.
    """
    url = storage_url(experiment)
    if not experiment.storage:
        put_damaged_aside(
            _own_database(experiment),
            "the searches' database",
            "trials are taken from the rungs on disk",
            say,
        )
    try:
        return optuna.storages.RDBStorage(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = (without_secrets(str(error), url).splitlines() or [""])[0]
        raise InputError(
            f"--storage must be a database that Optuna can open, for example "
            f"sqlite:///studies.db, but got {masked_address(url)!r}: {reason}"
        ) from error


def add_trials(study: optuna.Study, first: int, trials: Sequence[FrozenTrial]) -> None:
    """Add finished trials to a study, all of them in one transaction.

    Optuna's own `add_trial` takes some forty statements and a transaction for each, 10 ms of work;
    the rows here are the same. Nobody else may write to the study.

    Args:
        study: where to.
        first: number of the first of them: how many the study has.
        trials: the others follow on it.

    Raises:
        optuna.exceptions.StorageInternalError: where the database does not take them.
    """
    storage = getattr(study._storage, "_backend", study._storage)  # behind Optuna's cache
    if not isinstance(storage, RDBStorage):
        study.add_trials(trials)
        return
    try:
        with Session(storage.engine) as session, session.begin():
            rows = [
                models.TrialModel(
                    study_id=study._study_id,
                    number=first + offset,
                    state=trial.state,
                    datetime_start=trial.datetime_start,
                    datetime_complete=trial.datetime_complete,
                )
                for offset, trial in enumerate(trials)
            ]
            session.add_all(rows)
            session.flush()  # which gives them their identifiers
            for table, values in _rows([int(row.trial_id) for row in rows], trials).items():
                if values:
                    session.execute(insert(table), values)
    except SQLAlchemyError as error:
        raise optuna.exceptions.StorageInternalError(str(error)) from error


def _rows(
    identifiers: Sequence[int], trials: Sequence[FrozenTrial]
) -> Mapping[type, list[dict[str, Any]]]:
    """What trials have in tables beside their own."""
    params, values, notes, intermediates = [], [], [], []
    for own, trial in zip(identifiers, trials, strict=True):
        for name, value in trial.params.items():
            distribution = trial.distributions[name]
            params.append({
                "trial_id": own, "param_name": name,
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            })  # fmt: skip
        for objective, value in enumerate(trial.values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            values.append(
                {"trial_id": own, "objective": objective, "value": stored, "value_type": kind}
            )
        for key, value in trial.user_attrs.items():
            notes.append({"trial_id": own, "key": key, "value_json": json.dumps(value)})
        for step, value in trial.intermediate_values.items():
            model = models.TrialIntermediateValueModel
            intermediate, its_kind = model.intermediate_value_to_stored_repr(value)
            intermediates.append({
                "trial_id": own, "step": step, "intermediate_value": intermediate,
                "intermediate_value_type": its_kind,
            })  # fmt: skip
    return {
        models.TrialParamModel: params,
        models.TrialValueModel: values,
        models.TrialUserAttributeModel: notes,
        models.TrialIntermediateValueModel: intermediates,
    }
