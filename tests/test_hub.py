"""Files of the hub: from the cache without a connection, or a message that says what to do."""

import hashlib
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from apgd import InputError, hub
from apgd.data import retry
from apgd.errors import DamagedError
from apgd.hub import check_hub_file, hub_file, hub_weights
from tests.hub_cache import COMMIT, HubCache, offline_cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    return offline_cache(tmp_path / "hub", monkeypatch)


def test_what_is_cached_needs_no_connection(cache: HubCache) -> None:
    (cache.snapshot("some/model") / "config.json").write_text("{}")
    for revision in (None, "main", COMMIT):
        assert hub_file("some/model", "config.json", revision).read_text() == "{}"


def test_what_is_not_cached_is_named_with_the_command_that_gets_it(cache: HubCache) -> None:
    cache.snapshot("some/model")
    with pytest.raises(InputError) as caught:
        hub_file("some/model", "model.safetensors")
    assert "model.safetensors of some/model must be in the hub's cache" in str(caught.value)
    assert str(cache.root) in str(caught.value)
    assert "`hf download some/model model.safetensors` gets it" in str(caught.value)
    with pytest.raises(InputError, match="--revision v1` gets it"):
        hub_file("some/model", "model.safetensors", "v1")


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    request = httpx2.Request("GET", "https://hub.invalid/file")
    return kind("no", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(GatedRepoError, 403), "some/model is only for those who accepted its terms"),
        (answered(RevisionNotFoundError, 404), "must have the revision v9, but the hub has none"),
        (answered(RepositoryNotFoundError, 404), "some/model must be a public repository"),
        (answered(RemoteEntryNotFoundError, 404), "some/model must hold x.bin at v9"),
        (OSError("No space left on device"), r"downloading failed \(OSError: No space left"),
    ],
)
def test_what_the_hub_refuses_is_said(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(*_args: Any, **_options: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=message):
        hub_file("some/model", "x.bin", "v9")


def test_busy_servers_are_asked_again(cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def busy_at_first(repo: str, filename: str, *, revision: str | None) -> str:
        asked.append(filename)
        if len(asked) < 3:
            raise answered(HfHubHTTPError, 503 if len(asked) == 1 else 429)
        return "/somewhere/file"

    monkeypatch.setattr(hub, "hf_hub_download", busy_at_first)
    monkeypatch.setattr(
        hub, "with_retries", lambda action: retry.with_retries(action, lambda _: None)
    )
    assert hub_file("some/model", "file") == Path("/somewhere/file")
    assert len(asked) == 3


def test_weights_are_safetensors_where_there_are_some_and_a_pickle_otherwise(
    cache: HubCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache.snapshot("some/old") / "pytorch_model.bin").write_text("old")
    assert hub_weights("some/old").name == "pytorch_model.bin"
    (cache.snapshot("some/old") / "model.safetensors").write_text("new")
    assert hub_weights("some/old").name == "model.safetensors"

    def only_a_pickle(_repo: str, filename: str, *, revision: str | None) -> str:
        if filename == "model.safetensors":
            raise answered(RemoteEntryNotFoundError, 404)
        return f"/somewhere/{revision}/{filename}"

    monkeypatch.setattr(hub, "hf_hub_download", only_a_pickle)
    assert hub_weights("some/model", "v1") == Path("/somewhere/v1/pytorch_model.bin")


def test_weights_that_cannot_be_reached_are_not_looked_for_as_a_pickle(cache: HubCache) -> None:
    cache.snapshot("some/model")
    with pytest.raises(InputError, match="hf download some/model model.safetensors"):
        hub_weights("some/model")


def test_a_file_of_the_cache_that_was_damaged_is_found(cache: HubCache, tmp_path: Path) -> None:
    content = b"weights"
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    blob = blobs / hashlib.sha256(content).hexdigest()
    blob.write_bytes(content)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    check_hub_file(link)
    blob.write_bytes(b"weighty")
    with pytest.raises(DamagedError, match="that the hub gave it, but has .*; delete "):
        check_hub_file(link)
    (tmp_path / "own.safetensors").write_bytes(content)
    check_hub_file(tmp_path / "own.safetensors")
