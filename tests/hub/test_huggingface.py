from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub import huggingface
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.trouble import SourceError

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


def files(*asked: Any) -> Any:
    with HttpClient(retry_policy=QUICK) as line:
        return huggingface.list_files(line, *asked)


def test_a_listing_is_pinned_to_its_commit(hub: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {"README.md": b"# x", "data/train-0.parquet": b"P" * 30_000})
    hub.cards["me/set"] = {"configs": [{"config_name": "default", "data_files": "data/*"}]}
    found = files("me/set", "dataset")
    assert len(found.revision) == 40
    assert [(file.path, file.size, bool(file.sha256)) for file in found.files] == [
        ("README.md", 3, False),
        ("data/train-0.parquet", 30_000, True),
    ]
    assert found.files[1].url == f"{hub.url}/datasets/me/set/resolve/{found.revision}/data/train-0.parquet"
    assert found.card["configs"][0]["data_files"] == "data/*"
    assert found.headers == {}


def test_the_token_is_sent(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repo("hf", "models", "me/m", {"config.json": b"{}"})
    hub.token = "secret"
    with pytest.raises(SourceError, match="no rights to read this"):
        files("me/m", "model")
    monkeypatch.setenv("HF_TOKEN", "secret")
    found = files("me/m", "model")
    assert found.headers == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("name", "revision", "match"),
    [
        ("me/none", None, r"there is no such repository, or it is private \(404\) · hf:me/none · check the name"),
        ("me/set", "v9", "there is no such revision"),
        ("me/set/more", None, "is no repository's name"),
    ],
)
def test_what_is_not_there_is_said(name: str, revision: str | None, match: str, hub: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {})
    with pytest.raises(LorgnetteError, match=match) as caught:
        files(name, "dataset", revision)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "match"), [(429, r"a quota is used up \(429\)"), (500, r"the server failed \(500\)"), (403, "no rights")]
)
def test_statuses_get_their_sentence(status: int, match: str, hub: Any, trick: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {})
    hub.trick("/api/datasets/me/set", *[trick(status=status)] * 9)
    with pytest.raises(SourceError, match=match) as caught:
        files("me/set", "dataset")
    assert "\n" not in str(caught.value)


def test_what_may_pass_is_tried_again(hub: Any, trick: Any) -> None:
    hub.repo("hf", "datasets", "me/set", {"a": b"b"})
    hub.trick("/api/datasets/me/set", trick(status=503))
    assert files("me/set", "dataset").files


def test_no_network_and_offline(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1 cannot be reached: the connection is refused · hf:me/set"):
        files("me/set", "dataset")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE forbids"):
        files("me/set", "dataset")


def test_a_full_disk_is_said(hub: Any) -> None:
    with pytest.raises(LorgnetteError, match="the disk is full"), huggingface.explain_errors("hf:a/b"):
        raise OSError(28, "No space left on device")
