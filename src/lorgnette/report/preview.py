"""Rows as the model gets them, on a terminal: the picture in half blocks, tokens coloured by whether they are trained.

Knows nothing about how rows are encoded. Its page is `preview_page`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from lorgnette.processing.token_spans import TokenSpan
from lorgnette.report.draw_boxes import Box, draw_boxes

TRAINED_STYLES = ("#ffffff on #0d6f65", "#ffffff on #0a4f48")
"""By turns, so that one sees where a token ends."""
UNTRAINED_STYLES = ("default", "dim")
_MAX_COLUMNS = 56
_LEGEND = "trained tokens are green; on the others no loss is taken"
_PLAIN_LEGEND = "trained tokens stand in ⟦ ⟧; on the others no loss is taken"


@dataclass(frozen=True, slots=True)
class PreviewImage:
    """seen: as resized for the model, without boxes. name, size: the file's."""

    name: str
    size: tuple[int, int]
    resized: Image.Image
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """problem: why the row cannot be used; it then has nothing else. boxes: those of the only picture."""

    where: str
    problem: str = ""
    images: Sequence[PreviewImage] = ()
    boxes: Sequence[Box] = ()
    spans: Sequence[TokenSpan] = ()

    @property
    def token_counts(self) -> str:
        total, trained = (sum(p.num_tokens for p in self.spans if p.is_trained or every) for every in (True, False))
        return f"{total} tokens, {trained} trained"


def print_rows(rows: Sequence[PreviewRow], console: Console) -> None:
    """To a console with colours, or to one without: then trained text stands in brackets and pictures are named."""
    plain = console.color_system is None
    for row in rows:
        console.print(Text(f"\n{row.where}" + (f"  {row.token_counts}" if row.spans else ""), "bold"), soft_wrap=True)
        if row.problem:
            console.print(Text(row.problem, "red"), soft_wrap=True)
        for picture in row.images:
            if not plain:
                console.print(render_half_blocks(draw_row_boxes(picture, row), min(_MAX_COLUMNS, console.width)))
            console.print(Text(describe_image(picture), "dim"), soft_wrap=True)
        for number, box in enumerate(row.boxes, start=1):
            console.print(Text(f"box {number}: {box}", "dim"), soft_wrap=True)
        console.print(bracket_spans(row.spans) if plain else color_spans(row.spans), soft_wrap=plain)
    console.print(Text(f"\n{_PLAIN_LEGEND if plain else _LEGEND}", "dim"))


def describe_image(picture: PreviewImage) -> str:
    (width, height), (seen_width, seen_height) = picture.size, picture.resized.size
    return f"{picture.name}, {width}×{height} → {seen_width}×{seen_height} pixels, {picture.num_tokens} tokens"


def draw_row_boxes(picture: PreviewImage, row: PreviewRow) -> Image.Image:
    return draw_boxes(picture.resized, row.boxes)


def format_span(piece: TokenSpan) -> str:
    """A picture's tokens as one word with their number; line ends to be seen."""
    if piece.kind == "image":
        return f"{piece.text}×{piece.num_tokens}"
    return piece.text.replace("\n", "↵\n")


def color_spans(pieces: Sequence[TokenSpan]) -> Text:
    text = Text()
    for number, piece in enumerate(pieces):
        text.append(format_span(piece), (TRAINED_STYLES if piece.is_trained else UNTRAINED_STYLES)[number % 2])
    return text


def bracket_spans(pieces: Sequence[TokenSpan]) -> Text:
    text, inside = "", False
    for piece in pieces:
        if piece.is_trained != inside:
            text += "⟦" if piece.is_trained else "⟧"
            inside = piece.is_trained
        text += format_span(piece)
    return Text(text + "⟧" * inside)


def render_half_blocks(picture: Image.Image, columns: int) -> Text:
    """Two pixels a character: the upper one's colour on the lower one's."""
    rows = max(2, round(columns * picture.height / picture.width / 2) * 2)
    small = picture.resize((columns, rows), Image.Resampling.BOX)
    text = Text()
    for y in range(0, rows, 2):
        for x in range(columns):
            upper, lower = (Color.from_rgb(*small.getpixel((x, y + line))) for line in (0, 1))  # type: ignore[misc]
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    text.rstrip()
    return text
