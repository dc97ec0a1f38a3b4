"""Every row of the data is trained on, held out, or named: none is lost."""

import csv
import gc
import io
import json
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette import config, data
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.processing.tokenizer import IMAGE_TOKEN
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import compute_sha256
from lorgnette.training.data_module import TrainingData
from lorgnette.types import IGNORE_INDEX, Example, Image, ImageGrid, Turn

Chosen = Callable[..., Settings]
GOOD = {"plain": ("good.png", "a cat"), "control": ("good.png", "<|im_end|> <|image_pad|>"), "lines": ("b.png", "a\nb")}
BROKEN = {
    "missing": ("missing.png", "a cat"),
    "zero": ("zero.png", "a cat"),
    "cut": ("cut.jpg", "a cat"),
    "page": ("page.jpg", "a cat"),
    "silent": ("good.png", "  "),
    "nameless": ("", "a cat"),
    "long": ("good.png", "very " * 90 + "long"),
    "cells": ("good.png", "a cat", "on", "a mat"),
}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of GOOD and BROKEN."""
    folder = tmp_path_factory.mktemp("mixed")
    PIL.Image.new("RGB", (40, 40), "red").save(folder / "good.png")
    PIL.Image.new("RGB", (40, 50), "blue").save(folder / "b.png")
    PIL.Image.radial_gradient("L").save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "zero.png").touch()
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_a_metric_that_there_is_not_chooses_no_step(chosen: Chosen, terminal: Terminal) -> None:
    with pytest.raises(UsageError, match=r"no such metric · train\.best=METEOR · loss, or one of BLEU-1, "):
        TrainingData.load(chosen("train.metric_for_best_model=METEOR"), terminal)
    assert TrainingData.load(chosen("train.metric_for_best_model=BLEU-4"), terminal).examples


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from([*GOOD, *BROKEN]), max_size=12), holdout=st.integers(0, 3))
def test_no_row_disappears(kinds: list[str], holdout: int, mixed: Path, tiny: Path) -> None:
    """Parity 9: usable + problems == rows, whatever is broken, and every problem says its row and a remedy."""
    rows = [{**GOOD, **BROKEN}[kind] for kind in kinds]
    with (mixed / "mixed.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "caption"), *rows])
    lines, line = [], 2
    for row in rows:
        lines.append(line)
        line += 1 + "".join(row).count("\n")
    words = [
        f"model={tiny}",
        f"data={mixed / 'mixed.csv'}",
        "image_size=28",
        "max_length=80",
        "data.split=tail",
    ]
    chosen = config.load_settings(None, [*words, f"data.holdout={holdout}", "data.on_bad_row=skip"])
    terminal = Terminal()
    good = [line for line, kind in zip(lines, kinds, strict=True) if kind in GOOD]
    bad = [line for line, kind in zip(lines, kinds, strict=True) if kind in BROKEN]
    readable = sum(kind in GOOD or kind == "long" for kind in kinds)
    if holdout >= readable:
        with pytest.raises(LorgnetteError):
            TrainingData.load(chosen, terminal)
        return
    if not good or max(good) > lines[-1] or not set(good) - set(_held_out(kinds, lines, holdout)):
        with pytest.raises(LorgnetteError, match="no example is left"):
            TrainingData.load(chosen, terminal)
        return
    material = TrainingData.load(chosen, terminal)
    taken = [e.example.row for e in [*material.examples, *material.held_out]]
    assert taken == good
    assert sorted(problem.row for problem in material.problems) == bad
    assert all(problem.hint and problem.message for problem in material.problems)
    if bad:
        with pytest.raises(LorgnetteError, match=f"{len(bad)} of|of {len(rows)} rows|cannot be used"):
            TrainingData.load(config.load_settings(None, [*words, f"data.holdout={holdout}"]), terminal)


def _held_out(kinds: list[str], lines: list[int], holdout: int) -> list[int]:
    """Lines of the rows held out: the last of those that can be read (how long one is, is found out later)."""
    readable = [line for line, kind in zip(lines, kinds, strict=True) if kind in GOOD or kind == "long"]
    return readable[len(readable) - holdout :]


def test_what_is_trained_is_the_answer_and_its_end_whatever_it_says(chosen: Chosen, captions, terminal) -> None:
    texts = ["an <|im_end|> inside", "<|image_pad|><|vision_start|>", "two\nlines", " blanks "]
    with captions.open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "caption"), *(("red.png", text) for text in texts)])
    material = TrainingData.load(chosen("data.holdout=0"), terminal)
    tokenizer = material.processor.tokenizer
    for encoded, text in zip(material.examples, texts, strict=True):
        trained = encoded.labels[encoded.labels != IGNORE_INDEX].tolist()
        assert tokenizer.decode(trained) == text
        assert tokenizer.decode_with_control_tokens(trained[-1:]) == "<|im_end|>"
        assert not set(trained[:-1]) & set(tokenizer.control_tokens.values())
        assert (encoded.input_ids == tokenizer.control_tokens[IMAGE_TOKEN]).sum() == sum(
            grid.num_tokens for grid in encoded.grids
        )


def test_pictures_are_looked_at_once_and_others_when_they_are_asked_for(
    chosen: Chosen, captions: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "read_image_size", lambda path: pytest.fail(f"{path} was looked at again"))
    material = TrainingData.load(chosen(f"data.test={captions}", "image_size=null"), terminal)
    monkeypatch.undo()
    for grid in material.grids:
        other = grid.image.path.with_name(f"other-{grid.image.path.name}")
        PIL.Image.open(grid.image.path).resize((90, 200)).save(other)
        for path in (grid.image.path, other):
            [shown] = material.processor.encode(Example("x", (Turn("user", (Image(path),)),), path, 1)).grids
            assert (shown.h, shown.w) == tuple(
                edge // 14 for edge in material.processor.image_processor.compute_size(*data.read_image_size(path))
            )


def test_python_looks_for_waste_again_however_the_reading_ends(chosen: Chosen, captions: Path, terminal) -> None:
    TrainingData.load(chosen(), terminal)
    assert gc.isenabled()
    captions.write_text("image_path,caption\ngone.png,a cat\n")
    with pytest.raises(LorgnetteError, match="cannot be used"):
        TrainingData.load(chosen(), terminal)
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(LorgnetteError, match="cannot be used"):
            TrainingData.load(chosen(), terminal)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_no_data(chosen: Chosen, terminal: Terminal) -> None:
    with pytest.raises(UsageError, match=r"no data · data\.path · name a file"):
        TrainingData.load(chosen("data.path=null"), terminal)


def test_a_file_without_rows_is_named(chosen: Chosen, tmp_path: Path, terminal: Terminal) -> None:
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    with pytest.raises(LorgnetteError, match=r"there are no rows · .*none\.csv"):
        TrainingData.load(chosen(f"data.test={tmp_path / 'none.csv'}"), terminal)


def test_a_test_file_is_held_out_whole(chosen: Chosen, captions: Path, terminal: Terminal) -> None:
    material = TrainingData.load(chosen(f"data.test={captions}"), terminal)
    assert (len(material.examples), len(material.held_out)) == (6, 6)
    assert material.files == (captions,)
    assert len(material.grids) == 6


def failed(material: TrainingData, *numbers: int) -> dict[ImageGrid, LorgnetteError]:
    return {material.grids[i]: LorgnetteError("picture cannot be decoded") for i in numbers}


def test_without_pictures_that_could_not_be_decoded(chosen: Chosen, terminal: Terminal, said: io.StringIO) -> None:
    material = TrainingData.load(chosen(), terminal)
    assert material.drop_images({}, "error", terminal) is material
    with pytest.raises(LorgnetteError, match=r"1 of 6 rows cannot be used(.|\n)*row 3: picture cannot be decoded"):
        material.drop_images(failed(material, 1), "error", terminal)
    left = material.drop_images(failed(material, 1, 5), "skip", terminal)
    assert [e.example.row for e in left.examples] == [2, 4, 5]
    assert [e.example.row for e in left.held_out] == [6]
    assert [(problem.row, problem.hint) for problem in left.problems] == [
        (3, "mend or remove the row"),
        (7, "mend or remove the row"),
    ]
    assert "green.png" in left.problems[0].message
    assert said.getvalue().count("left out: ") == 2
    with pytest.raises(LorgnetteError, match="no example is left"):
        material.drop_images(failed(material, 0, 1, 2, 3), "skip", terminal)


def test_a_row_that_stands_in_both_parts_is_left_out_of_both(chosen: Chosen, captions: Path, terminal) -> None:
    material = TrainingData.load(chosen(f"data.test={captions}"), terminal)
    left = material.drop_images(failed(material, 0), "skip", terminal)
    assert (len(left.examples), len(left.held_out), len(left.problems)) == (5, 5, 2)


def test_changes_since_the_start_are_refused(chosen: Chosen, captions: Path, tmp_path: Path, terminal) -> None:
    material = TrainingData.load(chosen(), terminal)
    manifest = tmp_path / "manifest.json"
    hashes = {str(path): compute_sha256(path) for path in material.files} | {"weights": material.checkpoint.fingerprint}
    manifest.write_text(json.dumps({"sha256": hashes}))
    material.check_unchanged(manifest)
    captions.write_text(captions.read_text() + "red.png,more\n")
    with pytest.raises(LorgnetteError, match=r"changed since the run was started · .*captions\.csv · put them back"):
        material.check_unchanged(manifest)
    for content in ("{", "[]", "{}", '{"sha256": []}'):
        manifest.write_text(content)
        with pytest.raises(LorgnetteError, match="manifest cannot be read"):
            material.check_unchanged(manifest)


def test_the_prompt_is_what_the_examples_ask(chosen: Callable[..., Settings], terminal: Terminal) -> None:
    assert TrainingData.load(chosen("data.prompt=What?"), terminal).most_common_prompt == "What?"


def test_a_hold_out_of_one_picture_is_told_of(chosen: Chosen, captions: Path, terminal, said: io.StringIO) -> None:
    TrainingData.load(chosen(), terminal)
    assert said.getvalue() == ""
    rows = [f"{colour}.png,{n} {colour}\n" for colour in ("red", "green", "blue") for n in range(3)]
    captions.write_text("image_path,caption\n" + "".join(rows))
    TrainingData.load(chosen(), terminal)
    assert "the hold-out is one picture with 3 answers" in said.getvalue()


def test_a_test_file_is_taken_whole(chosen: Callable[..., Settings], captions: Path, terminal: Terminal) -> None:
    other = captions.with_name("test.csv")
    other.write_text(captions.read_text())
    material = TrainingData.load(chosen("data.max_rows=2", f"data.test={other}"), terminal)
    assert (len(material.examples), len(material.held_out)) == (2, 6)
