from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.datasets import RemotePath, open_dataset, parse_address
from lorgnette.hub.http import HttpClient, RetryPolicy

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


def test_addresses_are_parsed() -> None:
    address = parse_address("hf:me/set@v1:config", "test")
    assert (address.hub, address.name, address.revision, address.words) == ("hf", "me/set", "v1", ("config", "test"))
    assert address.text == "hf:me/set@v1:config:test"
    assert parse_address("modelscope:a/b:val").split == "validation"
    for text in ("modelscope:", "elsewhere:a/b", "hf:a/b::c", "modelscope:../../x"):
        with pytest.raises(LorgnetteError):
            parse_address(text)


def open_set(text: str, folder: Path, client: HttpClient, messages: list[str] | None = None) -> Any:
    on_message = (messages if messages is not None else []).append
    return open_dataset(parse_address(text), client, revision="", folder=folder, on_message=on_message)


def test_a_table_is_downloaded_when_it_is_opened(hub: Any, tmp_path: Path) -> None:
    hub.repo("modelscope", "datasets", "me/set", {"a/train.csv": b"x,y\n", "a/test.csv": b"z"})
    messages: list[str] = []
    with HttpClient(retry_policy=QUICK) as client:
        dataset = open_set("modelscope:me/set", tmp_path, client, messages)
        assert not hub.requests("train.csv")
        assert dataset.open_file(0) == tmp_path / "a" / "train.csv"
        assert (tmp_path / "a" / "train.csv").read_bytes() == b"x,y\n"
        assert dataset.open_file(0).is_file()
    assert len(hub.requests("train.csv")) == 1
    assert (dataset.suffix, [file.path for file in dataset.files]) == (".csv", ["a/train.csv"])
    assert messages == ["modelscope:me/set: split train, 1 files"]


def test_a_tar_is_read_in_place(hub: Any, tmp_path: Path) -> None:
    hub.repo("modelscope", "datasets", "me/set", {"0.tar": bytes(2 << 20)})
    with HttpClient(retry_policy=QUICK) as client:
        path = open_set("modelscope:me/set", tmp_path, client).open_file(0)
        assert isinstance(path, RemotePath)
        assert (path.name, path.suffix, str(path)) == ("0.tar", ".tar", "modelscope:me/set, 0.tar")
        with path.open("rb") as file:
            assert file.read(10) == bytes(10)
    assert hub.served < 1 << 19
    assert not list(tmp_path.iterdir())


def test_a_script_is_read_and_not_executed(hub: Any, tmp_path: Path) -> None:
    url = hub.put("/elsewhere/train.csv", b"x\n")
    hub.repo("modelscope", "datasets", "me/set", {"set.py": f"raise SystemExit\nURL = {url!r}".encode()})
    messages: list[str] = []
    with HttpClient(retry_policy=QUICK) as client:
        dataset = open_set("modelscope:me/set", tmp_path, client, messages)
        assert dataset.open_file(0).read_bytes() == b"x\n"
    assert dataset.files[0].is_external
    assert "the script is not executed" in messages[0]
