import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.collect import collect
from lorgnette.hub.line import RetryPolicy

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


def coco(number: int, part: str = "train") -> str:
    return f"/coco/2014/{part}2014/COCO_{part}2014_{number:012d}.jpg"


@pytest.fixture
def tutorial(hub: Any, zipped: Callable[..., bytes], picture: Callable[..., bytes]) -> Callable[[int], None]:
    """The tutorial's data set as it lies on ModelScope: a script, CSV zips, a picture an address."""

    def make(rows: int, alive: Callable[[int], bool] = lambda number: True) -> None:
        lines = [",uniq_id,image_id,caption,image"]
        for row in range(rows):
            number = 100 + row // 2 * 7  # two rows a picture
            url = hub.url + coco(number)
            text = '"a cat, asleep && a dog"' if row == 1 else f"caption {row} 图"
            lines.append(f"{row},{row},{number},{text},{url}")
            if alive(number):
                hub.put(coco(number), picture(number))
        table = "\n".join(lines) + "\n"
        hub.put("/coco/2014/train.csv.zip", zipped(**{"train.csv": table}))
        hub.put("/coco/2014/val.csv.zip", zipped(**{"val.csv": "\n".join(lines[:4]).replace("train2014", "val2014")}))
        script = SCRIPT % (hub.url, hub.url)
        files = {"README.md": b"# COCO", "coco_2014_caption.py": script.encode(), ".gitattributes": b""}
        hub.repo("modelscope", "datasets", NAME, files)

    return make


def get(out: Path, source: str = SOURCE, **more: Any) -> Any:
    return collect(source, out, patience=QUICK, workers=4, **more)


def table(out: Path) -> list[list[str]]:
    return list(csv.reader((out / "captions.csv").read_text(encoding="utf-8").splitlines()))


def files(out: Path) -> dict[str, bytes]:
    """What a collection leaves, without what counts its bytes."""
    found = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and ".source" not in p.parts
    }
    manifest = json.loads(found.pop("download.json"))
    manifest.pop("bytes_fetched")
    return {**found, "download.json": json.dumps(manifest).encode()}


