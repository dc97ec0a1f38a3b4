"""`preview` shows rows as the processor encodes them, and downloads no weights."""

import io
import json
from itertools import chain
from pathlib import Path

import pytest
from rich.console import Console

from lorgnette import config, data
from lorgnette.commands.check import check
from lorgnette.commands.preview import preview
from lorgnette.config import ProcessorSettings, Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.report.preview import PreviewBox
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.training.data_module import TrainingData
from lorgnette.types import IGNORE_INDEX, Example, PixelBox


def load(path: Path, *overrides: str) -> Settings:
    return config.load_settings(None, [f"data={path}", "model=demo", "image_size=[56,84]", *overrides])


@pytest.fixture
def output() -> Console:
    return Console(file=io.StringIO())


def test_every_token_is_shown_with_its_label(captions: Path, terminal_output: io.StringIO) -> None:
    printed = io.StringIO()
    rows = preview(load(captions), rows=3, output=Console(file=printed), console=Console(file=terminal_output))
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))
    examples = [row for row in data.read(captions) if isinstance(row, Example)][:3]
    for row, example in zip(rows, examples, strict=True):
        is_trained = list(chain.from_iterable([span.is_trained] * span.num_tokens for span in row.spans))
        assert is_trained == (processor.encode(example).labels != IGNORE_INDEX).tolist()
        [image] = row.images
        assert (image.size, image.resized.size, image.num_tokens) == ((60, 40), (84, 56), 6)
    assert "⟦it is red<|im_end|>⟧" in printed.getvalue()
    assert terminal_output.getvalue() == ""


def test_image_has_the_pixels_that_the_model_gets(captions: Path, output: Console) -> None:
    [row] = preview(load(captions), rows=1, output=output)
    assert row.images[0].resized.getcolors() == [(84 * 56, (255, 0, 0))]


def test_unusable_row_is_shown_with_the_reason(captions: Path, tmp_path: Path, output: Console) -> None:
    captions.write_text("image_path,caption\ngone.png,x\nred.png,\nred.png,red\n")
    rows = preview(load(captions), out=tmp_path / "page.html", console=output)
    assert [bool(row.problem) for row in rows] == [True, True, False]
    assert "empty" in rows[1].problem
    html = (tmp_path / "page.html").read_text()
    assert rows[0].problem.partition(" · ")[0] in html
    assert str(captions.parent) not in html.partition('<h2 id="next">')[0]
    assert "56×84 pixels" in html
    assert html.count('<li><p class="purpose">') == 3


def test_an_answer_that_is_not_learned_stands_outside_the_brackets(captions: Path) -> None:
    """bugs/loss-false"""
    turns = [("user", "<image>which colour?"), ("assistant", "MASKED guess"), ("user", "again"), ("assistant", "red")]
    messages = [{"role": role, "content": text, "loss": text != "MASKED guess"} for role, text in turns]
    for message in messages[::2]:
        del message["loss"]
    path = captions.with_name("marked.jsonl")
    path.write_text(json.dumps({"messages": messages, "images": ["red.png"]}))
    printed = io.StringIO()
    preview(load(path), output=Console(file=printed))
    assert "\nMASKED guess<|im_end|>" in printed.getvalue()
    assert "⟦red<|im_end|>⟧" in printed.getvalue()


@pytest.mark.parametrize("trim", [True, False])
def test_blanks_around_a_caption_are_learned_only_if_the_settings_say_so(captions: Path, trim: bool) -> None:
    captions.write_text("image_path,caption\nred.png,red \n")
    settings, printed, output = load(captions, f"data.trim={trim}", "data.holdout=0"), io.StringIO(), io.StringIO()
    preview(settings, output=Console(file=printed))
    assert ("⟦red<|im_end|>⟧" in printed.getvalue()) == trim
    report = check(captions, settings=settings, console=Console(file=output))
    assert report.data_report.answer_lengths
    assert report.data_report.answer_lengths.longest == (3 if trim else 4)
    [encoded] = TrainingData.load(settings, Terminal(Console(file=output))).examples
    assert encoded.example.reference == ("red" if trim else "red ")


def test_boxes_are_drawn_if_there_is_one_image(captions: Path, output: Console) -> None:
    answer = "<|box_start|>(0,0),(500,500)<|box_end|>"
    rows = [
        {"messages": [{"role": "user", "content": "<image>" * count}, {"role": "assistant", "content": answer}],
         "images": ["red.png"] * count}
        for count in (1, 2)
    ]  # fmt: skip
    path = captions.with_name("boxes.json")
    path.write_text(json.dumps(rows))
    one_image, two_images = preview(load(path), output=output)
    assert list(one_image.boxes) == [PreviewBox(PixelBox((0.0, 0.0, 30.0, 20.0)), answer)]
    assert list(two_images.boxes) == []


def test_html_does_not_overwrite_the_data(captions: Path) -> None:
    before = captions.read_bytes()
    with pytest.raises(UsageError, match="overwrite"):
        preview(load(captions), out=captions)
    assert captions.read_bytes() == before


def test_a_model_on_a_hub_is_fetched_without_its_weights(
    captions: Path, output: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, bool]] = []

    def fetch(name: str, *, needs_weights: bool, **rest: object) -> Path:
        fetched.append((name, needs_weights))
        return BUILT_IN_MODEL

    monkeypatch.setattr("lorgnette.hub.models.fetch_model", fetch)
    assert preview(load(captions, "model=somebody/has-this"), rows=1, output=output)
    assert fetched == [("somebody/has-this", False)]


def test_missing_data_or_model(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data"):
        preview(config.load_settings(None, ["model=demo"]))
    with pytest.raises(LorgnetteError, match="nowhere"):
        preview(load(captions, "model=nowhere"))
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    with pytest.raises(LorgnetteError, match="the data has no rows"):
        preview(load(tmp_path / "none.csv"))
