"""Loud registries: one module per entry, found by being there."""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Generic, TypeVar, overload

from apgd.errors import InputError

T = TypeVar("T")
D = TypeVar("D")
_NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
"""Names become parts of file names, of addresses on a page, and of commands."""


class Registry(Mapping[str, T], Generic[T]):
    """The entries of type `kind` that the modules of a package define at top level.

    Each module of `package` contributes every module-level object of type `kind`, and those in
    module-level tuples, under their `name`.
    Modules whose name starts with an underscore are skipped. Modules are imported on first use.

    Raises:
        InputError: on look-up of an unknown name; the message lists the known ones.
        ValueError: where two entries share a name, or one has a name that could not be a file's.
    """

    def __init__(self, package: ModuleType, kind: type[T], noun: str) -> None:
        self._package = package
        self._kind = kind
        self._noun = noun
        self._entries: dict[str, T] | None = None

    def _found(self) -> dict[str, T]:
        if self._entries is None:
            entries: dict[str, T] = {}
            for info in sorted(pkgutil.iter_modules(self._package.__path__), key=lambda i: i.name):
                if info.name.startswith("_"):
                    continue
                module = importlib.import_module(f"{self._package.__name__}.{info.name}")
                for value in vars(module).values():
                    for entry in value if isinstance(value, tuple) else (value,):
                        if isinstance(entry, self._kind):
                            self._add(entries, entry)
            self._entries = entries
        return self._entries

    def _add(self, entries: dict[str, T], value: Any) -> None:
        if not re.fullmatch(_NAME, str(value.name)):
            raise ValueError(
                f"a {self._noun}'s name must be lower-case letters, digits, and any of _ . -, at "
                f"most 64, but got {value.name!r}"
            )
        known = entries.get(value.name)
        if known is not None and known is not value:
            raise ValueError(f"two {self._noun}s are named {value.name!r}")
        entries[value.name] = value

    def __getitem__(self, name: str) -> T:
        try:
            return self._found()[name]
        except KeyError:
            known = ", ".join(self)
            raise InputError(f"unknown {self._noun} {name!r}; known are: {known}") from None

    @overload
    def get(self, name: str, /) -> T | None: ...
    @overload
    def get(self, name: str, /, default: T | D) -> T | D: ...
    def get(self, name: str, /, default: Any = None) -> Any:
        """The entry of that name, or `default`; unlike look-up, it accepts an unknown name."""
        return self._found().get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._found()))

    def __len__(self) -> int:
        return len(self._found())

    def __contains__(self, name: object) -> bool:
        return name in self._found()
