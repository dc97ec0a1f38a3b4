import io
import json
import random
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorgnette.data import read
from lorgnette.data.formats.parquet import draw_sample, stream_parquet
from lorgnette.data.row_location import ColumnChoice, ReadOptions, Row
from lorgnette.errors import LorgnetteError
from lorgnette.hub.datasets import RemotePath
from lorgnette.hub.http import HttpClient, RetryPolicy
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.types import Example, Problem

QUICK = RetryPolicy(max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05)
IMAGE_BYTES = 20_000


def fake_jpeg(number: int, num_bytes: int = IMAGE_BYTES) -> bytes:
    return b"\xff\xd8\xff" + random.Random(number).randbytes(num_bytes) + b"\xff\xd9"


def make_shard(first: int, num_rows: int, *, num_bytes: int = IMAGE_BYTES, **more: Any) -> bytes:
    """As lmms-lab/COCO-Caption2017 has it: an image, a question, a list of answers, numbers."""
    numbers = range(first, first + num_rows)
    columns = {
        "question_id": [str(number) for number in numbers],
        "image": [{"bytes": fake_jpeg(number, num_bytes), "path": f"{number:012d}.jpg"} for number in numbers],
        "answer": [[f"one {number}", f" two {number} "] for number in numbers],
        "image_id": list(numbers),
    }
    return write({**columns, **more}, row_group_size=50, data_page_size=64 << 10)


