"""Data sets on Hugging Face from the listing to the folder, with the hub's own client."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.collect import collect
from lorgnette.hub.line import RetryPolicy
from lorgnette.hub.sources import parse_address

QUICK = RetryPolicy(max_attempts=3, connect_timeout=2, read_timeout=1, initial_pause=0.01, max_pause=0.05)


@pytest.fixture
def coco(hub: Any, picture: Callable[..., bytes]) -> Callable[..., None]:
    def make(rows: int = 60, **more: bytes) -> None:
        def shard(numbers: range) -> bytes:
            table = {
                "image": [{"bytes": picture(n // 2, 40), "path": f"{n // 2:012d}.jpg"} for n in numbers],
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


def get(source: str, out: Path, **more: Any) -> Any:
    return collect(source, out, patience=QUICK, workers=4, **more)


def table(out: Path) -> list[list[str]]:
    return list(csv.reader((out / "captions.csv").read_text(encoding="utf-8").splitlines()))[1:]


def files(out: Path) -> dict[str, bytes]:
    found = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and ".source" not in p.parts
    }
    found.pop("download.json")
    return found


def test_parquet_from_the_listing_to_the_folder(hub: Any, coco: Any, tmp_path: Path, picture: Any) -> None:
    coco()
    done = get("hf:lmms-lab/COCO:val", tmp_path / "d", rows=7)
    assert (done.rows, done.captions, done.pictures, done.files, len(done.revision)) == (7, 7, 4, 0, 40)
    assert table(tmp_path / "d")[:3] == [
        ["pictures/000000000000.jpg", "caption 0"],
        ["pictures/000000000000.jpg", "caption 1"],
        ["pictures/000000000001.jpg", "caption 2"],
    ]
    assert (tmp_path / "d" / "pictures" / "000000000003.jpg").read_bytes() == picture(3, 40)
    assert done.served == {"hf:lmms-lab/COCO:val": 4}
    assert not hub.asked("test-") + hub.asked("val-00001")
    log = len(hub.log)
    assert get("hf:lmms-lab/COCO:val", tmp_path / "d", rows=7).rows == 7
    assert len(hub.log) == log
    assert get("hf:lmms-lab/COCO:val", tmp_path / "d").rows == 80


def test_without_train_the_splits_are_listed(hub: Any, coco: Any, tmp_path: Path) -> None:
    coco()
    with pytest.raises(
        LorgnetteError, match=r"no split 'train'; there are test, validation .* write hf:lmms-lab/COCO:test"
    ):
        get("hf:lmms-lab/COCO", tmp_path / "d")
    assert get("hf:lmms-lab/COCO:validation", tmp_path / "d", rows=1).rows == 1


def test_columns_in_doubt_and_columns_asked_for(hub: Any, coco: Any, tmp_path: Path) -> None:
    coco()
    with pytest.raises(LorgnetteError, match=r"no column 'txt'; there are image \(picture\), caption \(text\)"):
        get("hf:lmms-lab/COCO:val", tmp_path / "d", caption_column="txt")
    done = get("hf:lmms-lab/COCO:val", tmp_path / "d", rows=1, image_column="image", caption_column="caption")
    assert done.rows == 1


def test_broken_cells_are_named_and_the_rest_goes_on(hub: Any, tmp_path: Path, picture: Any) -> None:
    out = io.BytesIO()
    cells = [picture(1), b"<html>", None, picture(2), picture(1)]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c", "", "e"]}), out)
    hub.repo("hf", "datasets", "me/odd", {"train.parquet": out.getvalue()})
    said: list[str] = []
    done = get("hf:me/odd", tmp_path / "d", say=said.append)
    assert (done.rows, done.pictures) == (2, 1)
    assert [(each.place, each.what) for each in done.missing] == [
        ("train.parquet, row 2", "the image cell holds no picture"),
        ("train.parquet, row 3", "the image cell is empty"),
        ("train.parquet, row 4", "the caption is empty"),
    ]
    assert said[-1].startswith("3 of 5 rows could not be had: the image cell holds no picture; ")
    assert len(json.loads((tmp_path / "d" / "failed.json").read_text())) == 3


def test_two_pictures_of_one_name_are_two_files(hub: Any, tmp_path: Path, picture: Any) -> None:
    out = io.BytesIO()
    cells = [{"bytes": picture(i), "path": "../../x/a b.png"} for i in (1, 2, 1)]
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c"]}), out)
    hub.repo("hf", "datasets", "me/odd", {"train.parquet": out.getvalue()})
    get("hf:me/odd", tmp_path / "d")
    names = [row[0] for row in table(tmp_path / "d")]
    assert names[0] == names[2] == "pictures/a_b.jpg"
    assert names[1].startswith("pictures/a_b-")
    assert len(list((tmp_path / "d" / "pictures").iterdir())) == 2


def test_webdataset_from_the_listing_to_the_folder(hub: Any, tmp_path: Path, picture: Any, tarred: Any) -> None:
    def shard(numbers: range) -> bytes:
        members = {}
        for number in numbers:
            members |= {f"s{number:04d}.jpg": picture(number), f"s{number:04d}.txt": f"caption {number}".encode()}
        return bytes(tarred(members))

    hub.repo(
        "hf",
        "datasets",
        "me/wds",
        {"train/0.tar": shard(range(5)), "train/1.tar": shard(range(5, 9)), "nshards.txt": b"2"},
    )
    assert get("hf:me/wds", tmp_path / "d", rows=3).rows == 3
    assert not hub.asked("1.tar")
    done = get("hf:me/wds", tmp_path / "d")
    assert table(tmp_path / "d") == [[f"pictures/s{i:04d}.jpg", f"caption {i}"] for i in range(9)]
    assert done.pictures == 9


def test_an_image_folder_with_its_metadata(hub: Any, tmp_path: Path, picture: Any, monkeypatch: Any) -> None:
    rows = "file_name,text\na.jpg,one\nsub/b.jpg,two\nmissing.jpg,three\n"
    hub.token = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.repo(
        "hf", "datasets", "me/folder", {"metadata.csv": rows.encode(), "a.jpg": picture(1), "sub/b.jpg": picture(2)}
    )
    done = get("hf:me/folder", tmp_path / "d")
    assert table(tmp_path / "d") == [["pictures/a.jpg", "one"], ["pictures/b.jpg", "two"]]
    assert done.missing[0].what == "the picture 'missing.jpg' is neither an address nor a file of the data set"
    assert all("secret" not in path.read_text("latin-1") for path in (tmp_path / "d").rglob("*") if path.is_file())


def test_jsonl_on_modelscope_with_a_private_token(hub: Any, tmp_path: Path, picture: Any, monkeypatch: Any) -> None:
    hub.put("/elsewhere/1.jpg", picture(1))
    lines = [
        {"image": "images/a.jpg", "text": r"\begin{a} x && y \end{a}"},
        {"image": hub.url + "/elsewhere/1.jpg", "text": "b"},
    ]
    content = "\n".join(json.dumps(line) for line in lines).encode()
    hub.repo("modelscope", "datasets", "me/tex", {"train.jsonl": content, "images/a.jpg": picture(2)})
    hub.token = "secret"
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    get("modelscope:me/tex", tmp_path / "d")
    assert table(tmp_path / "d") == [["pictures/a.jpg", r"\begin{a} x && y \end{a}"], ["pictures/1.jpg", "b"]]
    assert "Authorization" not in hub.asked("/elsewhere/1.jpg")[0].headers


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"a.txt": b"x", "b.bin": b"y"}, r"no parquet, tar, CSV or JSONL files; there are \.bin, \.txt"),
        ({}, "there are nothing"),
        ({"set.py": b"import os\nos.system('touch bomb')"}, "only a loading script, and no data address can be read"),
        ({"set.py": b"def ("}, "the loading script cannot be read: SyntaxError"),
        ({"train.csv": b"a,b\n1,2\n"}, "which column holds the pictures is not clear; there are a"),
        ({"train.csv": b"\xff\xfei\x00m\x00"}, "the file is not UTF-8"),
        ({"train.json": b"{}"}, "the table is broken: it is not a list"),
        ({"train.csv.zip": b"PK\x03\x04 no zip"}, "the zip file cannot be read"),
        ({"train.csv": b"image,caption\n"}, "the split holds no rows"),
        ({"../../x.csv": b"image,caption\n"}, "a path in the repository leaves its folder"),
    ],
)
def test_what_cannot_be_read_is_one_line(content: dict[str, bytes], match: str, hub: Any, tmp_path: Path) -> None:
    hub.repo("modelscope", "datasets", "me/set", content)
    with pytest.raises(LorgnetteError, match=match) as caught:
        get("modelscope:me/set", tmp_path / "d")
    assert caught.value.exit_status == 1
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_addresses_are_read() -> None:
    address = parse_address("hf:me/set@v1:config", "test")
    assert (address.hub, address.name, address.revision, address.words) == ("hf", "me/set", "v1", ("config", "test"))
    assert address.text == "hf:me/set@v1:config:test"
    assert parse_address("modelscope:a/b:val").split == "validation"


CHILD = """
import sys
from pathlib import Path
from lorgnette.hub.collect import collect
collect(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("moment", [1, 3, 6, 9])
def test_after_a_kill_parquet_goes_on(moment: int, hub: Any, trick: Any, coco: Any, tmp_path: Path) -> None:
    coco(300)
    get("hf:lmms-lab/COCO:val", tmp_path / "whole")
    log, served = len(hub.log), hub.served
    for path in {each.path for each in hub.log}:
        hub.trick(path, *[trick(pause=0.05)] * 40)
    child = subprocess.Popen([sys.executable, "-W", "error", "-c", CHILD, "hf:lmms-lab/COCO:val", str(tmp_path / "d")])
    for _ in range(2000):
        if len(hub.log) >= log + moment:
            break
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)
    hub.tricks.clear()
    time.sleep(0.1)
    there, before = len(list(tmp_path.glob("d/pictures/*.jpg"))), hub.served - served
    assert get("hf:lmms-lab/COCO:val", tmp_path / "d").pictures == 160
    assert files(tmp_path / "d") == files(tmp_path / "whole")
    # what was read before the kill is not read again, but for the row group that it was in
    assert hub.served - served - before <= served * (1 - there / 160) + 300_000
