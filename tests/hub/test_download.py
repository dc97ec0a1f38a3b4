import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.download import DownloadTask, check_disk_space, download_file, download_files
from lorgnette.hub.http import HttpClient, RetryPolicy

QUICK = RetryPolicy(
    max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05, max_retry_after=3
)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def get(*task: DownloadTask, **more: Any) -> Any:
    with HttpClient(num_workers=4, retry_policy=QUICK) as client:
        return download_files(task, client=client, **more)


def test_files_are_fetched_once(hub: Any, tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    task = [DownloadTask(hub.put(f"/{i}.jpg", jpeg(i)), tmp_path / "p" / f"{i}.jpg") for i in range(20)]
    progress: list[tuple[int, int]] = []
    first = get(*task, on_progress=lambda files, count: progress.append((files, count)))
    assert (first.num_files, first.num_existing, first.failures) == (20, 0, {})
    assert first.num_bytes == sum(len(jpeg(i)) for i in range(20)) == sum(count for _, count in progress)
    assert sum(files for files, _ in progress) == 20
    assert all(item.path.read_bytes() == jpeg(i) for i, item in enumerate(task))
    assert len(hub.log) == 20
    again = get(*task)
    assert (again.num_files, again.num_bytes, again.num_existing, len(hub.log)) == (0, 0, 20, 20)
    assert sorted(item.name for item in (tmp_path / "p").iterdir()) == sorted(f"{i}.jpg" for i in range(20))


def test_the_same_task_twice_is_fetched_once(hub: Any, tmp_path: Path) -> None:
    task = DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "a.bin")
    assert get(task, task).num_files == 1
    assert len(hub.log) == 1
    with pytest.raises(ValueError, match="two URLs"):
        get(task, DownloadTask(hub.url + "/b.bin", tmp_path / "a.bin"))


def test_a_failure_does_not_stop_the_others(hub: Any, tmp_path: Path) -> None:
    result = get(
        DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "a.bin"),
        DownloadTask(hub.url + "/no.bin", tmp_path / "no.bin"),
    )
    assert result.num_files == 1
    assert [(path.name, str(error)) for path, error in result.failures.items()] == [
        ("no.bin", f"not found (HTTP 404) · {hub.url}/no.bin · check the name, the split and the revision")
    ]