def write(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


@pytest.fixture
def put(hub: Any) -> Any:
    """put(shard, …) → their paths on a server."""
    with HttpClient(retry_policy=QUICK) as client:

        def make(*shards: bytes) -> list[Path]:
            repository = Repository("hf", "me/set", "main", ())
            names = [f"d/{i}.parquet" for i in range(len(shards))]
            files = [RepositoryFile(n, len(s), None, hub.put(f"/{n}", s)) for n, s in zip(names, shards, strict=True)]
            return [cast(Path, RemotePath(client, repository, file)) for file in files]

        yield make


@pytest.fixture
def options(tmp_path: Path) -> ReadOptions:
    return ReadOptions(images_to=tmp_path / "images", source=Path("set.parquet"))


def numbers_of(rows: list[tuple[int, list[Row]]]) -> list[int]:
    return [number for number, _ in rows]


def test_the_first_rows_cost_about_their_own_bytes(hub: Any, put: Any, options: ReadOptions) -> None:
    [path, _] = put(make_shard(0, 200), make_shard(200, 200))
    rows = list(islice(stream_parquet(path, options), 10))
    assert numbers_of(rows) == list(range(10))
    one, two = rows[3][1]
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert one.images[0].path.read_bytes() == fake_jpeg(3)
    assert one.images[0].path.suffix == ".jpg"
    assert (one.reference, two.reference) == ("one 3", "two 3")
    assert (one.source, one.row) == (Path("set.parquet"), 4)
    assert hub.served < 16 * IMAGE_BYTES + (2 << 20)
    assert not hub.requests("/d/1.parquet")


def test_rows_from_a_start_on_and_by_number(hub: Any, put: Any, options: ReadOptions) -> None:
    [path] = put(make_shard(0, 170))
    whole = list(stream_parquet(path, options))
    assert numbers_of(whole) == list(range(170))
    for start in (1, 49, 50, 120, 169, 170):
        assert list(stream_parquet(path, options, start=start)) == whole[start:]
    assert list(stream_parquet(path, options, [3, 51, 169])) == [whole[3], whole[51], whole[169]]


def test_a_sample_reads_some_groups(put: Any) -> None:
    paths = put(make_shard(0, 400, num_bytes=500), make_shard(400, 400, num_bytes=500))
    sample, message = draw_sample(paths, 20, 1)
    numbers = [400 * index + number for index, number in sample]
    assert len(set(numbers)) == 20
    assert numbers == sorted(numbers)
    assert min(numbers) < 200
    assert max(numbers) > 600
    assert message == "the sample is drawn from 16 of 16 row groups"
    assert sample == draw_sample(paths, 20, 1)[0] != draw_sample(paths, 20, 2)[0]
    assert len(draw_sample(paths, 5000, 0)[0]) == 800


def test_every_row_is_about_equally_likely_in_a_sample(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(write({"text": [str(i) for i in range(200)]}, row_group_size=5))
    counts = [0] * 200
    for seed in range(60):
        for _, number in draw_sample([tmp_path / "a.parquet"], 40, seed)[0]:
            counts[number] += 1
    assert sum(counts) == 60 * 40
    assert max(counts) < 30
    assert min(counts) > 1


@pytest.mark.parametrize(
    ("image", "caption"),
    [
        (pa.array([fake_jpeg(1)]), pa.array(["a"])),
        (pa.array([fake_jpeg(1)], pa.large_binary()), pa.array(["a"], pa.large_string())),
        (pa.array([{"bytes": fake_jpeg(1)}]), pa.array([["a"]])),
        (pa.array([fake_jpeg(1)]), pa.array([[{"raw": "a", "imgid": 1}]])),
        (pa.array([fake_jpeg(1)]), pa.array(["a"]).dictionary_encode()),
    ],
)
def test_columns_are_recognized_by_type(image: Any, caption: Any, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(write({"n": [1], "some": caption, "thing": image}))
    [row] = read(tmp_path / "a.parquet")
    assert isinstance(row, Example)
    assert row.reference == "a"
    assert row.images[0].path.read_bytes() == fake_jpeg(1)
    assert row.images[0].path.parent == tmp_path / "a.parquet.images"


def test_images_may_be_paths(tmp_path: Path, make_image: Callable[..., Path]) -> None:
    make_image("a.png")
    columns = {"file_name": ["a.png", "https://h/b.png"], "captions": [["a", "b"], ["c"]], "height": [1, 2]}
    (tmp_path / "a.parquet").write_bytes(write(columns))
    one, two, bad = read(tmp_path / "a.parquet")
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert one.images == two.images
    assert one.images[0].path == tmp_path / "a.png"
    assert isinstance(bad, Problem)
    assert "is a URL" in bad.message


def test_conversations_with_several_images(tmp_path: Path, jpeg: Callable[..., bytes]) -> None:
    columns = {
        "images": [[{"bytes": jpeg(1), "path": "x.jpg"}, {"bytes": jpeg(2), "path": None}], None],
        "messages": [
            [{"role": "user", "content": "<image>and<image>?"}, {"role": "assistant", "content": "yes"}],
            [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}],
        ],
        "id": ["a", None],
    }
    (tmp_path / "a.parquet").write_bytes(write(columns))
    two, none = read(tmp_path / "a.parquet")
    assert isinstance(two, Example)
    assert isinstance(none, Example)
    assert [image.path.read_bytes() for image in two.images] == [jpeg(1), jpeg(2)]
    assert (two.id, two.turns[0].text, none.id, none.images) == ("a", "and?", "identity_2", ())


def test_a_question_is_asked_and_the_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    columns = {"image": [{"bytes": fake_jpeg(1)}], "question": ["which?"], "answer": [" red"], "license": ["CC0"]}
    (tmp_path / "a.parquet").write_bytes(write({**columns, "kto_tag": [True]}))
    [row] = read(tmp_path / "a.parquet")
    assert isinstance(row, Example)
    assert [turn.text for turn in row.turns] == ["which?", "red"]
    assert (row.unread_keys, row.is_trimmed) == (("license",), True)
    (tmp_path / "a.parquet").write_bytes(write({**columns, "kto_tag": [False]}))
    [bad] = read(tmp_path / "a.parquet")
    assert isinstance(bad, Problem)
    assert "marked as not to be learned" in bad.message


def test_unclear_columns_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(make_shard(0, 3, other=pa.array([b"x"] * 3), caption=["c"] * 3, captions=["d"] * 3))
    with pytest.raises(LorgnetteError, match=r"captions; .*answer \(texts\).*caption \(text\).*--caption-column"):
        list(read(path))
    [(_, [row]), *_] = stream_parquet(path, ReadOptions(columns=ColumnChoice(caption="captions")))
    assert isinstance(row, Example)
    assert row.reference == "d"
    with pytest.raises(LorgnetteError, match=r"there is no column 'pic'; the columns are question_id \(text\)"):
        list(stream_parquet(path, ReadOptions(columns=ColumnChoice(image="pic"))))


def test_a_lost_connection_resumes_and_a_broken_file_is_named(
    hub: Any, trick: Any, put: Any, options: ReadOptions
) -> None:
    [path] = put(make_shard(0, 60))
    hub.trick("/d/0.parquet", trick(cut=100), trick(status=503), trick(cut=5000), trick(cut=5000))
    assert len(list(stream_parquet(path, options))) == 60
    [broken] = put(b"PAR1" + bytes(1000) + b"PAR1")
    with pytest.raises(LorgnetteError, match="the parquet file cannot be read") as raised:
        list(stream_parquet(broken, options))
    assert "\n" not in str(raised.value)
    hub.trick("/d/0.parquet", *[trick(status=403)] * 9)
    with pytest.raises(LorgnetteError, match=r"no permission to read this \(HTTP 403\)"):
        list(stream_parquet(put(make_shard(0, 3))[0], options))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(make_shard(0, 3))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(LorgnetteError, match=r"parquet files need pyarrow · .* · pip install pyarrow"):
        list(read(tmp_path / "a.parquet"))


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    import subprocess

    code = (
        "import lorgnette.data, lorgnette.data.hub_dataset, lorgnette.hub.models, sys; "
        "print(sorted({'torch', 'pyarrow', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert out.stdout.strip() == "[]"
    code = "import lorgnette.data, sys; print('httpx2' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path("/"))
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("features", "more", "answers"),
    [
        ({"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}, {}, ["dog", "cat"]),
        ({"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}, {"title": ["a", "b"]}, ["a", "b"]),
        ({"label": {"_type": "Value"}}, {}, None),
        ([], {}, None),
    ],
)
def test_a_class_label_is_read_by_its_name(
    tmp_path: Path, features: Any, more: dict[str, Any], answers: list[str] | None
) -> None:
    images = [{"bytes": fake_jpeg(number, 50), "path": "a.jpg"} for number in range(2)]
    table = pa.table({"image": images, "label": [1, 0], **more})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    said: list[str] = []
    rows = read(tmp_path / "a.parquet", on_columns=said.append)
    if answers is None:
        with pytest.raises(LorgnetteError, match=r"which column holds the captions; .* label \(other\)"):
            list(rows)
        return
    assert [row.reference for row in rows if isinstance(row, Example)] == answers
    assert said == [f"a.parquet: image → image, {'title' if more else 'label'} → caption"]
