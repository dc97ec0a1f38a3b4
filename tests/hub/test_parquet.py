import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.parquet import ParquetRows
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.hub.rows import Choice

QUICK = RetryPolicy(max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05)
WEIGHT = 20_000


def content(number: int, weight: int = WEIGHT) -> bytes:
    return b"\xff\xd8\xff" + random.Random(number).randbytes(weight) + b"\xff\xd9"


def shard(first: int, rows: int, *, weight: int = WEIGHT, **more: Any) -> bytes:
    """As lmms-lab/COCO-Caption2017 has it: a picture, a question, a list of answers, numbers."""
    numbers = range(first, first + rows)
    columns = {
        "question_id": [str(number) for number in numbers],
        "image": [{"bytes": content(number, weight), "path": f"{number:012d}.jpg"} for number in numbers],
        "answer": [[f"one {number}", f" two {number} "] for number in numbers],
        "image_id": list(numbers),
    }
    out = io.BytesIO()
    pq.write_table(pa.table({**columns, **more}), out, row_group_size=50, data_page_size=64 << 10)
    return out.getvalue()


@pytest.fixture
def put(hub: Any) -> Callable[..., Repository]:
    def make(*shards: bytes) -> Repository:
        files = [
            RepositoryFile(f"d/{i}.parquet", len(s), None, hub.put(f"/d/{i}.parquet", s)) for i, s in enumerate(shards)
        ]
        return Repository("hf", "me/set", "main", tuple(files))

    return make


def read(repository: Repository, after: Any = None, most: int | None = None, **choice: Any) -> list[Any]:
    rows = []
    with HttpClient(retry_policy=QUICK) as line:
        reader = ParquetRows(repository.files, repository, Choice(**choice), line, lambda text: None)
        for row in reader.read(after):
            rows.append(row)
            if len(rows) == most:
                break
    return rows


def test_the_first_rows_cost_about_what_they_weigh(hub: Any, put: Any) -> None:
    repository = put(shard(0, 200), shard(200, 200))
    rows = read(repository, most=10)
    assert [row.name for row, _ in rows] == [f"{number:012d}.jpg" for number in range(10)]
    row = rows[3][0]
    assert (row.picture, row.captions, row.number) == (content(3), ("one 3", "two 3"), 3)
    assert row.place == "d/0.parquet, row 4"
    assert hub.served < 16 * WEIGHT + (2 << 20)
    assert not hub.asked("/d/1.parquet")


def test_rows_go_over_groups_and_files_and_go_on_behind_a_token(put: Any) -> None:
    repository = put(shard(0, 120), shard(120, 30))
    whole = read(repository)
    assert [row.number for row, _ in whole] == list(range(150))
    for cut in (0, 7, 49, 50, 119, 120, 149):
        rest = read(repository, after=whole[cut][1])
        assert [row.number for row, _ in rest] == list(range(cut + 1, 150))


def test_a_sample_reads_some_groups_and_goes_on_behind_a_token(hub: Any, put: Any) -> None:
    repository = put(shard(0, 400, weight=500), shard(400, 400, weight=500))
    sample = read(repository, sample=20, seed=1)
    numbers = [row.number for row, _ in sample]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert min(numbers) < 200
    assert max(numbers) > 600
    assert numbers != [row.number for row, _ in read(repository, sample=20, seed=2)]
    assert [row.number for row, _ in read(repository, after=sample[6][1], sample=20, seed=1)] == numbers[7:]
    assert len(read(repository, sample=5000)) == 800


def test_every_row_is_about_equally_likely_in_a_sample(put: Any) -> None:
    columns = {"image": [b"\xff\xd8\xff"] * 200, "text": [str(i) for i in range(200)]}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=5)
    repository = put(out.getvalue())
    counts = [0] * 200
    for seed in range(60):
        for row, _ in read(repository, sample=40, seed=seed):
            counts[int(row.captions[0])] += 1
    assert sum(counts) == 60 * 40
    assert max(counts) < 30
    assert min(counts) > 1


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        (pa.array([b"\xff\xd8\xff"]), pa.array(["a"])),
        (pa.array([b"\xff\xd8\xff"], pa.large_binary()), pa.array(["a"], pa.large_string())),
        (pa.array([{"bytes": b"\xff\xd8\xff"}]), pa.array([["a"]])),
        (pa.array([b"\xff\xd8\xff"]), pa.array([[{"raw": "a", "imgid": 1}]])),
        (pa.array([b"\xff\xd8\xff"]), pa.array(["a"]).dictionary_encode()),
    ],
)
def test_columns_are_found_by_type(image: Any, caption: Any, put: Any) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"n": [1], "some": caption, "thing": image}), out)
    [(row, _)] = read(put(out.getvalue()))
    assert (row.picture, row.captions) == (b"\xff\xd8\xff", ("a",))


def test_pictures_that_are_addresses(hub: Any, put: Any) -> None:
    out = io.BytesIO()
    table = {"coco_url": ["http://h/000000000009.jpg", "nothing"], "captions": [["a", "b"], ["c"]], "height": [1, 2]}
    pq.write_table(pa.table({**table, "file_name": ["x.jpg", "y.jpg"]}), out)
    rows = [row for row, _ in read(put(out.getvalue()))]
    assert (rows[0].picture, rows[0].name) == ("http://h/000000000009.jpg", "000000000009.jpg")
    assert rows[1].fault == "the picture 'nothing' is no address"


def test_in_doubt_the_columns_are_listed(put: Any) -> None:
    repository = put(shard(0, 3, other=pa.array([b"x"] * 3), caption=["c"] * 3, captions=["d"] * 3))
    with pytest.raises(
        LorgnetteError, match=r"captions is not clear.*answer \(texts\).*caption \(text\).*--caption-column"
    ):
        read(repository)
    assert read(repository, caption="captions")[0][0].captions == ("d",)
    with pytest.raises(
        LorgnetteError, match=r"there is no column 'pic'; there are question_id \(text\).*--image-column"
    ):
        read(repository, image="pic")


def test_a_cut_connection_is_nothing_and_a_broken_file_is_named(hub: Any, trick: Any, put: Any) -> None:
    repository = put(shard(0, 60))
    hub.trick("/d/0.parquet", trick(cut=100), trick(status=503), trick(cut=5000), trick(cut=5000))
    assert len(read(repository)) == 60
    broken = put(b"PAR1" + bytes(1000) + b"PAR1")
    with pytest.raises(LorgnetteError, match="the parquet file cannot be read") as caught:
        read(broken)
    assert "\n" not in str(caught.value)
    hub.trick("/d/0.parquet", *[trick(status=403)] * 9)
    with pytest.raises(LorgnetteError, match=r"no rights to read this \(403\)"):
        read(put(shard(0, 3)))


def test_without_pyarrow_the_extra_is_named(put: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = put(shard(0, 3))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(LorgnetteError, match=r"parquet files need pyarrow · pip install 'lorgnette\[hub\]'"):
        read(repository)


def test_the_room_is_imported_without_pyarrow_and_the_hubs_client() -> None:
    import subprocess

    code = "import lorgnette.hub.collect, lorgnette.hub.models, sys; print(sorted({'torch', 'pyarrow', 'transformers', "
    code += "'huggingface_hub'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert out.stdout.strip() == "[]"
