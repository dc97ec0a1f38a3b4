"""Every row of the data is trained on, held out or reported as a problem: none is lost."""

import csv
import gc
import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette import config, data
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import write_json
from lorgnette.processing.tokenizer import IMAGE_TOKEN
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import build_manifest
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
    """The images of GOOD and BROKEN."""
    folder = tmp_path_factory.mktemp("mixed")
    PIL.Image.new("RGB", (40, 40), "red").save(folder / "good.png")
    PIL.Image.new("RGB", (40, 50), "blue").save(folder / "b.png")
    PIL.Image.radial_gradient("L").save(folder / "cut.jpg")
    content = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(content[: len(content) // 2])
    (folder / "zero.png").touch()
    (folder / "page.jpg").write_text("<html>")
    return folder


def test_an_unknown_metric_for_the_best_model_is_refused(make_settings: Chosen, terminal: Terminal) -> None:
    with pytest.raises(
        UsageError, match=r"no such metric · train\.metric_for_best_model=METEOR · loss, or one of BLEU-1, "
    ):
        TrainingData.load(make_settings("train.metric_for_best_model=METEOR"), terminal)
    assert TrainingData.load(make_settings("train.metric_for_best_model=BLEU-4"), terminal).examples


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(st.sampled_from([*GOOD, *BROKEN]), max_size=12), holdout=st.integers(0, 3))
def test_no_row_disappears(kinds: list[str], holdout: int, mixed: Path, tiny: Path) -> None:
    """Parity 9: usable + problems == rows, whatever is broken, and every problem names its row and has a hint."""
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
    run_settings = config.load_settings(None, [*words, f"data.holdout={holdout}", "data.on_bad_row=skip"])
    terminal = Terminal()
    good = [line for line, kind in zip(lines, kinds, strict=True) if kind in GOOD]
    bad = [line for line, kind in zip(lines, kinds, strict=True) if kind in BROKEN]
    readable = sum(kind in GOOD or kind == "long" for kind in kinds)
    if holdout >= readable:
        with pytest.raises(LorgnetteError):
            TrainingData.load(run_settings, terminal)
        return
    if not good or max(good) > lines[-1] or not set(good) - set(_held_out(kinds, lines, holdout)):
        with pytest.raises(LorgnetteError, match="no example left"):
            TrainingData.load(run_settings, terminal)
        return
    training_data = TrainingData.load(run_settings, terminal)
    loaded_rows = [e.example.row for e in [*training_data.examples, *training_data.held_out]]
    assert loaded_rows == good
    assert sorted(problem.row for problem in training_data.problems) == bad
    assert all(problem.hint and problem.message for problem in training_data.problems)
    if bad:
        with pytest.raises(LorgnetteError, match=f"{len(bad)} of|of {len(rows)} rows|cannot be used"):
            TrainingData.load(config.load_settings(None, [*words, f"data.holdout={holdout}"]), terminal)


def _held_out(kinds: list[str], lines: list[int], holdout: int) -> list[int]:
    """Lines of the rows held out: the last readable ones (their length is checked later)."""
    readable = [line for line, kind in zip(lines, kinds, strict=True) if kind in GOOD or kind == "long"]
    return readable[len(readable) - holdout :]


def test_labels_are_the_answer_and_its_eos_token_whatever_the_text(make_settings: Chosen, captions, terminal) -> None:
    texts = ["an <|im_end|> inside", "<|image_pad|><|vision_start|>", "two\nlines", " blanks "]
    with captions.open("w", newline="") as file:
        csv.writer(file).writerows([("image_path", "caption"), *(("red.png", text) for text in texts)])
    training_data = TrainingData.load(make_settings("data.holdout=0", "data.trim=false"), terminal)
    tokenizer = training_data.processor.tokenizer
    for encoded, text in zip(training_data.examples, texts, strict=True):
        trained = encoded.labels[encoded.labels != IGNORE_INDEX].tolist()
        assert tokenizer.decode(trained) == text
        assert tokenizer.decode_with_control_tokens(trained[-1:]) == "<|im_end|>"
        assert not set(trained[:-1]) & set(tokenizer.control_tokens.values())
        assert (encoded.input_ids == tokenizer.control_tokens[IMAGE_TOKEN]).sum() == sum(
            grid.num_tokens for grid in encoded.grids
        )


def test_image_headers_are_read_once(
    make_settings: Chosen, captions: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "read_image_size", lambda path: pytest.fail(f"{path} was read again"))
    training_data = TrainingData.load(make_settings(f"data.test={captions}", "image_size=null"), terminal)
    monkeypatch.undo()
    for grid in training_data.grids:
        other = grid.image.path.with_name(f"other-{grid.image.path.name}")
        PIL.Image.open(grid.image.path).resize((90, 200)).save(other)
        for path in (grid.image.path, other):
            [shown] = training_data.processor.encode(Example("x", (Turn("user", (Image(path),)),), path, 1)).grids
            assert (shown.h, shown.w) == tuple(
                edge // 14 for edge in training_data.processor.image_processor.compute_size(*data.read_image_size(path))
            )


def test_garbage_collection_resumes_however_the_reading_ends(make_settings: Chosen, captions: Path, terminal) -> None:
    TrainingData.load(make_settings(), terminal)
    assert gc.isenabled()
    captions.write_text("image_path,caption\ngone.png,a cat\n")
    with pytest.raises(LorgnetteError, match="cannot be used"):
        TrainingData.load(make_settings(), terminal)
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(LorgnetteError, match="cannot be used"):
            TrainingData.load(make_settings(), terminal)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_training_needs_data(make_settings: Chosen, terminal: Terminal) -> None:
    with pytest.raises(UsageError, match=r"no data · data\.path · name a file"):
        TrainingData.load(make_settings("data.path=null"), terminal)


def test_a_file_without_rows_is_an_error(make_settings: Chosen, tmp_path: Path, terminal: Terminal) -> None:
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    with pytest.raises(LorgnetteError, match=r"no rows · .*none\.csv"):
        TrainingData.load(make_settings(f"data.test={tmp_path / 'none.csv'}"), terminal)


def test_a_test_file_is_held_out(make_settings: Chosen, captions: Path, terminal: Terminal) -> None:
    training_data = TrainingData.load(make_settings(f"data.test={captions}"), terminal)
    assert (len(training_data.examples), len(training_data.held_out)) == (6, 6)
    assert training_data.files == (captions,)
    assert len(training_data.grids) == 6


def build_errors(training_data: TrainingData, *numbers: int) -> dict[ImageGrid, LorgnetteError]:
    return {training_data.grids[i]: LorgnetteError("image cannot be decoded") for i in numbers}


def test_rows_of_images_that_cannot_be_decoded_are_dropped(
    make_settings: Chosen, terminal: Terminal, terminal_output: io.StringIO
) -> None:
    training_data = TrainingData.load(make_settings(), terminal)
    assert training_data.drop_images({}, "error", terminal) is training_data
    with pytest.raises(LorgnetteError, match=r"1 of 6 rows cannot be used(.|\n)*row 3: image cannot be decoded"):
        training_data.drop_images(build_errors(training_data, 1), "error", terminal)
    left = training_data.drop_images(build_errors(training_data, 1, 5), "skip", terminal)
    assert [e.example.row for e in left.examples] == [2, 4, 5]
    assert [e.example.row for e in left.held_out] == [6]
    assert [(problem.row, problem.hint) for problem in left.problems] == [
        (3, "fix or remove the row"),
        (7, "fix or remove the row"),
    ]
    assert "green.png" in left.problems[0].message
    assert terminal_output.getvalue().count("skipped: ") == 1
    assert "rows 3, 7" in terminal_output.getvalue()
    with pytest.raises(LorgnetteError, match="no example left"):
        training_data.drop_images(build_errors(training_data, 0, 1, 2, 3), "skip", terminal)


def test_image_digests_are_those_of_the_files(make_settings: Chosen, terminal) -> None:
    """Of the images of these rows: those of other rows have others."""
    training_data = TrainingData.load(make_settings(), terminal)
    assert training_data.map_image_digests() == {}
    hashes = training_data.hash_images()
    digests = training_data.map_image_digests()
    paths = {grid.image.path for grid in training_data.grids}
    assert digests == {path: hashlib.sha256(path.read_bytes()).digest() for path in paths}
    assert hashes == {str(path): digest.hex()[:16] for path, digest in digests.items()}
    left = training_data.drop_images(build_errors(training_data, 1), "skip", terminal)
    assert left.map_image_digests() == {}
    assert training_data.map_image_digests() == digests


def test_a_row_in_both_parts_is_dropped_from_both(make_settings: Chosen, captions: Path, terminal) -> None:
    training_data = TrainingData.load(make_settings(f"data.test={captions}"), terminal)
    left = training_data.drop_images(build_errors(training_data, 0), "skip", terminal)
    assert (len(left.examples), len(left.held_out), len(left.problems)) == (5, 5, 2)


def write_manifest(training_data: TrainingData, path: Path) -> Path:
    hashes, image_hashes = training_data.hash_inputs(), training_data.hash_images()
    write_json(path, build_manifest(seed=0, command=[], hashes=hashes, image_hashes=image_hashes))
    return path


def test_changed_data_is_refused(make_settings: Chosen, captions: Path, tmp_path: Path, terminal) -> None:
    training_data = TrainingData.load(make_settings(), terminal)
    manifest = write_manifest(training_data, tmp_path / "manifest.json")
    training_data.check_unchanged(manifest)
    captions.write_text(captions.read_text() + "red.png,more\n")
    with pytest.raises(LorgnetteError, match=r"changed since the run was started · \S*captions\.csv · restore them"):
        training_data.check_unchanged(manifest)
    for content in ("{", "[]", "{}", '{"sha256": {}}', '{"sha256": {}, "images": []}'):
        manifest.write_text(content)
        with pytest.raises(LorgnetteError, match="manifest cannot be read"):
            training_data.check_unchanged(manifest)


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def test_changed_images_are_refused_by_name(make_settings: Chosen, tmp_path: Path, terminal) -> None:
    """Of the examples, and those held out; a new time alone is no change, nor is another folder."""
    manifest = write_manifest(TrainingData.load(make_settings(), terminal), tmp_path / "manifest.json")
    for color in ("red", "blue", "white"):
        path = tmp_path / f"{color}.png"
        os.utime(path, (1, 1))
        TrainingData.load(make_settings(), terminal).check_unchanged(manifest)
        content, times = path.read_bytes(), path.stat().st_mtime_ns
        path.write_bytes(content[:-8] + content[-8:][::-1])
        os.utime(path, ns=(times, times))
        with pytest.raises(LorgnetteError, match=rf"changed since the run was started · \S*/{color}\.png · restore"):
            TrainingData.load(make_settings(), terminal).check_unchanged(manifest)
        path.write_bytes(content)
    swap(tmp_path / "red.png", tmp_path / "blue.png")
    with pytest.raises(LorgnetteError, match=r" · \S*/red\.png, \S*/blue\.png · "):
        TrainingData.load(make_settings(), terminal).check_unchanged(manifest)
    swap(tmp_path / "red.png", tmp_path / "blue.png")
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in [*tmp_path.glob("*.png"), tmp_path / "captions.csv"]:
        shutil.copy(path, moved)
    TrainingData.load(make_settings(f"data={moved / 'captions.csv'}"), terminal).check_unchanged(manifest)


def test_a_file_is_named_once_whatever_its_path_was(
    make_settings: Chosen, captions: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run records the path as it was written, and resumes with the whole path."""
    monkeypatch.chdir(tmp_path)
    test_file = tmp_path / "test.csv"
    test_file.write_text(captions.read_text())
    manifest = write_manifest(
        TrainingData.load(make_settings("data=captions.csv", "data.test=test.csv"), terminal),
        tmp_path / "manifest.json",
    )
    TrainingData.load(make_settings(f"data.test={test_file}"), terminal).check_unchanged(manifest)
    test_file.write_text(captions.read_text().replace("it is red", "red"))
    with pytest.raises(LorgnetteError, match=rf"changed since the run was started · {test_file} · restore"):
        TrainingData.load(make_settings(f"data.test={test_file}"), terminal).check_unchanged(manifest)


@pytest.mark.parametrize("word", ["data.prompt=What?", "data.holdout=1", "image_size=56", "eos_token=<|endoftext|>"])
def test_other_inputs_that_change_the_examples_are_refused(
    make_settings: Chosen, tmp_path: Path, terminal: Terminal, word: str
) -> None:
    """Among them are the tokenizer and the chat template, whose files are in no manifest."""
    manifest = write_manifest(TrainingData.load(make_settings(), terminal), tmp_path / "manifest.json")
    with pytest.raises(LorgnetteError, match=r"changed since the run was started · the examples"):
        TrainingData.load(make_settings(word), terminal).check_unchanged(manifest)


def test_a_folder_of_data_has_a_manifest(
    make_settings: Chosen, captions: Path, terminal: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "set" / path.name)
        (tmp_path / "set" / path.name).with_suffix(".txt").write_text(f"it is {path.stem}")
    training_data = TrainingData.load(make_settings(f"data={tmp_path / 'set'}"), terminal)
    training_data.check_unchanged(write_manifest(training_data, tmp_path / "manifest.json"))


def test_the_most_common_prompt_is_that_of_the_examples(
    make_settings: Callable[..., Settings], terminal: Terminal
) -> None:
    assert TrainingData.load(make_settings("data.prompt=What?"), terminal).most_common_prompt == "What?"


def test_native_images_keep_their_size_in_the_held_out_prompts(make_settings: Chosen, terminal: Terminal) -> None:
    settings = make_settings()
    training_data = TrainingData.load(settings, terminal)
    assert training_data.build_eval_processor(settings.processor, "train") is training_data.processor
    native = training_data.build_eval_processor(settings.processor, "native")
    [grid] = native.encode(training_data.held_out[0].example).grids
    assert (grid.h, grid.w) == (4, 6)  # 60×40 pixels become 84×56; image_size=28 makes every image 2×2 patches
    assert training_data.held_out[0].grids[0].h == training_data.held_out[0].grids[0].w == 2


def test_auto_metrics_follow_all_rows_and_are_said(
    make_settings: Chosen, captions: Path, terminal: Terminal, terminal_output: io.StringIO
) -> None:
    """The two held-out rows alone would not show that the answers are labels."""
    images = sorted(path.name for path in captions.parent.glob("*.png"))
    for texts, group in ((["warm", "cold"] * 3, "label"), ([f'{{"n": {i}}}' for i in range(6)], "json")):
        with captions.open("w", newline="") as file:
            csv.writer(file).writerows([("image_path", "caption"), *zip(images, texts, strict=True)])
        settings = make_settings()
        chosen = TrainingData.load(settings, terminal).choose_metrics(settings, terminal)
        assert chosen.predict.metrics == (group,)
        named = make_settings("predict.metrics=caption")
        assert TrainingData.load(named, terminal).choose_metrics(named, terminal) is named
    said = terminal_output.getvalue()
    assert "metrics    accuracy, macro-F1, because the answers are one of 2 labels (cold, warm); predict.metri" in said
    assert said.count("because the answers are") == 2


def test_a_hold_out_of_one_image_is_a_warning(
    make_settings: Chosen, captions: Path, terminal, terminal_output: io.StringIO
) -> None:
    TrainingData.load(make_settings(), terminal)
    assert terminal_output.getvalue() == ""
    rows = [f"{color}.png,{n} {color}\n" for color in ("red", "green", "blue") for n in range(3)]
    captions.write_text("image_path,caption\n" + "".join(rows))
    TrainingData.load(make_settings(), terminal)
    assert "all 3 held-out rows have the same image" in terminal_output.getvalue()


def test_max_rows_does_not_cut_a_test_file(
    make_settings: Callable[..., Settings], captions: Path, terminal: Terminal
) -> None:
    test_file = captions.with_name("test.csv")
    test_file.write_text(captions.read_text())
    training_data = TrainingData.load(make_settings("data.max_rows=2", f"data.test={test_file}"), terminal)
    assert (len(training_data.examples), len(training_data.held_out)) == (2, 6)
