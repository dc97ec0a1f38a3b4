"""The colours are the labels."""

import io
from collections.abc import Sequence
from itertools import chain, pairwise

from PIL import Image
from rich.console import Console

from lorgnette.processing.token_spans import Piece
from lorgnette.report.draw_boxes import Box
from lorgnette.report.preview import (
    TRAINED,
    PreviewPicture,
    PreviewRow,
    blocks,
    bracketed,
    coloured,
    print_rows,
    shown,
)  # fmt: skip

PIECES = [
    Piece("<|im_start|>", 1, False, "control"),
    Piece("<|image_pad|>", 100, False, "picture"),
    Piece("q\n", 1, False, "text"),
    Piece("a [red]", 1, True, "text"),
    Piece(" 新", 3, True, "text"),
    Piece("<|im_end|>", 1, True, "control"),
    Piece("\n", 1, False, "text"),
]
PICTURE = PreviewPicture("a.jpg", (640, 480), Image.new("RGB", (280, 140), "teal"), 50)


def mask(pieces: Sequence[Piece]) -> list[bool]:
    """Token by token, read off the colours."""
    spans = coloured(pieces).spans
    assert len(spans) == len(pieces)
    return list(
        chain.from_iterable([span.style in TRAINED] * piece.count for span, piece in zip(spans, pieces, strict=True))
    )


def test_the_colours_are_the_labels() -> None:
    assert mask(PIECES) == [False] * 102 + [True] * 5 + [False]
    flipped = [Piece(piece.text, piece.count, not piece.trained, piece.kind) for piece in PIECES]
    assert mask(flipped) == [True] * 102 + [False] * 5 + [True]


def test_where_a_token_ends_is_seen() -> None:
    styles = [span.style for span in coloured(PIECES).spans]
    assert all(one != other for one, other in pairwise(styles))


def test_pictures_and_line_ends_are_short() -> None:
    assert [shown(piece) for piece in PIECES[1:3]] == ["<|image_pad|>×100", "q↵\n"]


def test_without_colours_brackets_say_it() -> None:
    assert bracketed(PIECES).plain == "<|im_start|><|image_pad|>×100q↵\n⟦a [red] 新<|im_end|>⟧↵\n"
    assert bracketed(PIECES[3:4]).plain == "⟦a [red]⟧"


def test_a_picture_in_half_blocks() -> None:
    halves = Image.new("RGB", (40, 40), "red")
    halves.paste("blue", (0, 20, 40, 40))
    lines = blocks(halves, 2)
    assert lines.plain == "▀▀"
    assert {(span.style.color.name, span.style.bgcolor.name) for span in lines.spans} == {("#ff0000", "#0000ff")}  # type: ignore[union-attr]
    assert len(blocks(halves, 30).plain.splitlines()) == 15


def test_rows_on_a_console() -> None:
    rows = [
        PreviewRow("row 2", pictures=[PICTURE], boxes=[Box((0, 0, 500, 500), "it")], pieces=PIECES),
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