def test_an_existing_file_is_kept_only_if_it_is_complete(hub: Any, tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    content = jpeg(1)
    (tmp_path / "a.jpg").write_bytes(content[:200])
    (tmp_path / "b.bin").write_bytes(b"old")
    result = get(
        DownloadTask(hub.put("/a.jpg", content), tmp_path / "a.jpg"),
        DownloadTask(hub.put("/b.bin", b"new"), tmp_path / "b.bin", size=3, sha256=sha(b"new")),
    )
    assert (result.num_files, result.num_existing) == (2, 0)
    assert (tmp_path / "b.bin").read_bytes() == b"new"


def test_free_space_is_checked_first(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "deep" / "er" / "a.bin", size=4_400_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(LorgnetteError, match=r"space: 4\.4 GB needed, 1\.0 GB free · .* · free some space"):
        get(task)
    assert not hub.log
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with task.part_path.open("wb") as part:
        part.truncate(4_000_000_000)
    check_disk_space([task])


def test_a_full_disk_ends_it_with_one_line(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    task = DownloadTask(hub.put("/a.bin", b"abc" * 10_000), tmp_path / "a.bin")
    task.part_path.symlink_to("/dev/full")
    monkeypatch.setattr("lorgnette.hub.download.open_no_follow", os.open)
    with pytest.raises(LorgnetteError, match=r"the disk is full · .* · free some space and start again") as raised:
        get(task)
    assert raised.value.exit_status == 1
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [".a.bin.part", ".a.bin.part.tag"])
def test_a_planted_link_is_not_followed(hub: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("secret")
    (tmp_path / name).symlink_to(tmp_path / "mine")
    with pytest.raises(LorgnetteError, match="symbolic links"):
        get(DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "a.bin"))
    assert (tmp_path / "mine").read_text() == "secret"


def test_a_dead_host_is_not_tried_for_every_file(tmp_path: Path) -> None:
    task = [DownloadTask(f"http://127.0.0.1:9/{i}.jpg", tmp_path / f"{i}.jpg") for i in range(400)]
    with HttpClient(num_workers=4, retry_policy=QUICK) as client:
        result = download_files(task, client=client)
        assert client.num_requests <= 4 * 3
    assert len(result.failures) == 400
    assert {error.message for error in result.failures.values()} == {"cannot reach 127.0.0.1: connection refused"}


BIG = bytes(range(256)) * 4000
IMPATIENT = replace(QUICK, read_timeout=0.8)


def get_one(task: DownloadTask) -> int:
    counted = 0

    def count(more: int) -> None:
        nonlocal counted
        counted += more

    with HttpClient(retry_policy=IMPATIENT) as client:
        download_file(client, task, count)
    return counted


def refused(task: DownloadTask, match: str) -> None:
    with pytest.raises(LorgnetteError, match=match) as raised:
        get_one(task)
    assert raised.value.hint
    assert "\n" not in str(raised.value)
    assert not task.path.exists()


def test_a_lost_connection_resumes(hub: Any, trick: Any, tmp_path: Path) -> None:
    task = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin", sha256=sha(BIG))
    hub.trick("/a.bin", trick(cut=300_000), trick(cut=300_000), trick(cut=300_000), trick(cut=10), trick(cut=10))
    assert get_one(task) == len(BIG) == hub.served
    assert task.path.read_bytes() == BIG
    assert [item.headers.get("Range") for item in hub.log][:3] == [None, "bytes=300000-", "bytes=600000-"]
    assert all(item.headers.get("If-Range") for item in hub.log[1:])
    assert [item.name for item in tmp_path.iterdir()] == ["a.bin"]


def test_a_part_of_an_earlier_start_resumes(hub: Any, trick: Any, tmp_path: Path) -> None:
    task = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin")
    hub.trick("/a.bin", trick(cut=500_000), *[trick(status=503)] * 3)
    with pytest.raises(LorgnetteError, match=r"server error \(HTTP 503\)"):
        get_one(task)
    assert task.part_path.stat().st_size == 500_000
    assert get_one(task) == len(BIG) - 500_000
    assert task.path.read_bytes() == BIG


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changed_starts_again(hub: Any, trick: Any, tmp_path: Path, known: bool) -> None:
    hub.put("/a.bin", BIG)
    task = DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin", sha256=sha(BIG[::-1]) if known else None)
    hub.trick("/a.bin", trick(cut=500_000), *[trick(status=503)] * 3)
    with pytest.raises(LorgnetteError):
        get_one(task)
    hub.put("/a.bin", BIG[::-1])
    assert get_one(task) == len(BIG)
    assert task.path.read_bytes() == BIG[::-1]


def test_without_etags_only_a_known_hash_allows_to_resume(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.etags = False
    hub.put("/a.bin", BIG)
    for name, known, words in (("a.bin", None, None), ("b.bin", sha(BIG), "bytes=500000-")):
        task = DownloadTask(hub.url + "/a.bin", tmp_path / name, sha256=known)
        hub.trick("/a.bin", trick(cut=500_000))
        get_one(task)
        assert task.path.read_bytes() == BIG
        assert hub.log[-1].headers.get("Range") == words


def test_a_server_without_ranges_starts_over(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.ranges = False
    task = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin")
    hub.trick("/a.bin", trick(cut=500_000))
    get_one(task)
    assert task.path.read_bytes() == BIG


def test_a_server_that_always_starts_over_fails(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.ranges = False
    hub.put("/a.bin", BIG)
    hub.trick("/a.bin", *[trick(cut=500_000)] * 20)
    refused(DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin"), "connection lost")
    assert len(hub.log) <= 4


def test_a_part_longer_than_the_file_is_discarded(hub: Any, tmp_path: Path) -> None:
    task = DownloadTask(hub.put("/a.bin", BIG), tmp_path / "a.bin", sha256=sha(BIG))
    task.part_path.write_bytes(BIG + b"more")
    get_one(task)
    assert task.path.read_bytes() == BIG
    assert [item.headers.get("Range") for item in hub.log] == [f"bytes={len(BIG) + 4}-", None]


def test_a_complete_part_needs_no_request(hub: Any, tmp_path: Path) -> None:
    task = DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin", size=len(BIG), sha256=sha(BIG))
    task.part_path.write_bytes(BIG)
    assert get_one(task) == 0
    assert task.path.read_bytes() == BIG
    assert not hub.log


def test_a_wrong_hash_is_tried_once_more_then_named(hub: Any, trick: Any, tmp_path: Path) -> None:
    hub.put("/a.bin", b"good")
    hub.trick("/a.bin", trick(body=b"evil"))
    get_one(DownloadTask(hub.url + "/a.bin", tmp_path / "a.bin", sha256=sha(b"good")))
    assert len(hub.log) == 2
    refused(
        DownloadTask(hub.url + "/a.bin", tmp_path / "b.bin", sha256=sha(b"else")),
        r"the file's hash is .*, the hub lists",
    )
    assert len(hub.log) == 4
    refused(DownloadTask(hub.url + "/a.bin", tmp_path / "c.bin", size=99), "has 4 bytes, the hub lists 99")


def test_a_file_that_is_not_what_it_says_is_named(
    hub: Any, trick: Any, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    page = hub.put("/a.jpg", b"<!DOCTYPE html><html>log in, please</html>")
    refused(DownloadTask(page, tmp_path / "a.jpg"), r"got a web page instead of a\.jpg")
    refused(DownloadTask(hub.put("/b.jpg", jpeg(1)[:900]), tmp_path / "b.jpg"), "the image is cut off")
    refused(
        DownloadTask(hub.put("/c.jpg", b"no such key"), tmp_path / "c.jpg"),
        "an image: it starts with 'no such key'",
    )
    refused(DownloadTask(hub.put("/c2.jpg", b""), tmp_path / "c2.jpg"), "not an image: it is empty")
    refused(
        DownloadTask(hub.put("/d.zip", b"\0\1\2"), tmp_path / "d.zip"),
        "zip file: it starts with the bytes 00 01 02",
    )
    assert len(hub.log) == 5


def test_a_slow_server_is_waited_for_and_a_silent_one_times_out(
    hub: Any, trick: Any, tmp_path: Path, jpeg: Callable[..., bytes]
) -> None:
    url = hub.put("/a.jpg", jpeg(1))
    hub.trick("/a.jpg", trick(pause=0.2), *[trick(pause=1.3)] * 3)
    get_one(DownloadTask(url, tmp_path / "a.jpg"))
    refused(DownloadTask(url, tmp_path / "b.jpg"), "read timed out")


def test_a_folder_that_cannot_be_written_is_named(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LorgnetteError, match="cannot write: "):
        get_one(DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "file" / "a.bin"))
