"""`preview`: the rows as the encoder makes them, nothing fetched."""

import io
import json
from itertools import chain
from pathlib import Path

import pytest
from rich.console import Console

from lorgnette import config, data
from lorgnette.commands.preview import preview
from lorgnette.config import ProcessorSettings, Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.processing.processor import Processor
from lorgnette.report.draw_boxes import Box
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Example


def settings(path: Path, *words: str) -> Settings:
    return config.load_settings(None, [f"data={path}", "model=demo", "image_size=[56,84]", *words])


def test_every_token_is_shown_with_its_label(captions: Path, said: io.StringIO) -> None:
    paper = io.StringIO()
    rows = preview(settings(captions), rows=3, output=Console(file=paper), console=Console(file=said))
    encoder = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))
    examples = [row for row in data.read(captions) if isinstance(row, Example)][:3]
    for row, example in zip(rows, examples, strict=True):
        mask = list(chain.from_iterable([piece.is_trained] * piece.num_tokens for piece in row.spans))
        assert mask == (encoder.encode(example).labels != IGNORE_INDEX).tolist()
        assert [(picture.size, picture.resized.size, picture.num_tokens) for picture in row.images] == [
            ((60, 40), (84, 56), 6)
        ]
    assert "⟦it is red<|im_end|>⟧" in paper.getvalue()
    assert said.getvalue() == ""


def test_the_picture_is_the_one_the_model_gets(captions: Path) -> None:
    [row] = preview(settings(captions), rows=1, output=Console(file=io.StringIO()))
    assert row.images[0].resized.getcolors() == [(84 * 56, (255, 0, 0))]


def test_a_row_that_cannot_be_used_is_shown_with_the_reason(captions: Path, tmp_path: Path) -> None:
    captions.write_text("image_path,caption\ngone.png,x\nred.png,\nred.png,red\n")
    rows = preview(settings(captions), out=tmp_path / "page.html", console=Console(file=io.StringIO()))
    assert ["picture is missing" in rows[0].problem, "empty" in rows[1].problem, rows[2].problem] == [True, True, ""]
    assert "picture is missing" in (tmp_path / "page.html").read_text()


def test_boxes_are_drawn_where_it_is_clear_on_which_picture(captions: Path) -> None:
    answer = "<|box_start|>(0,0),(500,500)<|box_end|>"
    rows = [
        {"messages": [{"role": "user", "content": "<image>" * count}, {"role": "assistant", "content": answer}],
         "images": ["red.png"] * count}
        for count in (1, 2)
    ]  # fmt: skip
    path = captions.with_name("boxes.json")
    path.write_text(json.dumps(rows))
    one, two = preview(settings(path), output=Console(file=io.StringIO()))
    assert list(one.boxes) == [Box((0, 0, 500, 500))]
    assert list(two.boxes) == []


def test_data_is_not_overwritten(captions: Path) -> None:
    before = captions.read_bytes()
    with pytest.raises(UsageError, match="would overwrite what it is made from"):
        preview(settings(captions), out=captions)
    assert captions.read_bytes() == before


def test_what_is_missing_is_said(captions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data"):
        preview(config.load_settings(None, ["model=demo"]))
    with pytest.raises(LorgnetteError, match="not on this machine"):
        preview(settings(captions, "model=nobody/has-this"))
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    with pytest.raises(LorgnetteError, match="there are no rows"):
        preview(settings(tmp_path / "none.csv"))
