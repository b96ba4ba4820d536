"""Where studies are kept, which optuna-dashboard opens."""

import optuna
from sqlalchemy.exc import SQLAlchemyError

from apgd.errors import InputError
from tune.experiment import Experiment, without_credentials


def storage_url(experiment: Experiment) -> str:
    """The chosen database, or else one in the run folder."""
    return experiment.storage or f"sqlite:///{(experiment.folder / 'studies.db').resolve()}"


def open_storage(experiment: Experiment) -> optuna.storages.BaseStorage:
    """The database of an experiment's studies, made where it is not there.

    Raises:
        InputError: where Optuna cannot open it.
    """
    url = storage_url(experiment)
    try:
        return optuna.storages.RDBStorage(url)
    except (SQLAlchemyError, ImportError) as error:
        reason = without_credentials((str(error).splitlines() or [""])[0])
        raise InputError(
            f"--storage must be a database that Optuna can open, for example "
            f"sqlite:///studies.db, but got {without_credentials(url)!r}: {reason}"
        ) from error
