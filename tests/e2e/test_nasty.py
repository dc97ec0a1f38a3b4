"""Parity 9: no example disappears without a line in the report, over 45 real images that break loaders."""

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.report import run_log

BROKEN = {
    "truncated_jpeg.jpg": "truncated",
    "truncated_image.png": "truncated",
    "broken.png": "damaged",
    "png_decompression_dos.png": "oversized text chunk",
    "zero_width.gif": "damaged",
    "badwidth.bmp": "too large",
    **({} if importlib.util.find_spec("pillow_heif") else {"rgb8_128.heif": "HEIC", "zPug_3.heic": "HEIC"}),
    "empty.heic": "zero bytes",
}
"""Name → a part of its message; all others can be loaded."""


@pytest.fixture
def nasty(shared: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """The images' names; nasty.csv has one row each."""
    folder = shared("nasty")
    with (folder / "list.csv").open(encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert len(names) == 45
    files = {path.name: path for path in folder.rglob("*") if path.is_file()}
    for name in names:
        shutil.copy(files[name], tmp_path / name)
    with (tmp_path / "nasty.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "caption"), *((name, f"this is {name}") for name in names)])
    return names


def test_check_names_every_image_that_cannot_be_loaded(nasty: list[str], cli) -> None:
    result = cli("check", "nasty.csv", "--json")
    assert result.status == 1
    report = json.loads(result.out)
    messages = {nasty[problem["row"] - 2]: problem["message"] for problem in report["problems"]}
    assert messages.keys() == BROKEN.keys()
    for name, part in BROKEN.items():
        assert part in messages[name]
        assert name in messages[name]
        assert name in result.err
    assert (report["rows"], report["usable"]) == (45, 45 - len(BROKEN))


@pytest.mark.parametrize("size", ["28", "null"])
def test_training_takes_what_check_takes_and_names_the_rest(size: str, nasty: list[str], tmp_path, cli, quick) -> None:
    """With size=null the grids come from the headers alone: the pixels must agree with them."""
    cli(*quick(data="nasty.csv")).assert_refused(1, f"{len(BROKEN)} of 45 rows", "data.on_bad_row=skip")
    assert not (tmp_path / "run").exists()
    sized = (f"image_size={size}", "image_tokens=1,16")
    result = cli(*quick("data.on_bad_row=skip", "data.split=tail", *sized, data="nasty.csv"))
    assert result.status == 0, result.err
    run = tmp_path / "run"
    skipped = [record["row"] for record in run_log.read_log(run / "log.jsonl") if record["kind"] == "skipped"]
    assert sorted(nasty[row - 2] for row in skipped) == sorted(BROKEN)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"{43 - len(BROKEN)} trained on, 2 held out" in page
    for name in BROKEN:
        assert name in page
        assert name in result.err
    held_out = [json.loads(line)["images"][0] for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [Path(image).name for image in held_out] == [name for name in nasty if name not in BROKEN][-2:]


def test_predict_answers_all_that_can_be_loaded(nasty: list[str], tmp_path: Path, tiny: Path, cli) -> None:
    cli("predict", ".", "--model", tiny).assert_refused(1, f"{len(BROKEN)} of 45 rows", "zero bytes")
    for name in BROKEN:
        (tmp_path / name).unlink()
    result = cli("predict", ".", "--model", tiny, "--max-new-tokens", 1, "--out", "answers.jsonl")
    assert result.status == 0, result.err
    answered = [json.loads(line)["id"] for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sorted(answered) == sorted(name for name in nasty if name not in BROKEN)
