from typing import Any

import pytest

from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.hub import huggingface
from lorgnette.hub.http import HttpClient, RetryPolicy

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


def files(*arguments: Any) -> Any:
    with HttpClient(retry_policy=QUICK) as client:
        return huggingface.list_files(client, *arguments)


def test_a_listing_is_pinned_to_its_commit(hub: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {"README.md": b"# x", "data/train-0.parquet": b"P" * 30_000})
    hub.cards["me/set"] = {"configs": [{"config_name": "default", "data_files": "data/*"}]}
    result = files("me/set", "dataset")
    assert len(result.revision) == 40
    assert [(file.path, file.size, bool(file.sha256)) for file in result.files] == [
        ("README.md", 3, False),
        ("data/train-0.parquet", 30_000, True),
    ]
    assert result.files[1].url == f"{hub.url}/datasets/me/set/resolve/{result.revision}/data/train-0.parquet"
    assert result.card["configs"][0]["data_files"] == "data/*"
    assert result.headers == {}


def test_the_token_is_sent(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("hf", "models", "me/m", {"config.json": b"{}"})
    hub.token = "secret"
    with pytest.raises(SourceError, match="no permission to read this"):
        files("me/m", "model")
    monkeypatch.setenv("HF_TOKEN", "secret")
    result = files("me/m", "model")
    assert result.headers == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(result)


@pytest.mark.parametrize(
    ("name", "revision", "match"),
    [
        ("me/none", None, r"there is no such repository, or it is private \(HTTP 404\) · hf:me/none · check the name"),
        ("me/set", "v9", "there is no such revision"),
        ("me/set/more", None, "is not the name of a repository"),
    ],
)
def test_missing_repositories_and_revisions_are_named(name: str, revision: str | None, match: str, hub: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {})
    with pytest.raises(LorgnetteError, match=match) as raised:
        files(name, "dataset", revision)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "match"),
    [(429, r"rate limited \(HTTP 429\)"), (500, r"server error \(HTTP 500\)"), (403, "no permission")],
)
def test_each_status_has_a_message(status: int, match: str, hub: Any, trick: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {})
    hub.trick("/api/datasets/me/set", *[trick(status=status)] * 9)
    with pytest.raises(SourceError, match=match) as raised:
        files("me/set", "dataset")
    assert "\n" not in str(raised.value)


def test_transient_failures_are_retried(hub: Any, trick: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {"a": b"b"})
    hub.trick("/api/datasets/me/set", trick(status=503))
    assert files("me/set", "dataset").files


def test_no_network_and_offline(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot reach 127\.0\.0\.1: connection refused · hf:me/set"):
        files("me/set", "dataset")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE forbids"):
        files("me/set", "dataset")


def test_a_full_disk_is_named(hub: Any) -> None:
    with pytest.raises(LorgnetteError, match="the disk is full"), huggingface.explain_errors("hf:a/b"):
        raise OSError(28, "No space left on device")
