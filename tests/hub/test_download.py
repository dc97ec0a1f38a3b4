import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.download import check_disk_space, download_files
from lorgnette.hub.fetch import DownloadTask
from lorgnette.hub.line import HttpClient, RetryPolicy

QUICK = RetryPolicy(
    max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05, max_retry_after=3
)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def get(*wanted: DownloadTask, **more: Any) -> Any:
    with HttpClient(num_workers=4, retry_policy=QUICK) as line:
        return download_files(wanted, client=line, **more)


def test_files_come_and_a_second_time_none_is_asked_for(
    hub: Any, tmp_path: Path, picture: Callable[..., bytes]
) -> None:
    wanted = [DownloadTask(hub.put(f"/{i}.jpg", picture(i)), tmp_path / "p" / f"{i}.jpg") for i in range(20)]
    seen: list[tuple[int, int]] = []
    first = get(*wanted, seen=lambda files, count: seen.append((files, count)))
    assert (first.files, first.kept, first.failed) == (20, 0, ())
    assert first.bytes == sum(len(picture(i)) for i in range(20)) == sum(count for _, count in seen)
    assert sum(files for files, _ in seen) == 20
    assert all(each.path.read_bytes() == picture(i) for i, each in enumerate(wanted))
    asked = len(hub.log)
    again = get(*wanted)
    assert (again.files, again.bytes, again.kept, len(hub.log)) == (0, 0, 20, asked == 20 and asked)
    assert sorted(each.name for each in (tmp_path / "p").iterdir()) == sorted(f"{i}.jpg" for i in range(20))


def test_the_same_file_twice_is_fetched_once(hub: Any, tmp_path: Path) -> None:
    wanted = DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "a.bin")
    assert get(wanted, wanted).files == 1
    assert len(hub.log) == 1
    with pytest.raises(ValueError, match="two addresses"):
        get(wanted, DownloadTask(hub.url + "/b.bin", tmp_path / "a.bin"))


def test_one_that_fails_does_not_stop_the_others(hub: Any, tmp_path: Path) -> None:
    done = get(
        DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "a.bin"),
        DownloadTask(hub.url + "/no.bin", tmp_path / "no.bin"),
    )
    assert done.files == 1
    assert [(each.url, each.what) for each in done.failed] == [
        (hub.url + "/no.bin", "there is nothing at this address (404)")
    ]


def test_what_stands_is_kept_only_if_it_is_that_file(hub: Any, tmp_path: Path, picture: Callable[..., bytes]) -> None:
    content = picture(1)
    (tmp_path / "a.jpg").write_bytes(content[:200])
    (tmp_path / "b.bin").write_bytes(b"old")
    done = get(
        DownloadTask(hub.put("/a.jpg", content), tmp_path / "a.jpg"),
        DownloadTask(hub.put("/b.bin", b"new"), tmp_path / "b.bin", size=3, sha256=sha(b"new")),
    )
    assert (done.files, done.kept) == (2, 0)
    assert (tmp_path / "b.bin").read_bytes() == b"new"


def test_free_space_is_looked_at_first(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = DownloadTask(hub.put("/a.bin", b"abc"), tmp_path / "deep" / "er" / "a.bin", size=4_400_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**10, 9 * 10**9, 10**9))
    with pytest.raises(LorgnetteError, match=r"4\.4 GB are to come and 1\.0 GB are free · .* · free some space"):
        get(wanted)
    assert not hub.log
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with wanted.part_path.open("wb") as part:
        part.truncate(4_000_000_000)
    check_disk_space([wanted])


def test_a_full_disk_ends_it_with_one_line(hub: Any, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    wanted = DownloadTask(hub.put("/a.bin", b"abc" * 10_000), tmp_path / "a.bin")
    wanted.part_path.symlink_to("/dev/full")
    with pytest.raises(LorgnetteError, match=r"the disk is full · .* · free some space and start again") as caught:
        get(wanted)
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)


def test_a_dead_host_is_not_asked_for_every_file(tmp_path: Path) -> None:
    wanted = [DownloadTask(f"http://127.0.0.1:9/{i}.jpg", tmp_path / f"{i}.jpg") for i in range(400)]
    with HttpClient(num_workers=4, retry_policy=QUICK) as line:
        done = download_files(wanted, client=line)
        assert line.num_requests <= 4 * 3
    assert len(done.failures) == 400
    assert {each.message for each in done.failures} == {"127.0.0.1 cannot be reached: the connection is refused"}
