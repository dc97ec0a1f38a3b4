import json
from collections.abc import Callable
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.hub.rows import Choice
from lorgnette.hub.shards import ShardRows

QUICK = RetryPolicy(max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05)


@pytest.fixture
def put(hub: Any, tarred: Any) -> Callable[..., Repository]:
    def make(*shards: Any) -> Repository:
        contents = [shard if isinstance(shard, bytes) else tarred(shard) for shard in shards]
        files = [RepositoryFile(f"{i}.tar", len(s), None, hub.put(f"/{i}.tar", s)) for i, s in enumerate(contents)]
        return Repository("hf", "me/wds", "main", tuple(files))

    return make


def members(first: int, rows: int, weight: int = 1000) -> dict[str, bytes]:
    found = {}
    for number in range(first, first + rows):
        found[f"s{number:06d}.jpg"] = b"\xff\xd8\xff" + bytes([number % 256]) * weight
        found[f"s{number:06d}.txt"] = f"caption {number}\n".encode()
        found[f"s{number:06d}.json"] = json.dumps({"caption": f"said {number}", "key": 1}).encode()
    return found


def read(repository: Repository, after: Any = None, most: int | None = None, **choice: Any) -> list[Any]:
    rows = []
    with HttpClient(retry_policy=QUICK) as line:
        for row in ShardRows(repository.files, repository, Choice(**choice), line).read(after):
            rows.append(row)
            if len(rows) == most:
                break
    return rows


def test_members_of_a_name_are_a_row(put: Any) -> None:
    rows = [row for row, _ in read(put(members(0, 3), members(3, 2)))]
    assert [row.captions for row in rows] == [(f"caption {number}",) for number in range(5)]
    assert rows[4].picture == members(4, 1)["s000004.jpg"]
    assert (rows[4].name, rows[4].place) == ("s000004.jpg", "1.tar, s000004")
    [(row, _)] = read(put(members(0, 1)), caption="json")
    assert row.captions[0].startswith("{")


def test_the_first_rows_cost_what_they_weigh(hub: Any, put: Any) -> None:
    repository = put(members(0, 200, 40_000), members(200, 10))
    assert len(read(repository, most=20)) == 20
    assert hub.served < 20 * 42_000 + (1 << 20) + 100_000
    assert not hub.asked("/1.tar")


def test_rows_go_on_behind_a_token(hub: Any, put: Any) -> None:
    repository = put(members(0, 30, 50_000), members(30, 5))
    whole = read(repository)
    assert len(whole) == 35
    for cut in (0, 10, 29, 34):
        served = hub.served
        rest = read(repository, after=whole[cut][1])
        assert [row.captions for row, _ in rest] == [row.captions for row, _ in whole[cut + 1 :]]
    assert hub.served - served < 10_000


def test_folders_json_and_odd_members(put: Any) -> None:
    repository = put(
        {
            "./a/1.jpg": b"\xff\xd8\xff",
            "./a/1.json": b'{"caption": ["one", "two"], "text": "three"}',
            "a/2.seg.png": b"\x89PNG",
            "a/2.txt": b"two",
            "a/3.txt": b"no picture",
            "a/4.jpg": b"\xff\xd8\xff",
            "a/4.json": b"broken",
        }
    )
    rows = [row for row, _ in read(repository)]
    assert [row.captions for row in rows] == [("one", "two"), ("two",), ("no picture",), ()]
    assert [row.name for row in rows[:2]] == ["a_1.jpg", "a_2.seg.png"]
    assert rows[2].fault == "there is no picture among txt"
    assert read(put({"1.jpg": b"\xff\xd8\xff", "1.json": b'{"zh": "\xe4\xb8\x80"}'}), caption="zh")[0][0].captions == (
        "一",
    )


def test_what_cannot_be_read_is_named(hub: Any, put: Any, tarred: Any) -> None:
    with pytest.raises(LorgnetteError, match=r"a path in the archive leaves its folder: '\.\./\.\./etc/passwd\.jpg'"):
        read(put({"../../etc/passwd.jpg": b"\xff\xd8\xff"}))
    with pytest.raises(LorgnetteError, match="the tar file cannot be read"):
        read(put(b"no tar at all" * 100))
    with pytest.raises(LorgnetteError, match="the tar file cannot be read"):
        read(put(tarred(members(0, 3, 5000))[:9000]))
    with pytest.raises(LorgnetteError, match="would fetch all of them"):
        read(put(members(0, 3)), sample=2)


def test_a_cut_connection_is_nothing(hub: Any, trick: Any, put: Any) -> None:
    repository = put(members(0, 30, 5_000))
    hub.trick("/0.tar", trick(cut=50_000), trick(status=500), trick(cut=100))
    assert len(read(repository)) == 30
