"""Data sets on both hubs from the listing to the folder, and back after a kill at any moment."""

import io
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorgnette.data import read
from lorgnette.data.hub_dataset import download_dataset
from lorgnette.errors import LorgnetteError
from lorgnette.hub.http import RetryPolicy
from lorgnette.types import Example

QUICK = RetryPolicy(
    max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05, max_retry_after=3
)
NAME = "modelscope/coco_2014_caption"
SOURCE = f"modelscope:{NAME}"
SCRIPT = """
import datasets
raise SystemExit("this script is never executed")
_URLS = {"train": "%s/coco/2014/train.csv.zip", "valid": "%s/coco/2014/val.csv.zip"}
"""


def coco_path(number: int, part: str = "train") -> str:
    return f"/coco/2014/{part}2014/COCO_{part}2014_{number:012d}.jpg"


@pytest.fixture
def tutorial(hub: Any, zipped: Callable[..., bytes], jpeg: Callable[..., bytes]) -> Callable[[int], None]:
    """The tutorial's data set as it lies on ModelScope: a script, zips of CSVs, and a URL for each image."""

    def make(rows: int, alive: Callable[[int], bool] = lambda number: True) -> None:
        lines = [",uniq_id,image_id,caption,image"]
        for row in range(rows):
            number = 100 + row // 2 * 7  # two rows per image
            url = hub.url + coco_path(number)
            text = '"a cat, asleep && a dog"' if row == 1 else f"caption {row} 图"
            lines.append(f"{row},{row},{number},{text},{url}")
            if alive(number):
                hub.put(coco_path(number), jpeg(number))
        table = "\n".join(lines) + "\n"
        hub.put("/coco/2014/train.csv.zip", zipped(**{"train.csv": table}))
        hub.put("/coco/2014/val.csv.zip", zipped(**{"val.csv": "\n".join(lines[:4]).replace("train2014", "val2014")}))
        script = SCRIPT % (hub.url, hub.url)
        files = {"README.md": b"# COCO", "coco_2014_caption.py": script.encode(), ".gitattributes": b""}
        hub.repo("modelscope", "datasets", NAME, files)

    return make


def get(out: Path, source: str = SOURCE, **more: Any) -> Any:
    return download_dataset(source, out, retry_policy=QUICK, num_workers=4, **more)


def table(out: Path) -> list[list[str]]:
    """(image, caption) of each row."""
    lines = (out / "data.jsonl").read_text(encoding="utf-8").splitlines()
    return [[record["image_path"], record["caption"]] for record in map(json.loads, lines)]


def files(out: Path) -> dict[str, bytes]:
    """What a download leaves, without its count of bytes."""
    content = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and ".source" not in p.parts
    }
    manifest = json.loads(content.pop("download.json"))
    manifest.pop("fetched_bytes")
    return {**content, "download.json": json.dumps(manifest).encode()}


