import io
import random
from typing import Any

import pytest

from lorgnette.errors import SourceError
from lorgnette.hub.http import HttpClient, RetryPolicy
from lorgnette.hub.remote_file import RemoteFile
from lorgnette.hub.repository import Repository, RepositoryFile

QUICK = RetryPolicy(max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05)
CONTENT = random.Random(0).randbytes(300_000)


def opened(client: HttpClient, url: str, size: int | None = len(CONTENT), **more: Any) -> RemoteFile:
    read_ahead = {"read_ahead": 64 << 10, "max_read_ahead": 4 << 20, **more}
    return RemoteFile(client, Repository("hf", "a/b", "main", ()), RepositoryFile("x", size, None, url), **read_ahead)


def test_it_reads_like_the_file_itself(hub: Any) -> None:
    rng, plain = random.Random(1), io.BytesIO(CONTENT)
    with HttpClient(retry_policy=QUICK) as client:
        ranged = opened(client, hub.put("/x", CONTENT), read_ahead=10_000, max_read_ahead=40_000)
        for _ in range(200):
            place, whence = rng.choice([(rng.randrange(320_000), 0), (rng.randrange(500), 1), (-rng.randrange(900), 2)])
            assert ranged.seek(place, whence) == plain.seek(place, whence)
            count = rng.choice([0, 1, 500, 20_000, -1])
            assert ranged.read(count) == plain.read(count)
            assert ranged.tell() == plain.tell()


def test_small_reads_share_a_request_and_large_ones_cost_what_they_are(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        ranged = opened(client, hub.put("/x", CONTENT), read_ahead=50_000)
        assert b"".join(ranged.read(100) for _ in range(400)) == CONTENT[:40_000]
        assert (len(hub.log), hub.served) == (1, 50_000)
        ranged.seek(100_000)
        assert ranged.read(150_000) == CONTENT[100_000:250_000]
        assert (len(hub.log), hub.served) == (2, 200_000)


def test_an_unlisted_size_is_requested(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        ranged = opened(client, hub.put("/x", CONTENT), size=None)
        assert ranged.seek(-10, io.SEEK_END) == len(CONTENT) - 10
        assert ranged.read() == CONTENT[-10:]


def test_a_lost_connection_resumes(hub: Any, trick: Any) -> None:
    url = hub.put("/x", CONTENT)
    hub.trick("/x", trick(cut=100_000), trick(status=502), trick(cut=100_000))
    with HttpClient(retry_policy=QUICK) as client:
        assert opened(client, url).read() == CONTENT
    assert hub.served == len(CONTENT)


def test_servers_without_ranges_and_files_that_changed_are_named(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        with pytest.raises(SourceError, match="the file has changed while it was read"):
            opened(client, hub.put("/x", CONTENT + b"more")).read(10)
        hub.ranges = False
        with pytest.raises(SourceError, match="the server does not support range requests"):
            opened(client, hub.put("/x", CONTENT)).read(10)


def test_sequential_reads_request_more_each_time(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        ranged = opened(client, hub.put("/x", CONTENT), read_ahead=10_000, max_read_ahead=40_000)
        assert b"".join(ranged.read(1000) for _ in range(300)) == CONTENT
    sizes = [item.headers["Range"] for item in hub.log]
    assert sizes[:4] == ["bytes=0-9999", "bytes=10000-29999", "bytes=30000-69999", "bytes=70000-109999"]
    assert hub.served == len(CONTENT)


def test_windows_read_in_turns_are_kept(hub: Any) -> None:
    with HttpClient(retry_policy=QUICK) as client:
        ranged = opened(client, hub.put("/x", CONTENT), read_ahead=10_000, max_read_ahead=10_000)
        for step in range(20):
            for start in (0, 100_000):
                ranged.seek(start + step * 1000)
                assert ranged.read(1000) == CONTENT[start + step * 1000 :][:1000]
    assert len(hub.log) == 4
