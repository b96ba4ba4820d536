"""Which code and which libraries make a result, so that it is not taken for another one."""

import hashlib
import importlib.util
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def source_hash(*modules: str) -> str:
    """Twelve hexadecimal digits of the SHA-256 over the Python source of modules and packages.

    It is computed once per process: what was imported does not change when a file is edited later.

    Args:
        *modules: dotted names; a package stands for every module below it, in all folders on its
            path.
    """
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no module named {module!r}")
        origin = Path(spec.origin)
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        files = [(folder, path) for folder in folders for path in sorted(folder.rglob("*.py"))]
        for folder, path in files or [(origin.parent, origin)]:
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def library_versions(*packages: str) -> tuple[tuple[str, str], ...]:
    """Names and versions of installed packages, in the order given."""
    return tuple((package, version(package)) for package in packages)
