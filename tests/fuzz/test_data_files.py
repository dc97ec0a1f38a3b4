"""Damaged data files of every format: each row is read or named, in bounded time and memory, without a traceback."""

import io
import json
import os
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
from hostile import RUNS_ALL, change_json, damage_bytes, limits, replace_file
from rich.console import Console

import lorgnette
from lorgnette import data, recipes
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem

NUM_CASES = 702 if RUNS_ALL else 26
NUM_ROWS = 3


def write_csv(folder: Path, images: list[str]) -> Path:
    path = folder / "data.csv"
    path.write_text("image_path,caption\n" + "".join(f'{name},"a ""{i}"", é"\n' for i, name in enumerate(images)))
    return path


def write_tsv(folder: Path, images: list[str]) -> Path:
    path = folder / "data.tsv"
    path.write_text("file_name\ttext\n" + "".join(f"{name}\tcaption {i}\n" for i, name in enumerate(images)))
    return path


def build_records(images: list[str]) -> list[dict[str, object]]:
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a cat"}]
    return [{"id": str(i), "image": name, "conversations": turns} for i, name in enumerate(images)]


def build_messages(images: list[str]) -> list[dict[str, object]]:
    turns = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "a cat"}]
    return [{"messages": turns, "images": [name]} for name in images]


def write_json(folder: Path, images: list[str]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(build_records(images)))
    return path


def write_coco(folder: Path, images: list[str]) -> Path:
    path = folder / "captions.json"
    files = [{"id": i, "file_name": name} for i, name in enumerate(images)]
    captions = [{"id": i, "image_id": i, "caption": f"caption {i}"} for i in range(len(images))]
    path.write_text(json.dumps({"images": files, "annotations": captions}))
    return path


def write_instances(folder: Path, images: list[str]) -> Path:
    path = folder / "instances.json"
    files = [{"id": i, "file_name": name} for i, name in enumerate(images)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 9, 9], "iscrowd": 0} for i in range(len(images))]
    path.write_text(json.dumps({"images": files, "annotations": boxes, "categories": [{"id": 1, "name": "a car"}]}))
    return path


def write_objects(folder: Path, images: list[str]) -> Path:
    path = folder / "boxes.jsonl"
    objects = {"ref": ["a cat"], "bbox": [[1, 2, 9, 9]], "bbox_type": "real", "image_id": [0]}
    turns = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "<ref-object><bbox>"}]
    records = [{"messages": turns, "images": [name], "objects": objects} for name in images]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_karpathy(folder: Path, images: list[str]) -> Path:
    path = folder / "dataset_coco.json"
    files = [{"filename": name, "split": "test", "imgid": 1, "sentences": [{"raw": "a"}]} for name in images]
    path.write_text(json.dumps({"images": files}))
    return path


def write_jsonl(folder: Path, images: list[str]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in build_messages(images)))
    return path


def write_tar(folder: Path, images: list[str]) -> Path:
    path = folder / "data.tar"
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(images):
            tar.add(folder / name, f"{i}.png")
            (folder / "text").write_text(json.dumps({"caption": "a cat"}) if i else "a dog")
            tar.add(folder / "text", f"{i}.{'json' if i else 'txt'}")
    return path


def write_zip(folder: Path, images: list[str]) -> Path:
    path = folder / "data.zip"
    write_csv(folder, images)
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data.csv", *images):
            file.write(folder / name, name)
    return path


def write_parquet(folder: Path, images: list[str]) -> Path:
    path = folder / "data.parquet"
    cells = [{"bytes": (folder / name).read_bytes(), "path": name} for name in images]
    table = pyarrow.table({"image": cells, "caption": [f"caption {i}" for i in range(len(images))]})
    pyarrow.parquet.write_table(table, path)
    return path


def write_info(folder: Path, images: list[str]) -> Path:
    write_jsonl(folder, images)
    columns = {"messages": "messages", "images": "images"}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": "data.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    path = folder / "dataset_info.json"
    path.write_text(json.dumps({"data": entry}))
    return path


def write_image(folder: Path, images: list[str]) -> Path:
    write_csv(folder, images)
    return folder / images[0]


WRITERS: list[Callable[[Path, list[str]], Path]] = [
    write_csv, write_tsv, write_json, write_coco, write_karpathy, write_jsonl, write_tar, write_zip, write_parquet,
    write_info, write_image, write_instances, write_objects,
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    names = [f"{i}.png" for i in range(NUM_ROWS)]
    for i, name in enumerate(names):
        PIL.Image.new("RGB", (40 + i, 30), (90 * i, 0, 0)).save(tmp_path / name)
    return names


def damage_data(rng: random.Random, path: Path) -> None:
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.6:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = rng.randrange(len(lines))
        lines[number] = change_json(rng, json.loads(lines[number]))
        path.write_text("\n".join(lines))
    elif rng.random() < 0.15:
        replace_file(rng, path)
    else:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_a_damaged_data_file(seed: int, tmp_path: Path, images: list[str]) -> None:
    rng, write = random.Random(seed), WRITERS[seed % len(WRITERS)]
    path = write(tmp_path, images)
    damage_data(rng, path)
    source = tmp_path / "data.csv" if write is write_image else path
    rows, refusal = [], None
    try:
        with limits():
            rows = list(data.read(source, images_to=tmp_path / "extracted"))
            lorgnette.check(source, settings=recipes.load_settings(model="demo"), console=Console(file=io.StringIO()))
    except LorgnetteError as error:
        refusal = error
    if refusal is not None:
        assert 0 < len(str(refusal)) < 3000
    for row in rows:
        assert isinstance(row, Example | Problem)
        if isinstance(row, Problem):
            assert row.message
            assert row.hint
            assert len(str(row)) < 2000


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_an_undamaged_file_has_all_its_rows(
    write: Callable[[Path, list[str]], Path], tmp_path: Path, images: list[str]
) -> None:
    """A control: the files are read unless they are damaged."""
    path = write(tmp_path, images)
    rows = list(data.read(tmp_path / "data.csv" if write is write_image else path, images_to=tmp_path / "extracted"))
    assert [type(row) for row in rows] == [Example] * NUM_ROWS
    shutil.rmtree(tmp_path / "extracted", ignore_errors=True)


def test_a_pipe_is_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.csv")
    with limits(), pytest.raises(LorgnetteError, match="not a file or a folder"):
        data.read(tmp_path / "data.csv")


def test_the_message_of_a_row_is_short(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "x" * 9000, "content": "a"}]}))
    (row,) = data.read(path)
    assert isinstance(row, Problem)
    assert len(row.message) == 500
    assert row.message.endswith("…")
