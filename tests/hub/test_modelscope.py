import pickle
from http.cookiejar import Cookie, CookieJar
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError, SourceError
from lorgnette.hub import modelscope
from lorgnette.hub.http import HttpClient, RetryPolicy

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


def files(kind: Any, name: str, revision: str = "master") -> Any:
    with HttpClient(retry_policy=QUICK) as client:
        return modelscope.list_files(client, kind, name, revision)


def test_a_data_set_is_listed_page_by_page(hub: Any) -> None:
    hub.repo("modelscope", "datasets", "me/set", {f"data/{i:04d}.txt": b"x" * i for i in range(450)})
    result = files("dataset", "me/set", "v2")
    assert [(file.path, file.size) for file in result.files] == [(f"data/{i:04d}.txt", i) for i in range(450)]
    assert [item.query["PageNumber"] for item in hub.log] == ["1", "2", "3"]
    assert all(item.query["Revision"] == "v2" for item in hub.log)
    assert result.files[0].url.startswith(f"{hub.url}/api/v1/datasets/me/set/repo?Revision=v2&FilePath=data%2F0000.txt")
    assert len(result.files[0].sha256) == 64


def test_a_model_is_listed(hub: Any) -> None:
    hub.repo("modelscope", "models", "Qwen/Qwen2-VL-2B-Instruct", {"config.json": b"{}"})
    assert [file.path for file in files("model", "Qwen/Qwen2-VL-2B-Instruct").files] == ["config.json"]


def test_the_token_comes_from_the_variable_or_the_saved_login(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"
    hub.repo("modelscope", "models", "me/m", {"config.json": b"{}"})
    with pytest.raises(SourceError, match=r"no permission to read this \(HTTP 403\) · .*MODELSCOPE_API_TOKEN"):
        files("model", "me/m")
    jar = CookieJar()
    for name in ("csrf_token", "m_session_id"):
        value = "secret" if name == "m_session_id" else "other"
        cookie = (0, name, value, None, False, "127.0.0.1", True, False, "/", True, False, 2**33, False, None, None, {})
        jar.set_cookie(Cookie(*cookie))
    state = {**vars(jar)}
    state.pop("_cookies_lock")
    saved = tmp_path / "ms-home" / "credentials" / "cookies"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(pickle.dumps(_Jar(state)))
    assert modelscope.get_headers()["Authorization"] == "Bearer secret"
    assert files("model", "me/m").files
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "other")
    assert modelscope.get_headers()["Cookie"] == "m_session_id=other"
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "")
    assert modelscope.get_headers() == {}


class _Jar:
    """Pickles as a cookie jar does: a class and its attributes."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(BOMB),))


BOMB = "bomb"


def test_a_saved_login_runs_no_code(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.BOMB", str(tmp_path / "bomb"))
    saved = tmp_path / "ms-home" / "credentials" / "cookies"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(pickle.dumps(_Bomb()))
    assert modelscope.get_headers() == {}
    assert not (tmp_path / "bomb").exists()


def test_missing_repositories_are_named(hub: Any, trick: Any) -> None:
    with pytest.raises(SourceError, match=r"not found \(HTTP 404\)"):
        files("dataset", "me/none")
    hub.trick("/api/v1/models/me/m/repo/files", trick(status=200, body=b'{"Success": false, "Message": "no\\nsuch"}'))
    with pytest.raises(SourceError, match="ModelScope says: no such"):
        files("model", "me/m")
    with pytest.raises(LorgnetteError, match="is not the name of a repository"):
        files("model", "me/../m")


def test_the_cache_is_the_clients(hub: Any, tmp_path: Path) -> None:
    name = "Qwen/Qwen2.5-VL-3B"
    assert (
        modelscope.get_cache_folder("model", name, "master")
        == tmp_path / "ms/models/Qwen--Qwen2.5-VL-3B/snapshots/master"
    )
    older = tmp_path / "ms" / "hub" / "models" / "Qwen" / "Qwen2___5-VL-3B"
    older.mkdir(parents=True)
    (older / "config.json").write_text("{}")
    assert modelscope.get_cache_folder("model", name, "master") == older


def test_the_endpoint_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
    monkeypatch.delenv("MODELSCOPE_DOMAIN", raising=False)
    assert modelscope.get_endpoint() == "https://modelscope.cn"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "modelscope.ai/")
    assert modelscope.get_endpoint() == "https://modelscope.ai"
