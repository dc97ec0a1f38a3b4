import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.fetch import DownloadTask, download_file
from lorgnette.hub.line import HttpClient, RetryPolicy

QUICK = RetryPolicy(
    max_attempts=3, connect_timeout=2, read_timeout=0.8, initial_pause=0.01, max_pause=0.05, max_retry_after=3
)
BIG = bytes(range(256)) * 4000


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def get(wanted: DownloadTask) -> int:
    counted = 0

    def count(more: int) -> None:
        nonlocal counted
        counted += more

    with HttpClient(retry_policy=QUICK) as line:
        download_file(line, wanted, count)
    return counted


def refused(wanted: DownloadTask, match: str) -> None:
    with pytest.raises(LorgnetteError, match=match) as caught:
        get(wanted)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert not wanted.path.exists()


def test_a_connection_cut_in_the_middle_goes_on_where_it_was(hub: Any, trick: Any, tmp_path: Path) -> None:
    wanted = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin", sha256=sha(BIG))
    hub.trick("/a.bin", trick(cut=300_000), trick(cut=300_000), trick(cut=300_000), trick(cut=10), trick(cut=10))
    assert get(wanted) == len(BIG) == hub.served
    assert wanted.path.read_bytes() == BIG
    assert [each.headers.get("Range") for each in hub.log][:3] == [None, "bytes=300000-", "bytes=600000-"]
    assert all(each.headers.get("If-Range") for each in hub.log[1:])
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


def test_a_part_of_an_earlier_start_is_gone_on_with(hub: Any, trick: Any, tmp_path: Path) -> None:
    wanted = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin")
    hub.trick("/a.bin", trick(cut=500_000), *[trick(status=503)] * 3)
    with pytest.raises(LorgnetteError, match=r"the server failed \(503\)"):
        get(wanted)
    assert wanted.part_path.stat().st_size == 500_000
    assert get(wanted) == len(BIG) - 500_000
    assert wanted.path.read_bytes() == BIG


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changed_meanwhile_starts_anew(hub: Any, trick: Any, tmp_path: Path, known: bool) -> None:
    hub.put("/a.bin", BIG)
    wanted = DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin", sha256=sha(BIG[::-1]) if known else None)
    hub.trick("/a.bin", trick(cut=500_000), *[trick(status=503)] * 3)
    with pytest.raises(LorgnetteError):
        get(wanted)
    hub.put("/a.bin", BIG[::-1])
    assert get(wanted) == len(BIG)
    assert wanted.path.read_bytes() == BIG[::-1]


def test_a_server_without_names_for_versions_is_resumed_only_by_hash(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.etags = False
    hub.put("/a.bin", BIG)
    for name, known, asked in (("a.bin", None, None), ("b.bin", sha(BIG), "bytes=500000-")):
        wanted = DownloadTask(hub.url + "/a.bin", tmp_path / name, sha256=known)
        hub.trick("/a.bin", trick(cut=500_000))
        get(wanted)
        assert wanted.path.read_bytes() == BIG
        assert hub.log[-1].headers.get("Range") == asked


def test_a_server_without_ranges_starts_over(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.ranges = False
    wanted = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin")
    hub.trick("/a.bin", trick(cut=500_000))
    get(wanted)
    assert wanted.path.read_bytes() == BIG


def test_a_server_that_always_starts_over_is_given_up(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.ranges = False
    hub.put("/a.bin", BIG)
    hub.trick("/a.bin", *[trick(cut=500_000)] * 20)
    refused(DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin"), "the connection was cut")
    assert len(hub.log) <= 4


def test_a_part_longer_than_the_file_is_thrown_away(hub: Any, tmp_path: Path) -> None:
    wanted = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin", sha256=sha(BIG))
    wanted.part_path.write_bytes(BIG + b"more")
    get(wanted)
    assert wanted.path.read_bytes() == BIG
    assert [each.headers.get("Range") for each in hub.log] == [f"bytes={len(BIG) + 4}-", None]


def test_a_whole_part_needs_no_request(hub: Any, tmp_path: Path) -> None:
    wanted = DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin", size=len(BIG), sha256=sha(BIG))
    wanted.part_path.write_bytes(BIG)
    assert get(wanted) == 0
    assert wanted.path.read_bytes() == BIG
    assert not hub.log


def test_a_wrong_hash_is_tried_once_more_then_named(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.put("/a.bin", b"good")
    hub.trick("/a.bin", trick(body=b"evil"))
    get(DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin", sha256=sha(b"good")))
    assert len(hub.log) == 2
    refused(
        DownloadTask(hub.url + "/a.bin", tmp_path / "b.bin", sha256=sha(b"else")),
        r"the file's hash is .*, the hub lists",
    )
    assert len(hub.log) == 4
    refused(DownloadTask(hub.url + "/a.bin", tmp_path / "c.bin", size=99), "has 4 bytes where the hub lists 99")


def test_a_file_that_is_not_what_it_says_is_named(
    hub: Any, trick: Any, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    page = hub.put("/a.jpg", b"<!DOCTYPE html><html>log in, please</html>")
    refused(DownloadTask(page, tmp_path / "a.jpg"), r"a web page came instead of a\.jpg")
    refused(DownloadTask(hub.put("/b.jpg", picture(1)[:900]), tmp_path / "b.jpg"), "the picture is cut off")
    refused(
        DownloadTask(hub.put("/c.jpg", b"no such key"), tmp_path / "c.jpg"), "no picture: it begins with 'no such key'"
    )
    refused(DownloadTask(hub.put("/c2.jpg", b""), tmp_path / "c2.jpg"), "no picture: it is empty")
    refused(
        DownloadTask(hub.put("/d.zip", b"\0\1\2"), tmp_path / "d.zip"), "no zip file: it begins with the bytes 00 01 02"
    )
    assert len(hub.log) == 5


def test_a_slow_picture_comes_and_a_silent_one_is_given_up(
    hub: Any, trick: Any, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    url = hub.put("/a.jpg", picture(1))
    hub.trick("/a.jpg", trick(pause=0.2), *[trick(pause=1.3)] * 3)
    get(DownloadTask(url, tmp_path / "a.jpg"))
    refused(DownloadTask(url, tmp_path / "b.jpg"), "the server went silent")


def test_a_folder_that_cannot_be_written_is_named(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorgnetteError, match="cannot write: "):
        get(DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "file" / "a.bin"))
