"""Files from the Hugging Face hub: downloaded once per machine, then read from the hub's cache."""

import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from apgd.data.retry import with_retries
from apgd.errors import DamagedError, InputError
from apgd.files import sha256_file

SAFETENSORS = "model.safetensors"
PYTORCH = "pytorch_model.bin"
_SHA256 = re.compile("[0-9a-f]{64}")


def hub_file(repo: str, filename: str, revision: str | None = None) -> Path:
    """A file of a model's repository on the hub.

    What is in the hub's cache is taken as it is, without asking whether there is a newer version,
    so that no run changes its weights half-way and none needs a connection twice. Several processes
    may ask at once: the hub's client downloads a file once. Nothing of it is run.

    Args:
        repo: `owner/name`.
        filename: path inside the repository, for example `model.safetensors`.
        revision: commit, tag or branch; the main branch where None.

    Raises:
        InputError: where the file is neither in the cache nor to be had; the message says what is
            missing, and how to get it.
    """
    cached = try_to_load_from_cache(repo, filename, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        found = with_retries(lambda: _download(repo, filename, revision))
    except GatedRepoError as error:
        raise InputError(
            f"{repo} is only for those who accepted its terms on the hub; accept them there, and "
            f"log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(
            f"{repo} must have the revision {revision}, but the hub has none"
        ) from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{repo} must be a public repository of the hub, or one that `hf auth login` gives "
            f"access to, but the hub knows none of that name"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(
            f"{repo} must hold {filename}{_at(revision)}, but on the hub it does not"
        ) from error
    except Exception as error:
        reason = f"downloading failed ({type(error).__name__}: {_first_line(error)})"
        raise InputError(_missing(repo, filename, revision, reason)) from error
    if found is None:
        raise InputError(_missing(repo, filename, revision, "the hub cannot be reached"))
    return found


def cached_weights(repo: str, revision: str | None = None) -> Path | None:
    """A model's weights in the hub's cache, or None where they were not fetched."""
    for name in (SAFETENSORS, PYTORCH):
        cached = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    return None


def hub_weights(repo: str, revision: str | None = None) -> Path:
    """A model's weights in one file: as safetensors, or where a repository has none as pickle.

    Nothing is run of either here; who reads a pickle has to see to that (apgd.pickled does).

    Raises:
        InputError: as for `hub_file`.
    """
    cached = cached_weights(repo, revision)
    if cached is not None:
        return cached
    try:
        return hub_file(repo, SAFETENSORS, revision)
    except InputError as error:
        if not isinstance(error.__cause__, EntryNotFoundError):
            raise
    return hub_file(repo, PYTORCH, revision)


def check_hub_file(path: Path) -> None:
    """Raise DamagedError where a file of the hub's cache is not what was downloaded.

    The cache names large files by their SHA-256; of others, and of files from elsewhere, nothing is
    known that could be checked.
    """
    stored = path.resolve()
    if not (path.is_file() and stored.parent.name == "blobs" and _SHA256.fullmatch(stored.name)):
        return
    found = sha256_file(stored)
    if found != stored.name:
        raise DamagedError(
            f"{path} must have the hash {stored.name[:12]} that the hub gave it, but has "
            f"{found[:12]}; delete {stored}, and it is downloaded again"
        )


def _download(repo: str, filename: str, revision: str | None) -> Path | None:
    """The file, or None where nobody answers (after the client's own attempts) or nobody may."""
    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except LocalEntryNotFoundError:
        return None


def _missing(repo: str, filename: str, revision: str | None, reason: str) -> str:
    option = f" --revision {revision}" if revision else ""
    return (
        f"{filename} of {repo}{_at(revision)} must be in the hub's cache "
        f"({constants.HF_HUB_CACHE}), but is not, and {reason}; with a connection, "
        f"`hf download {repo} {filename}{option}` gets it"
    )


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")