def test_the_first_rows_cost_what_they_weigh(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(400)
    said: list[str] = []
    seen = [0, 0]

    def count(more_files: int, more_bytes: int) -> None:
        seen[0] += more_files
        seen[1] += more_bytes

    done = get(tmp_path / "d", rows=50, say=said.append, seen=count)
    assert (done.rows, done.captions, done.pictures, done.files, done.missing) == (50, 51, 25, 25, ())
    rows = table(tmp_path / "d")
    assert rows[0] == ["image_path", "caption"]
    first = "pictures/COCO_train2014_000000000100.jpg"
    assert rows[1:5] == [
        [first, "caption 0 图"],
        [first, "a cat, asleep"],
        [first, "a dog"],
        ["pictures/COCO_train2014_000000000107.jpg", "caption 2 图"],
    ]
    assert len(list((tmp_path / "d" / "pictures").iterdir())) == 25
    # listing, script, CSV zip, 25 pictures; nothing of the other 350 rows
    assert len(hub.log) == 3 + 25
    assert not hub.asked("val.csv.zip")
    assert done.served == {"127.0.0.1": 25}
    assert done.bytes == hub.served
    table_bytes = len(hub.static["/coco/2014/train.csv.zip"])
    picture_bytes = sum(path.stat().st_size for path in (tmp_path / "d" / "pictures").iterdir())
    assert seen == [25, table_bytes + picture_bytes]
    manifest = json.loads((tmp_path / "d" / "download.json").read_text())
    assert manifest["bytes_fetched"] == hub.served
    assert (manifest["source"], manifest["revision"], manifest["rows"]) == (SOURCE, "master", 50)
    assert manifest["pictures_from"]["COCO_train2014_000000000100.jpg"] == "127.0.0.1"
    assert any("which is not executed" in line for line in said)
    assert not (tmp_path / "d" / "failed.json").exists()


def test_a_rerun_asks_for_nothing_and_more_rows_only_for_what_is_new(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(100)
    get(tmp_path / "d", rows=20)
    before, asked = files(tmp_path / "d"), len(hub.log)
    again = get(tmp_path / "d", rows=20)
    assert len(hub.log) == asked
    assert files(tmp_path / "d") == before
    assert (again.rows, again.pictures, again.files, again.bytes) == (20, 10, 0, 0)
    more = get(tmp_path / "d", rows=30)
    assert (more.rows, more.pictures, more.files) == (30, 15, 5)
    assert len(hub.asked(".csv.zip")) == 1
    assert len(hub.asked("COCO_")) == 15
    fewer = get(tmp_path / "d", rows=10)
    assert (fewer.rows, fewer.files, len(table(tmp_path / "d"))) == (10, 0, 12)
    assert len(hub.asked("COCO_")) == 15


def test_a_picture_that_was_removed_or_damaged_is_fetched_again(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(20)
    get(tmp_path / "d")
    one, other = sorted((tmp_path / "d" / "pictures").iterdir())[:2]
    before = files(tmp_path / "d")
    one.unlink()
    other.write_bytes(other.read_bytes()[:500])
    assert get(tmp_path / "d").files == 2
    assert files(tmp_path / "d") == before


def test_a_sample_is_fair_and_the_same_for_a_seed(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(400)
    tables = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert get(tmp_path / name, sample=40, seed=seed).rows == 40
        tables.append((tmp_path / name / "captions.csv").read_bytes())
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
        hub.put(coco(100, "val"), hub.static[coco(100)])
        hub.put(coco(107, "val"), hub.static[coco(107)])
        assert get(tmp_path / name, source, split=split).rows == 3
    with pytest.raises(
        LorgnetteError, match=r"there is no split 'test'; there are train, validation .* write modelscope:"
    ):
        get(tmp_path / "d", SOURCE + ":test")


@pytest.mark.parametrize("kind", ["folder", "zip", "host"])
def test_dead_addresses_fall_back_to_the_official_names(
    kind: str, hub: Any, tutorial: Any, tmp_path: Path, picture: Any, zipped: Any
) -> None:
    tutorial(40, alive=lambda number: number % 2 == 0)
    dead = [100 + i * 7 for i in range(20) if (100 + i * 7) % 2]
    assert len(dead) == 10
    named = {f"COCO_train2014_{number:012d}.jpg": picture(number) for number in dead[:8]}
    named[f"{dead[8]:012d}.jpg"] = picture(dead[8])
    place = str(tmp_path / "coco")
    if kind == "folder":
        (tmp_path / "coco" / "train2014").mkdir(parents=True)
        for name, content in named.items():
            (tmp_path / "coco" / "train2014" / name).write_bytes(content)
    elif kind == "zip":
        (tmp_path / "coco").write_bytes(zipped(**{f"train2014/{name}": content for name, content in named.items()}))
    else:
        place = hub.url + "/official"
        for name, content in named.items():
            hub.put(f"/official/{name}", content)
    first = get(tmp_path / "d")
    assert (first.rows, first.pictures, len(first.missing)) == (20, 10, 20)
    assert first.missing[0].what == "there is nothing at this address (404)"
    assert "--images-from" in first.missing[0].remedy
    asked = len(hub.asked("COCO_"))
    said: list[str] = []
    done = get(tmp_path / "d", images_from=place, say=said.append)
    assert (done.rows, done.pictures, done.served) == (38, 19, {"127.0.0.1": 10, place: 9})
    assert f"9 pictures from {place}" in said
    assert [each.what for each in done.missing] == [
        f"there is nothing at this address (404); not in {place} either"
    ] * 2
    failed = json.loads((tmp_path / "d" / "failed.json").read_text())
    assert [each["place"] for each in failed] == [each.place for each in done.missing]
    # the ten that live are not asked for again
    again = [each for each in hub.asked("/coco/2014/train2014/COCO_")[asked:]]
    assert len(again) == 10
    saved = (tmp_path / "d" / "pictures" / f"COCO_train2014_{dead[8]:012d}.jpg").read_bytes()
    assert saved == picture(dead[8])


def test_nothing_at_all_is_an_error_of_one_line(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(10, alive=lambda number: False)
    with pytest.raises(LorgnetteError, match=r"not one of 10 rows could be had: there is nothing at this") as caught:
        get(tmp_path / "d")
    assert "--images-from" in str(caught.value.hint)
    assert len(json.loads((tmp_path / "d" / "failed.json").read_text())) == 10
    assert not (tmp_path / "d" / "captions.csv").exists()


def test_pictures_that_are_not_what_they_say_are_named(hub: Any, trick: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(12)
    hub.put(coco(100), b"<!DOCTYPE html><title>404</title>")
    hub.put(coco(107), hub.static[coco(107)][:700])
    hub.trick(coco(114), trick(status=503), trick(status=429, headers={"Retry-After": "0"}))
    hub.trick(coco(121), trick(cut=300))
    hub.trick(coco(128), trick(pause=0.4))
    done = get(tmp_path / "d")
    assert done.pictures == 4
    assert [(each.place, each.what) for each in done.missing] == [
        ("train.csv.zip, row 1", "a web page came instead of COCO_train2014_000000000100.jpg"),
        ("train.csv.zip, row 2", "a web page came instead of COCO_train2014_000000000100.jpg"),
        ("train.csv.zip, row 3", "the picture is cut off"),
        ("train.csv.zip, row 4", "the picture is cut off"),
    ]


def test_a_folder_of_something_else_is_left_alone(hub: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(10)
    get(tmp_path / "d", rows=2)
    with pytest.raises(
        LorgnetteError, match=r"the folder holds modelscope:modelscope/coco_2014_caption, collected with"
    ):
        get(tmp_path / "d", SOURCE + ":validation")
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    with pytest.raises(LorgnetteError, match="that are not from here"):
        get(tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("*")) == [tmp_path / "mine" / "pictures"]


def test_bad_orders_are_refused_before_anybody_is_asked(hub: Any, tmp_path: Path) -> None:
    for source in ("modelscope:", "elsewhere:a/b", "hf:a/b::c", "modelscope:../../x", "hf:a b/c"):
        with pytest.raises(LorgnetteError):
            get(tmp_path / "d", source)
    with pytest.raises(LorgnetteError, match="exclude each other"):
        get(tmp_path / "d", rows=1, sample=1)
    with pytest.raises(LorgnetteError, match="no such folder, zip file or address"):
        get(tmp_path / "d", images_from=str(tmp_path / "nowhere"))
    assert not hub.log


CHILD = """
import sys
from pathlib import Path
from lorgnette.hub.collect import collect
collect(sys.argv[1], Path(sys.argv[2]), workers=2, **eval(sys.argv[3]))
"""


def start(source: str, out: Path, **more: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-W", "error", "-c", CHILD, source, str(out), repr(more)])


def killed(process: "subprocess.Popen[bytes]", when: Callable[[], bool]) -> None:
    for _ in range(3000):
        if when():
            break
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("moment", [1, 2, 4, 15, 35])
def test_after_a_kill_it_goes_on(moment: int, hub: Any, trick: Any, tutorial: Any, tmp_path: Path) -> None:
    """Killed while listing, while the table comes, at the first pictures, in the middle, near the end."""
    tutorial(80)
    get(tmp_path / "whole")
    log = len(hub.log)
    for path in [*hub.static, "/api/v1/datasets/" + NAME + "/repo/tree"]:
        hub.trick(path, trick(pause=0.03))
    child = start(SOURCE, tmp_path / "d")
    killed(child, lambda: len(hub.log) >= log + moment)
    hub.tricks.clear()
    pictures = tmp_path / "d" / "pictures"
    there = {path.name for path in pictures.glob("*.jpg")} if pictures.is_dir() else set()
    time.sleep(0.1)
    log = len(hub.log)
    done = get(tmp_path / "d")
    assert done.files == 40 - len(there)
    assert not any(name in each.path for each in hub.log[log:] for name in there)
    assert files(tmp_path / "d") == files(tmp_path / "whole")
    assert not list(tmp_path.glob("d/pictures/.*"))


def test_ctrl_c_ends_it_quickly_and_keeps_what_is_there(hub: Any, trick: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(80)
    for path in hub.static:
        hub.trick(path, trick(pause=0.05))
    child = start(SOURCE, tmp_path / "d")
    for _ in range(3000):
        if len(hub.asked("COCO_")) > 10:
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert child.wait(10) != 0
    assert time.monotonic() - began < 5
    assert get(tmp_path / "d").files <= 40 - 8


def test_two_at_once_in_one_folder_are_refused(hub: Any, trick: Any, tutorial: Any, tmp_path: Path) -> None:
    tutorial(10)
    hub.trick("/coco/2014/train.csv.zip", trick(pause=2))
    child = start(SOURCE, tmp_path / "d")
    for _ in range(3000):
        if hub.asked("train.csv.zip"):
            break
        time.sleep(0.01)
    with pytest.raises(LorgnetteError, match="another lorgnette is downloading into this folder"):
        get(tmp_path / "d")
    assert child.wait(20) == 0