def test_only_what_the_first_rows_need_is_fetched(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(400)
    messages: list[str] = []
    progress = [0, 0]

    def count(more_files: int, more_bytes: int) -> None:
        progress[0] += more_files
        progress[1] += more_bytes

    result = get(tmp_path / "d", max_rows=50, on_message=messages.append, on_progress=count)
    assert (result.num_rows, result.num_examples, result.num_images, result.num_files) == (50, 51, 25, 25)
    assert result.missing == ()
    rows = table(tmp_path / "d")
    first = "images/COCO_train2014_000000000100.jpg"
    assert rows[:4] == [
        [first, "caption 0 图"],
        [first, "a cat, asleep"],
        [first, "a dog"],
        ["images/COCO_train2014_000000000107.jpg", "caption 2 图"],
    ]
    assert len(list((tmp_path / "d" / "images").iterdir())) == 25
    # listing, script, CSV zip, 25 images; nothing of the other 350 rows
    assert len(hub.log) == 3 + 25
    assert not hub.requests("val.csv.zip")
    assert result.sources == {"127.0.0.1": 25}
    assert result.num_bytes == hub.served
    table_bytes = len(hub.static["/coco/2014/train.csv.zip"])
    image_bytes = sum(path.stat().st_size for path in (tmp_path / "d" / "images").iterdir())
    assert progress == [25, table_bytes + image_bytes]
    manifest = json.loads((tmp_path / "d" / "download.json").read_text())
    assert manifest["fetched_bytes"] == hub.served
    assert (manifest["source"], manifest["revision"], manifest["num_rows"]) == (SOURCE, "master", 50)
    assert manifest["images"]["COCO_train2014_000000000100.jpg"] == "127.0.0.1"
    assert any("the script is not executed" in line for line in messages)
    assert not (tmp_path / "d" / "failed.json").exists()


def test_a_rerun_fetches_nothing_and_more_rows_only_what_is_new(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(100)
    get(tmp_path / "d", max_rows=20)
    before, num_requests = files(tmp_path / "d"), len(hub.log)
    again = get(tmp_path / "d", max_rows=20)
    assert len(hub.log) == num_requests
    assert files(tmp_path / "d") == before
    assert (again.num_rows, again.num_images, again.num_files, again.num_bytes) == (20, 10, 0, 0)
    more = get(tmp_path / "d", max_rows=30)
    assert (more.num_rows, more.num_images, more.num_files) == (30, 15, 5)
    assert len(hub.requests(".csv.zip")) == 1
    assert len(hub.requests("COCO_")) == 15
    fewer = get(tmp_path / "d", max_rows=10)
    assert (fewer.num_rows, fewer.num_files, len(table(tmp_path / "d"))) == (10, 0, 11)
    assert len(hub.requests("COCO_")) == 15


def test_an_image_that_was_removed_or_damaged_is_fetched_again(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(20)
    get(tmp_path / "d")
    first, second = sorted((tmp_path / "d" / "images").iterdir())[:2]
    before = files(tmp_path / "d")
    first.unlink()
    second.write_bytes(second.read_bytes()[:500])
    assert get(tmp_path / "d").num_files == 2
    assert files(tmp_path / "d") == before


def test_a_sample_is_fair_and_the_same_for_a_seed(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(400)
    tables = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert get(tmp_path / name, sample=40, seed=seed).num_rows == 40
        tables.append((tmp_path / name / "data.jsonl").read_bytes())
    assert tables[0] == tables[1] != tables[2]
    rows = [int(row[1].split()[1]) for row in table(tmp_path / "a")[1:] if row[1].startswith("caption")]
    assert min(rows) < 100
    assert max(rows) > 300
    assert rows == sorted(rows)


def test_the_other_split_under_each_of_its_names(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(10)
    for name, source, split in (
        ("a", SOURCE + ":validation", None),
        ("b", SOURCE + ":val", None),
        ("c", SOURCE, "valid"),
    ):
        hub.put(coco_path(100, "val"), hub.static[coco_path(100)])
        hub.put(coco_path(107, "val"), hub.static[coco_path(107)])
        assert get(tmp_path / name, source, split=split).num_rows == 3
    with pytest.raises(
        LorgnetteError, match=r"there is no split 'test'; the splits are train, validation .* write modelscope:"
    ):
        get(tmp_path / "d", SOURCE + ":test")


@pytest.mark.parametrize("kind", ["folder", "zip", "host"])
def test_dead_urls_fall_back_to_the_official_names(
    kind: str, hub: Any, tutorial: Any, tmp_path: Path, jpeg: Any, zipped: Any
) -> None:
    tutorial(40, alive=lambda number: number % 2 == 0)
    dead = [100 + i * 7 for i in range(20) if (100 + i * 7) % 2]
    assert len(dead) == 10
    named = {f"COCO_train2014_{number:012d}.jpg": jpeg(number) for number in dead[:8]}
    named[f"{dead[8]:012d}.jpg"] = jpeg(dead[8])
    images_from = str(tmp_path / "coco")
    if kind == "folder":
        (tmp_path / "coco" / "train2014").mkdir(parents=True)
        for name, content in named.items():
            (tmp_path / "coco" / "train2014" / name).write_bytes(content)
    elif kind == "zip":
        (tmp_path / "coco").write_bytes(zipped(**{f"train2014/{name}": content for name, content in named.items()}))
    else:
        images_from = hub.url + "/official"
        for name, content in named.items():
            hub.put(f"/official/{name}", content)
    first = get(tmp_path / "d")
    assert (first.num_rows, first.num_images, len(first.missing)) == (20, 10, 20)
    assert first.missing[0].message == "not found (HTTP 404)"
    assert "--images-from" in first.missing[0].hint
    num_requests = len(hub.requests("COCO_"))
    messages: list[str] = []
    result = get(tmp_path / "d", images_from=images_from, on_message=messages.append)
    assert (result.num_rows, result.num_images, result.sources) == (38, 19, {"127.0.0.1": 10, images_from: 9})
    assert f"9 images from {images_from}" in messages
    assert [item.message for item in result.missing] == [f"not found (HTTP 404); not in {images_from} either"] * 2
    failed = json.loads((tmp_path / "d" / "failed.json").read_text())
    assert [item["where"] for item in failed] == [item.where for item in result.missing]
    # the ten with a live URL are not fetched again
    assert len(hub.requests("/coco/2014/train2014/COCO_")[num_requests:]) == 10
    saved = (tmp_path / "d" / "images" / f"COCO_train2014_{dead[8]:012d}.jpg").read_bytes()
    assert saved == jpeg(dead[8])


def test_no_usable_row_is_an_error(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(10, alive=lambda number: False)
    with pytest.raises(LorgnetteError, match=r"none of 10 rows can be used: not found") as raised:
        get(tmp_path / "d")
    assert "--images-from" in str(raised.value.hint)
    assert len(json.loads((tmp_path / "d" / "failed.json").read_text())) == 10
    assert not (tmp_path / "d" / "data.jsonl").exists()


def test_broken_images_are_named_by_row(hub: Any, trick: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(12)
    hub.put(coco_path(100), b"<!DOCTYPE html><title>404</title>")
    hub.put(coco_path(107), hub.static[coco_path(107)][:700])
    hub.trick(coco_path(114), trick(status=503), trick(status=429, headers={"Retry-After": "0"}))
    hub.trick(coco_path(121), trick(cut=300))
    hub.trick(coco_path(128), trick(pause=0.4))
    result = get(tmp_path / "d")
    assert result.num_images == 4
    assert [(item.where, item.message) for item in result.missing] == [
        ("train.csv.zip, row 1", "got a web page instead of COCO_train2014_000000000100.jpg"),
        ("train.csv.zip, row 2", "got a web page instead of COCO_train2014_000000000100.jpg"),
        ("train.csv.zip, row 3", "the image is cut off"),
        ("train.csv.zip, row 4", "the image is cut off"),
    ]


def test_a_folder_with_other_data_is_refused(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(10)
    get(tmp_path / "d", max_rows=2)
    with pytest.raises(
        LorgnetteError, match=r"the folder holds modelscope:modelscope/coco_2014_caption, downloaded with"
    ):
        get(tmp_path / "d", SOURCE + ":validation")
    (tmp_path / "mine" / "images").mkdir(parents=True)
    with pytest.raises(LorgnetteError, match="were not downloaded by this command"):
        get(tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("*")) == [tmp_path / "mine" / "images"]


def test_bad_arguments_are_refused_before_any_request(hub: Any, tmp_path: Path) -> None:
    for source in ("modelscope:", "elsewhere:a/b", "hf:a/b::c", "modelscope:../../x", "hf:a b/c"):
        with pytest.raises(LorgnetteError):
            get(tmp_path / "d", source)
    with pytest.raises(LorgnetteError, match="exclude each other"):
        get(tmp_path / "d", max_rows=1, sample=1)
    with pytest.raises(LorgnetteError, match="no such folder or zip"):
        get(tmp_path / "d", images_from=str(tmp_path / "nowhere"))
    assert not hub.log


CHILD = """
import sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from lorgnette.data.hub_dataset import download_dataset
download_dataset(sys.argv[1], Path(sys.argv[2]), num_workers=2, **eval(sys.argv[3]))
"""


@pytest.fixture
def start(tmp_path: Path, fork_command: Callable[..., list[str]]) -> Callable[..., "subprocess.Popen[bytes]"]:
    """start(source, folder) → the running download."""
    program = tmp_path / "program.py"
    program.write_text(CHILD)
    return lambda source, out, **more: subprocess.Popen(
        fork_command(program, source, out, repr(more)), stderr=subprocess.PIPE
    )


def wait_until(process: "subprocess.Popen[bytes]", when: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120  # the fork server may have to import first
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process: "subprocess.Popen[bytes]", when: Callable[[], bool]) -> None:
    wait_until(process, when)
    process.kill()
    process.communicate(timeout=10)


@pytest.mark.parametrize("moment", [1, 2, 4, 15, 35])
def test_it_resumes_after_a_kill(moment: int, hub: Any, start: Any, trick: Any, tutorial: Any, tmp_path: Path) -> None:
    """Killed while listing, while the table comes, at the first images, in the middle, near the end."""
    tutorial(80)
    get(tmp_path / "whole")
    log = len(hub.log)
    for path in [*hub.static, "/api/v1/datasets/" + NAME + "/repo/tree"]:
        hub.trick(path, trick(pause=0.03))
    child = start(SOURCE, tmp_path / "d")
    kill(child, lambda: len(hub.log) >= log + moment)
    hub.tricks.clear()
    images = tmp_path / "d" / "images"
    existing = {path.name for path in images.glob("*.jpg")} if images.is_dir() else set()
    time.sleep(0.1)
    log = len(hub.log)
    result = get(tmp_path / "d")
    assert result.num_files == 40 - len(existing)
    assert not any(name in item.path for item in hub.log[log:] for name in existing)
    assert files(tmp_path / "d") == files(tmp_path / "whole")
    assert not list(tmp_path.glob("d/images/.*"))


def test_ctrl_c_stops_it_quickly_and_keeps_the_files(
    hub: Any, start: Any, trick: Any, tutorial: Any, tmp_path: Path
) -> None:
    tutorial(80)
    for path in hub.static:
        hub.trick(path, trick(pause=0.05))
    child = start(SOURCE, tmp_path / "d")
    wait_until(child, lambda: len(hub.requests("COCO_")) > 10)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    child.communicate(timeout=10)
    assert child.returncode != 0
    assert time.monotonic() - began < 5
    assert get(tmp_path / "d").num_files <= 40 - 8


def test_two_processes_in_one_folder_are_refused(
    hub: Any, start: Any, trick: Any, tutorial: Any, tmp_path: Path
) -> None:
    tutorial(10)
    hub.trick("/coco/2014/train.csv.zip", trick(pause=2))
    child = start(SOURCE, tmp_path / "d")
    wait_until(child, lambda: bool(hub.requests("train.csv.zip")))
    with pytest.raises(LorgnetteError, match="another lorgnette is downloading into this folder"):
        get(tmp_path / "d")
    child.communicate(timeout=20)
    assert child.returncode == 0


@pytest.fixture
def parquet_set(hub: Any, jpeg: Callable[..., bytes]) -> Callable[..., None]:
    def make(rows: int = 60, **more: bytes) -> None:
        def shard(numbers: range) -> bytes:
            table = {
                "image": [{"bytes": jpeg(n // 2, 40), "path": f"{n // 2:012d}.jpg"} for n in numbers],
                "caption": [f"caption {n}" for n in numbers],
            }
            out = io.BytesIO()
            pq.write_table(pa.table(table), out, row_group_size=10)
            return out.getvalue()

        files = {"README.md": b"# set", "data/val-00000-of-00002.parquet": shard(range(rows))}
        files["data/val-00001-of-00002.parquet"] = shard(range(rows, rows + 20))
        files["data/test-00000-of-00001.parquet"] = shard(range(4))
        hub.repo("hf", "datasets", "lmms-lab/COCO", files)

    return make


def test_parquet_from_the_listing_to_the_folder(hub: Any, parquet_set: Any, tmp_path: Path, jpeg: Any) -> None:
    parquet_set()
    result = get(tmp_path / "d", "hf:lmms-lab/COCO:val", max_rows=7)
    assert (result.num_rows, result.num_examples, result.num_images, result.num_files) == (7, 7, 4, 0)
    assert len(result.revision) == 40
    rows = table(tmp_path / "d")
    assert [caption for _, caption in rows] == [f"caption {n}" for n in range(7)]
    assert [(tmp_path / "d" / image).read_bytes() for image, _ in rows] == [jpeg(n // 2, 40) for n in range(7)]
    assert result.sources == {"hf:lmms-lab/COCO:val": 4}
    assert not hub.requests("test-") + hub.requests("val-00001")
    log = len(hub.log)
    assert get(tmp_path / "d", "hf:lmms-lab/COCO:val", max_rows=7).num_rows == 7
    assert len(hub.log) == log
    assert get(tmp_path / "d", "hf:lmms-lab/COCO:val").num_rows == 80


def test_without_train_the_splits_are_listed(hub: Any, parquet_set: Any, tmp_path: Path) -> None:
    parquet_set()
    with pytest.raises(
        LorgnetteError, match=r"no split 'train'; the splits are test, validation .* write hf:lmms-lab/COCO:test"
    ):
        get(tmp_path / "d", "hf:lmms-lab/COCO")
    assert get(tmp_path / "d", "hf:lmms-lab/COCO:validation", max_rows=1).num_rows == 1


def test_columns_can_be_requested(hub: Any, parquet_set: Any, tmp_path: Path) -> None:
    parquet_set()
    with pytest.raises(LorgnetteError, match=r"no column 'txt'; the columns are image \(image\), caption \(text\)"):
        get(tmp_path / "d", "hf:lmms-lab/COCO:val", caption_column="txt")
    result = get(tmp_path / "d", "hf:lmms-lab/COCO:val", max_rows=1, image_column="image", caption_column="caption")
    assert result.num_rows == 1


def test_broken_cells_are_named_and_left_out(hub: Any, tmp_path: Path, jpeg: Any) -> None:
    out = io.BytesIO()
    cells = [jpeg(1), b"<html>", None, jpeg(2), jpeg(1)]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c", "", "e"]}), out)
    hub.repo("hf", "datasets", "me/odd", {"train.parquet": out.getvalue()})
    messages: list[str] = []
    result = get(tmp_path / "d", "hf:me/odd", on_message=messages.append)
    assert (result.num_rows, result.num_images) == (2, 1)
    assert [(item.where, item.message) for item in result.missing] == [
        ("train.parquet, row 2", "'image' holds no image in a known format"),
        ("train.parquet, row 3", "'image' is empty, not an image"),
        ("train.parquet, row 4", "the caption is empty"),
    ]
    assert messages[-1].startswith("3 of 5 rows are missing: 'image' holds no image in a known format; ")
    assert len(json.loads((tmp_path / "d" / "failed.json").read_text())) == 3


def test_two_embedded_images_of_one_name_are_two_files(hub: Any, tmp_path: Path, jpeg: Any) -> None:
    out = io.BytesIO()
    cells = [{"bytes": jpeg(i), "path": "../../x/a b.png"} for i in (1, 2, 1)]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c"]}), out)
    hub.repo("hf", "datasets", "me/odd", {"train.parquet": out.getvalue()})
    get(tmp_path / "d", "hf:me/odd")
    rows = table(tmp_path / "d")
    assert [(tmp_path / "d" / image).read_bytes() for image, _ in rows] == [jpeg(i) for i in (1, 2, 1)]
    assert len(list((tmp_path / "d" / "images").iterdir())) == 2


def test_webdataset_from_the_listing_to_the_folder(hub: Any, tmp_path: Path, jpeg: Any, tarred: Any) -> None:
    def shard(numbers: range) -> bytes:
        members = {}
        for number in numbers:
            members |= {f"s{number:04d}.jpg": jpeg(number), f"s{number:04d}.txt": f"caption {number}".encode()}
        return bytes(tarred(members))

    hub.repo(
        "hf",
        "datasets",
        "me/wds",
        {"train/0.tar": shard(range(5)), "train/1.tar": shard(range(5, 9)), "nshards.txt": b"2"},
    )
    assert get(tmp_path / "d", "hf:me/wds", max_rows=3).num_rows == 3
    assert not hub.requests("1.tar")
    result = get(tmp_path / "d", "hf:me/wds")
    rows = table(tmp_path / "d")
    assert [caption for _, caption in rows] == [f"caption {i}" for i in range(9)]
    assert [(tmp_path / "d" / image).read_bytes() for image, _ in rows] == [jpeg(i) for i in range(9)]
    assert result.num_images == 9


def test_an_image_folder_with_its_metadata(hub: Any, tmp_path: Path, jpeg: Any, monkeypatch: Any) -> None:
    rows = "file_name,text\na.jpg,one\nsub/b.jpg,two\nmissing.jpg,three\n"
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.repo("hf", "datasets", "me/folder", {"metadata.csv": rows.encode(), "a.jpg": jpeg(1), "sub/b.jpg": jpeg(2)})
    result = get(tmp_path / "d", "hf:me/folder")
    assert table(tmp_path / "d") == [["images/a.jpg", "one"], ["images/b.jpg", "two"]]
    assert result.missing[0].message == "the image 'missing.jpg' is neither a URL nor a file of the data set"
    assert all("secret" not in path.read_text("latin-1") for path in (tmp_path / "d").rglob("*") if path.is_file())


def test_jsonl_on_modelscope_with_a_private_token(hub: Any, tmp_path: Path, jpeg: Any, monkeypatch: Any) -> None:
    hub.put("/elsewhere/1.jpg", jpeg(1))
    lines = [
        {"image": "images/a.jpg", "text": r"\begin{a} x && y \end{a}"},
        {"image": hub.url + "/elsewhere/1.jpg", "text": "b"},
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    hub.repo("modelscope", "datasets", "me/tex", {"train.jsonl": content, "images/a.jpg": jpeg(2)})
    hub.token = "secret"
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    get(tmp_path / "d", "modelscope:me/tex")
    assert table(tmp_path / "d") == [["images/a.jpg", r"\begin{a} x && y \end{a}"], ["images/1.jpg", "b"]]
    assert "Authorization" not in hub.requests("/elsewhere/1.jpg")[0].headers


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"a.txt": b"x", "b.bin": b"y"}, r"no parquet, tar, CSV, JSON or zip files; it has \.bin, \.txt"),
        ({}, "it has no files"),
        ({"set.py": b"import os\nos.system('touch bomb')"}, "only a loading script, and has no readable URL of data"),
        ({"set.py": b"def ("}, "the loading script cannot be read: SyntaxError"),
        ({"train.csv": b"a,b\n1,2\n"}, "it is not clear which column holds the images; the columns are a"),
        ({"train.csv": b"\xff\xfei\x00m"}, "the file is no whole UTF-16"),
        ({"train.json": b"{}"}, "the file holds an object with the keys , not a list"),
        ({"train.csv.zip": b"PK\x03\x04 no zip"}, "the zip file cannot be read"),
        ({"train.csv": b"image,caption\n"}, "the split has no rows"),
        ({"../../x.csv": b"image,caption\n"}, "a path in the repository leaves its folder"),
    ],
)
def test_unreadable_data_is_an_error_of_one_line(
    content: dict[str, bytes], match: str, hub: Any, tmp_path: Path
) -> None:
    hub.repo("modelscope", "datasets", "me/set", content)
    with pytest.raises(LorgnetteError, match=match) as raised:
        get(tmp_path / "d", "modelscope:me/set")
    assert raised.value.exit_status == 1
    assert raised.value.hint
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("moment", [1, 3, 6, 9])
def test_parquet_resumes_after_a_kill(
    moment: int, hub: Any, start: Any, trick: Any, parquet_set: Any, tmp_path: Path
) -> None:
    parquet_set(300)
    get(tmp_path / "whole", "hf:lmms-lab/COCO:val")
    log, served = len(hub.log), hub.served
    for path in {item.path for item in hub.log}:
        hub.trick(path, *[trick(pause=0.05)] * 40)
    kill(start("hf:lmms-lab/COCO:val", tmp_path / "d"), lambda: len(hub.log) >= log + moment)
    hub.tricks.clear()
    time.sleep(0.1)
    num_existing, before = len(list(tmp_path.glob("d/images/*.jpg"))), hub.served - served
    assert get(tmp_path / "d", "hf:lmms-lab/COCO:val").num_images == 160
    assert files(tmp_path / "d") == files(tmp_path / "whole")
    # what was read before the kill is not read again, except for the row group that it was in
    assert hub.served - served - before <= served * (1 - num_existing / 160) + 300_000


MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "<image>and <image>?"},
    {"role": "assistant", "content": "one and two"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]


def make_conversation_files(form: str, jpeg: Any, zipped: Any, tarred: Any) -> dict[str, bytes]:
    """A data set of two conversations and a caption in one format: its files, the data file first."""
    images = {f"images/{i}.jpg": jpeg(i) for i in range(5)}
    records: list[dict[str, Any]] = [
        {"id": "first", "messages": MESSAGES, "images": ["images/0.jpg", "images/1.jpg"]},
        {
            "image": ["images/2.jpg", "images/3.jpg"],
            "conversations": [{"from": "human", "value": "<image><image> ?"}, {"from": "gpt", "value": "3"}],
        },
        {"file_name": "images/4.jpg", "text": " a caption "},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if form == "jsonl":
        return {"train.jsonl": lines.encode(), **images}
    if form == "zip":
        return {"train.zip": zipped(**{"train.jsonl": lines}, **images)}
    if form == "tar":
        members = {f"{i // 2}.{i}.jpg": jpeg(i) for i in range(4)}
        members |= {f"{i}.json": json.dumps({"messages": MESSAGES}).encode() for i in range(2)}
        members |= {"2.jpg": jpeg(4), "2.txt": b"a caption\n"}
        return {"train.tar": tarred(dict(sorted(members.items())))}
    cells = [[{"bytes": jpeg(2 * row + i), "path": f"{i}.jpg"} for i in range(2)] for row in range(2)]
    out = io.BytesIO()
    pq.write_table(pa.table({"id": ["a", "b"], "images": cells, "messages": [MESSAGES] * 2}), out)
    return {"train.parquet": out.getvalue()}


def describe(path: Path, name: str | None = None) -> list[Any]:
    """The examples of a data file or folder, each image by its content."""
    examples = [row for row in read(path, prompt="what?", name=name) if isinstance(row, Example)]
    return [
        (example.id, turn.role, [part if isinstance(part, str) else part.path.read_bytes() for part in turn.parts])
        for example in examples
        for turn in example.turns
    ]


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["jsonl", "zip", "tar", "parquet"])
def test_conversations_are_the_same_as_from_local_files(
    form: str, hub: Any, tmp_path: Path, jpeg: Any, zipped: Any, tarred: Any
) -> None:
    files = make_conversation_files(form, jpeg, zipped, tarred)
    write_files(tmp_path / "local", files)
    hub.repo("hf", "datasets", "me/chat", files)
    dataset = get(tmp_path / "d", "hf:me/chat")
    local = describe(tmp_path / "local" / next(iter(files)))
    assert len({id_ for id_, _, _ in local}) == (2 if form == "parquet" else 3)
    assert describe(dataset.path) == local
    assert dataset.missing == ()
    num_requests = len(hub.log)
    assert get(tmp_path / "d", "hf:me/chat").num_rows == dataset.num_rows
    assert len(hub.log) == num_requests


def test_a_conversation_without_one_of_its_images_is_named(hub: Any, tmp_path: Path, jpeg: Any) -> None:
    record = {"messages": MESSAGES, "images": ["a.jpg", "gone.jpg"]}
    lines = [record, {**record, "images": ["a.jpg", hub.url + "/dead.jpg"]}, {**record, "images": ["a.jpg", "a.jpg"]}]
    content = "\n".join(map(json.dumps, lines)).encode()
    hub.repo("hf", "datasets", "me/chat", {"train.jsonl": content, "a.jpg": jpeg(1)})
    dataset = get(tmp_path / "d", "hf:me/chat")
    assert (dataset.num_rows, dataset.num_images) == (1, 1)
    assert [(row.where, row.message) for row in dataset.missing] == [
        ("train.jsonl, row 1", "the image 'gone.jpg' is neither a URL nor a file of the data set"),
        ("train.jsonl, row 2", "not found (HTTP 404)"),
    ]
    assert dataset.missing[1].image == hub.url + "/dead.jpg"


ANNOTATIONS = {
    "images": [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 10, "file_name": "000000000010.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "a"},
        {"id": 2, "image_id": 10, "caption": "b"},
        {"id": 3, "image_id": 9, "caption": "c "},
    ],
}
KARPATHY = {
    "images": [
        {"filepath": "val2014", "filename": f"{n}.jpg", "split": split, "cocoid": n, "sentences": [{"raw": f"on {n}"}]}
        for n, split in enumerate(["test", "train", "test", "restval"])
    ]
}
DATASET_INFO = {
    "val": {
        "file_name": "tables/pets.json",
        "formatting": "sharegpt",
        "columns": {"messages": "chat", "images": "photos"},
        "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "me", "assistant_tag": "it"},
    },
    "alpaca": {"file_name": "tables/alpaca.json", "columns": {"prompt": "question", "images": "images"}},
    "elsewhere": {"hf_hub_url": "me/other"},
}
PETS = [
    {"chat": [{"who": "me", "said": f"<image>{n}?"}, {"who": "it", "said": f"{n}!"}], "photos": [f"img/{n}.jpg"]}
    for n in range(3)
]
ALPACA = [{"question": "<image>what?", "output": "a cat", "images": ["img/1.jpg"]}]


def make_described_files(form: str, jpeg: Any) -> dict[str, bytes]:
    """A data set whose images are files beside what describes them."""
    if form == "pairs":
        pairs = {f"{n}.jpg": jpeg(n) for n in range(4)} | {
            f"{n}.txt": f" caption {n} \n".encode() for n in (0, 1, 3, 7)
        }
        return {**pairs, "other/9.jpg": jpeg(9), "README.md": b"# pairs"}
    if form in ("csv", "jsonl"):
        images = {"a.jpg": jpeg(1), "sub/b.jpg": jpeg(2)}
        rows = [{"file_name": name, "text": f" {name}, it is", "url": "http://none/x.jpg"} for name in images]
        table = "file_name,text,url\n" + "".join('{file_name},"{text}",{url}\n'.format(**row) for row in rows)
        text = table if form == "csv" else "".join(json.dumps(row) + "\n" for row in rows)
        return {f"metadata.{form}": text.encode(), **images}
    if form == "coco":
        images = {f"train2017/{n:012d}.jpg": jpeg(n) for n in (9, 10)}
        others = {f"annotations/{name}_train2017.json": b"{}" for name in ("instances", "person_keypoints")}
        return {"annotations/captions_train2017.json": json.dumps(ANNOTATIONS).encode(), **others, **images}
    if form == "karpathy":
        images = {f"val2014/{n}.jpg": jpeg(n) for n in range(4)}
        return {"dataset_coco.json": json.dumps(KARPATHY).encode(), **images}
    tables = {"dataset_info.json": DATASET_INFO, "tables/pets.json": PETS, "tables/alpaca.json": ALPACA}
    images = {f"{folder}img/{n}.jpg": jpeg(n + 10 * len(folder)) for n in range(3) for folder in ("", "tables/")}
    return {**{name: json.dumps(table).encode() for name, table in tables.items()}, **images}


DESCRIBED = [
    ("pairs", "", "", None),
    ("csv", "", "", None),
    ("jsonl", "", "", None),
    ("coco", "", "annotations/captions_train2017.json", None),
    ("karpathy", "", "dataset_coco.json", None),
    ("karpathy", ":train", "dataset_coco.json", "train"),
    ("karpathy", ":test", "dataset_coco.json", "test"),
    ("karpathy", ":train+restval", "dataset_coco.json", "train+restval"),
    ("llama-factory", ":val", "dataset_info.json", "val"),
    ("llama-factory", ":validation", "dataset_info.json", "val"),
    ("llama-factory", ":alpaca", "dataset_info.json", "alpaca"),
]


@pytest.mark.parametrize(("form", "words", "path", "name"), DESCRIBED)
def test_described_images_are_the_same_as_from_local_files(
    form: str, words: str, path: str, name: str | None, hub: Any, tmp_path: Path, jpeg: Any
) -> None:
    repository = make_described_files(form, jpeg)
    write_files(tmp_path / "local", repository)
    hub.repo("modelscope", "datasets", "me/set", repository)
    local = describe(tmp_path / "local" / path, name)
    source = f"modelscope:me/set{words}"
    # the first row alone, then the others, and nothing twice
    assert describe(get(tmp_path / "d", source, max_rows=1).path)[:2] == local[:2]
    assert sum(request.query.get("FilePath", "").endswith(".jpg") for request in hub.requests()) == 1
    dataset = get(tmp_path / "d", source)
    assert describe(dataset.path) == local
    paths = [request.query["FilePath"] for request in hub.requests() if "FilePath" in request.query]
    assert len(paths) == len(set(paths))
    get(tmp_path / "whole", source)
    assert files(tmp_path / "d") == files(tmp_path / "whole")
    assert [row.message for row in dataset.missing] == (
        ["2.jpg has no text", "7.txt has no image"] if form == "pairs" else []
    )
    sample = get(tmp_path / "sample", source, sample=2, seed=1)
    assert sample.num_rows + len(sample.missing) == min(2, dataset.num_rows)
    assert all(turn[1:] in [known[1:] for known in local] for turn in describe(sample.path))


@pytest.mark.parametrize("moment", [2, 4, 7, 11])
def test_pairs_resume_after_a_kill(moment: int, hub: Any, start: Any, trick: Any, tmp_path: Path, jpeg: Any) -> None:
    pairs = {f"train/{n}.jpg": jpeg(n) for n in range(12)} | {f"train/{n}.txt": b"text" for n in range(12)}
    hub.repo("hf", "datasets", "me/pairs", {**pairs, "test/1.jpg": jpeg(99), "test/1.txt": b"other"})
    get(tmp_path / "whole", "hf:me/pairs")
    log = len(hub.log)
    assert not hub.requests("test/")
    for path in {item.path for item in hub.log}:
        hub.trick(path, *[trick(pause=0.03)] * 3)
    kill(start("hf:me/pairs", tmp_path / "d"), lambda: len(hub.log) >= log + moment)
    hub.tricks.clear()
    time.sleep(0.1)
    assert get(tmp_path / "d", "hf:me/pairs").num_rows == 12
    assert files(tmp_path / "d") == files(tmp_path / "whole")


def test_the_entries_of_a_dataset_info_are_listed(hub: Any, tmp_path: Path, jpeg: Any) -> None:
    hub.repo("hf", "datasets", "me/set", make_described_files("llama-factory", jpeg))
    with pytest.raises(LorgnetteError, match=r"no split 'train'; the splits are val, alpaca · hf:me/set · write"):
        get(tmp_path / "d", "hf:me/set")
    one = {"pets": {**DATASET_INFO["val"], "file_name": "pets.json"}}
    content = {"dataset_info.json": json.dumps(one).encode(), "pets.json": json.dumps(PETS).encode()}
    hub.repo("hf", "datasets", "me/one", {**content, "img/0.jpg": jpeg(0), "img/1.jpg": jpeg(1), "img/2.jpg": jpeg(2)})
    assert get(tmp_path / "e", "hf:me/one").num_rows == get(tmp_path / "f", "hf:me/one:train").num_rows == 3
    for text in ("{", "[1]", '{"features": {}, "splits": {}}'):  # descriptions of other tools
        lines = b'{"file_name": "img/0.jpg", "text": "a"}'
        plain = {"dataset_info.json": text.encode(), "train.jsonl": lines, "img/0.jpg": jpeg(0)}
        hub.repo("hf", "datasets", "me/plain", plain)
        assert get(tmp_path / f"plain-{len(text)}", "hf:me/plain").num_rows == 1
    hub.repo("hf", "datasets", "me/chat", {"train.json": json.dumps(KARPATHY).encode()})
    with pytest.raises(LorgnetteError, match=r"no split 'dev' .* set name to one of restval, test, train"):
        get(tmp_path / "g", "hf:me/chat:dev")


def test_any_prompt_may_be_asked_afterwards(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(2)
    path = get(tmp_path / "d").path
    for prompt in ("COCO Yes:", "", "Was?"):
        assert {row.turns[0].text for row in read(path, prompt=prompt) if isinstance(row, Example)} == {prompt}


def test_a_parquet_sample_resumes(hub: Any, parquet_set: Any, tmp_path: Path) -> None:
    parquet_set(300)
    whole = get(tmp_path / "a", "hf:lmms-lab/COCO:val", sample=20, seed=1)
    rows_file = tmp_path / "a" / ".source" / "rows.sample-20-seed-1.jsonl"
    lines = rows_file.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == whole.num_rows == 20
    content = (tmp_path / "a" / "data.jsonl").read_bytes()
    rows_file.write_text("".join(lines[:7]), encoding="utf-8")
    (tmp_path / "a" / "download.json").unlink()
    get(tmp_path / "a", "hf:lmms-lab/COCO:val", sample=20, seed=1)
    assert (tmp_path / "a" / "data.jsonl").read_bytes() == content


def test_a_sample_of_a_tar_is_refused(hub: Any, tmp_path: Path, tarred: Any) -> None:
    hub.repo("hf", "datasets", "me/wds", {"0.tar": tarred({"1.txt": b"x"})})
    with pytest.raises(LorgnetteError, match="would fetch all of them"):
        get(tmp_path / "d", "hf:me/wds", sample=2)


def test_a_tar_costs_its_first_rows_and_resumes_behind_them(hub: Any, tmp_path: Path, tarred: Any) -> None:
    def shard(first: int, num_rows: int) -> bytes:
        numbers = range(first, first + num_rows)
        image = b"\xff\xd8\xff" + b"%06d" + bytes(50_000)
        members = {f"{n:06d}.{s}": c for n in numbers for s, c in (("jpg", image % n), ("txt", b"%d" % n))}
        return bytes(tarred(members))

    hub.repo("hf", "datasets", "me/wds", {"0.tar": shard(0, 100), "1.tar": shard(100, 5)})
    get(tmp_path / "d", "hf:me/wds", max_rows=20)
    assert hub.served < 20 * 52_000 + (1 << 20) + 100_000
    assert not hub.requests("1.tar")
    served = hub.served
    assert get(tmp_path / "d", "hf:me/wds").num_rows == 105
    assert hub.served - served < 85 * 53_000 + 100_000
    assert [caption for _, caption in table(tmp_path / "d")] == [str(n) for n in range(105)]


def test_a_lost_connection_in_a_tar_is_retried_and_a_broken_tar_is_named(
    hub: Any, trick: Any, tmp_path: Path, tarred: Any, jpeg: Any
) -> None:
    content = tarred({f"{i:03d}.{s}": c for i in range(30) for s, c in (("jpg", jpeg(i)), ("txt", b"x"))})
    hub.repo("modelscope", "datasets", "me/wds", {"0.tar": content})
    hub.trick("0.tar", trick(cut=5_000), trick(status=500), trick(cut=100))
    assert get(tmp_path / "d", "modelscope:me/wds").num_rows == 30
    hub.repo("modelscope", "datasets", "me/cut", {"0.tar": content[:9000]})
    with pytest.raises(LorgnetteError, match="the tar cannot be read"):
        get(tmp_path / "e", "modelscope:me/cut")
    hub.trick("0.tar", *[trick(status=403)] * 9)
    with pytest.raises(LorgnetteError, match=r"no permission to read this \(HTTP 403\)"):
        get(tmp_path / "f", "modelscope:me/wds")


def test_images_in_a_zip_of_the_repository(hub: Any, tmp_path: Path, jpeg: Any, zipped: Any) -> None:
    records = [{"messages": MESSAGES, "images": [f"train/{i}.jpg", "own.jpg"]} for i in range(3)]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    images = zipped(**{f"x/{i}.jpg": jpeg(i) for i in range(2)})
    hub.repo("hf", "datasets", "me/chat", {"train.jsonl": lines, "images.zip": images, "own.jpg": jpeg(9)})
    dataset = get(tmp_path / "d", "hf:me/chat")
    assert (dataset.num_rows, dataset.num_images) == (2, 3)
    assert dataset.missing[0].message == "the image 'train/2.jpg' is neither a URL nor a file of the data set"
    parts = [part for _, role, parts in describe(dataset.path) if role == "user" for part in parts if len(part) > 99]
    assert parts == [jpeg(0), jpeg(9), jpeg(1), jpeg(9)]
    assert len(hub.requests("images.zip")) == 1


def test_questions_marks_and_blanks_survive_the_download(hub: Any, tmp_path: Path, jpeg: Any) -> None:
    """data.jsonl keeps what the rows say; captions lose the blanks around them when they are read."""
    turns = [("user", "q"), ("assistant", "no"), ("user", " r "), ("assistant", "a ")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    messages[1]["loss"] = False
    records: list[dict[str, Any]] = [
        {"image": "a.jpg", "question": "what?", "answer": "red", "license": "CC0"},
        {"image": "a.jpg", "answer": " red ", "system": "Be brief."},
        {"messages": messages},
        {"image": "a.jpg", "answer": "red", "kto_tag": False},
    ]
    files = {"train.jsonl": "\n".join(map(json.dumps, records)).encode(), "a.jpg": jpeg(1)}
    hub.repo("hf", "datasets", "me/set", files)
    result = get(tmp_path / "d", "hf:me/set")
    assert [row.message for row in result.missing] == ["the row is marked as not to be learned (kto_tag)"]
    assert result.unread_keys == {"license": 1}
    asked, brief, marked = (row for row in read(tmp_path / "d" / "data.jsonl", prompt="p") if isinstance(row, Example))
    assert [turn.text for turn in asked.turns] == ["what?", "red"]
    assert [turn.text for turn in brief.turns] == ["Be brief.", "p", "red"]
    assert brief.is_trimmed
    assert [(turn.text, turn.has_loss) for turn in marked.turns] == [
        ("q", True),
        ("no", False),
        (" r ", True),
        ("a ", True),
    ]
    [_, raw, _] = read(tmp_path / "d" / "data.jsonl", trim=False)
    assert isinstance(raw, Example)
    assert raw.reference == " red "


def test_two_images_that_are_one_file_of_the_repository_break_both_rows(hub: Any, tmp_path: Path, jpeg: Any) -> None:
    """The repository has one 0.jpg, in another folder than both. The first row was read by an earlier run."""
    records = [{"image": path, "caption": path} for path in ("A/0.jpg", "c.jpg", "B/0.jpg")]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    hub.repo("hf", "datasets", "me/set", {"train.jsonl": lines, "flat/0.jpg": jpeg(1), "c.jpg": jpeg(2)})
    assert get(tmp_path / "d", "hf:me/set", max_rows=1).num_rows == 1
    dataset = get(tmp_path / "d", "hf:me/set")
    assert [caption for _, caption in table(tmp_path / "d")] == ["c.jpg"]
    assert {row.message for row in dataset.missing} == {
        "another image has the same file in the data set, found by its name alone"
    }
    assert [row.where for row in dataset.missing] == ["train.jsonl, row 1", "train.jsonl, row 3"]
