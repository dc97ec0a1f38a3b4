"""The colours are the labels."""

import io
from collections.abc import Sequence
from itertools import chain, pairwise

from PIL import Image
from rich.console import Console

from lorgnette.processing.token_spans import TokenSpan
from lorgnette.report.draw_boxes import Box
from lorgnette.report.preview import (
    TRAINED_STYLES,
    PreviewImage,
    PreviewRow,
    bracket_spans,
    color_spans,
    format_span,
    print_rows,
    render_half_blocks,
)  # fmt: skip

PIECES = [
    TokenSpan("<|im_start|>", 1, False, "control"),
    TokenSpan("<|image_pad|>", 100, False, "image"),
    TokenSpan("q\n", 1, False, "text"),
    TokenSpan("a [red]", 1, True, "text"),
    TokenSpan(" 新", 3, True, "text"),
    TokenSpan("<|im_end|>", 1, True, "control"),
    TokenSpan("\n", 1, False, "text"),
]
PICTURE = PreviewImage("a.jpg", (640, 480), Image.new("RGB", (280, 140), "teal"), 50)


def mask(pieces: Sequence[TokenSpan]) -> list[bool]:
    """Token by token, read off the colours."""
    spans = color_spans(pieces).spans
    assert len(spans) == len(pieces)
    return list(
        chain.from_iterable(
            [span.style in TRAINED_STYLES] * piece.num_tokens for span, piece in zip(spans, pieces, strict=True)
        )
    )


def test_the_colours_are_the_labels() -> None:
    assert mask(PIECES) == [False] * 102 + [True] * 5 + [False]
    flipped = [TokenSpan(piece.text, piece.num_tokens, not piece.is_trained, piece.kind) for piece in PIECES]
    assert mask(flipped) == [True] * 102 + [False] * 5 + [True]


def test_where_a_token_ends_is_seen() -> None:
    styles = [span.style for span in color_spans(PIECES).spans]
    assert all(one != other for one, other in pairwise(styles))


def test_pictures_and_line_ends_are_short() -> None:
    assert [format_span(piece) for piece in PIECES[1:3]] == ["<|image_pad|>×100", "q↵\n"]


def test_without_colours_brackets_say_it() -> None:
    assert bracket_spans(PIECES).plain == "<|im_start|><|image_pad|>×100q↵\n⟦a [red] 新<|im_end|>⟧↵\n"
    assert bracket_spans(PIECES[3:4]).plain == "⟦a [red]⟧"


def test_a_picture_in_half_blocks() -> None:
    halves = Image.new("RGB", (40, 40), "red")
    halves.paste("blue", (0, 20, 40, 40))
    lines = render_half_blocks(halves, 2)
    assert lines.plain == "▀▀"
    assert {(span.style.color.name, span.style.bgcolor.name) for span in lines.spans} == {("#ff0000", "#0000ff")}  # type: ignore[union-attr]
    assert len(render_half_blocks(halves, 30).plain.splitlines()) == 15


def test_rows_on_a_console() -> None:
    rows = [
        PreviewRow("row 2", images=[PICTURE], boxes=[Box((0, 0, 500, 500), "it")], spans=PIECES),
        PreviewRow("row 3", "picture is missing [a]; get it"),
    ]
    for plain in (True, False):
        console = Console(
            file=io.StringIO(), force_terminal=not plain, color_system=None if plain else "truecolor", width=80
        )
        print_rows(rows, console)
        said = console.file.getvalue()  # type: ignore[attr-defined]
        for part in (
            "108 tokens, 5 trained",
            "a.jpg, 640×480 → 280×140 pixels, 50 tokens",
            "box 1: it (0,0),(500,500)",
        ):
            assert part in said
        assert "picture is missing [a]; get it" in said
        assert ("▀" in said) != plain
        assert ("⟦" in said) == plain
