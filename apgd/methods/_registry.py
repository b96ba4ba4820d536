"""The known methods."""

import os
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from apgd.errors import InputError
from apgd.methods._method import Method
from apgd.methods._plug import SUFFIX, plugged
from apgd.registry import Registry

PATH_VARIABLE = "APGD_METHODS"
"""The environment variable that names further folders of methods."""


class Methods(Registry[Method]):
    """The known methods; `NAME+apgd` gives one with APGD's modification vector added first."""

    def _found(self) -> dict[str, Method]:
        own = list(self._package.__path__)[1:]
        if self._entries is not None or not own:
            return super()._found()
        for folder in own:
            if not Path(folder).is_dir():
                raise InputError(f"{PATH_VARIABLE} must name folders, but {folder} is none")
        _check_names(self._package.__path__)
        try:
            return super()._found()
        except Exception as error:
            raise InputError(
                f"files in the folders of {PATH_VARIABLE} ({', '.join(own)}) must be modules whose "
                f"methods have names of their own, but: {type(error).__name__}: {error}"
            ) from error

    def __getitem__(self, name: str) -> Method:
        """The method of that name.

        Raises:
            InputError: for an unknown method, or one that cannot have APGD before it.
        """
        if not name.endswith(SUFFIX):
            return super().__getitem__(name)
        return plugged(self[name.removesuffix(SUFFIX)])

    def get(self, name: Any, default: Any = None) -> Any:
        """The method of that name, or `default`; unlike look-up, it accepts an unknown name."""
        return self[name] if self.__contains__(name) else default

    def __contains__(self, name: object) -> bool:
        """Whether there is a method of that name."""
        if not isinstance(name, str) or not name.endswith(SUFFIX):
            return super().__contains__(name)
        inner = self.get(name.removesuffix(SUFFIX))
        return inner is not None and inner.with_apgd


def _check_names(folders: Iterable[str]) -> None:
    """Raise InputError where two folders have a module of one name: Python sees only the first."""
    seen: set[str] = set()
    for folder in folders:
        names = {module.name for module in pkgutil.iter_modules([folder])}
        if taken := names & seen:
            raise InputError(
                f"files in the folders of {PATH_VARIABLE} must not be named like other modules of "
                f"methods, but {Path(folder) / min(taken)}.py is"
            )
        seen |= names


def own_folders(package: ModuleType) -> None:
    """Look for methods also in the folders that the environment names, as in PATH."""
    named = os.environ.get(PATH_VARIABLE, "")
    package.__path__.extend(folder for folder in named.split(os.pathsep) if folder)
