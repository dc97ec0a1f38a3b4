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

from lorgnette.processing.token_spans import Piece
from lorgnette.report.draw_boxes import Box, boxed

TRAINED = ("#ffffff on #0d6f65", "#ffffff on #0a4f48")
"""By turns, so that one sees where a token ends."""
UNTRAINED = ("default", "dim")
_COLUMNS = 56
_LEGEND = "trained tokens are green; on the others no loss is taken"
_PLAIN_LEGEND = "trained tokens stand in ⟦ ⟧; on the others no loss is taken"


@dataclass(frozen=True, slots=True)
class PreviewPicture:
    """seen: as resized for the model, without boxes. name, size: the file's."""

    name: str
    size: tuple[int, int]
    seen: Image.Image
    tokens: int


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """problem: why the row cannot be used; it then has nothing else. boxes: those of the only picture."""

    where: str
    problem: str = ""
    pictures: Sequence[PreviewPicture] = ()
    boxes: Sequence[Box] = ()
    pieces: Sequence[Piece] = ()

    @property
    def counts(self) -> str:
        total, trained = (sum(p.count for p in self.pieces if p.trained or every) for every in (True, False))
        return f"{total} tokens, {trained} trained"


def print_rows(rows: Sequence[PreviewRow], console: Console) -> None:
    """To a console with colours, or to one without: then trained text stands in brackets and pictures are named."""
    plain = console.color_system is None
    for row in rows:
        console.print(Text(f"\n{row.where}" + (f"  {row.counts}" if row.pieces else ""), "bold"), soft_wrap=True)
        if row.problem:
            console.print(Text(row.problem, "red"), soft_wrap=True)
        for picture in row.pictures:
            if not plain:
                console.print(blocks(boxed_picture(picture, row), min(_COLUMNS, console.width)))
            console.print(Text(described(picture), "dim"), soft_wrap=True)
        for number, box in enumerate(row.boxes, start=1):
            console.print(Text(f"box {number}: {box}", "dim"), soft_wrap=True)
        console.print(bracketed(row.pieces) if plain else coloured(row.pieces), soft_wrap=plain)
    console.print(Text(f"\n{_PLAIN_LEGEND if plain else _LEGEND}", "dim"))


def described(picture: PreviewPicture) -> str:
    (width, height), (seen_width, seen_height) = picture.size, picture.seen.size
    return f"{picture.name}, {width}×{height} → {seen_width}×{seen_height} pixels, {picture.tokens} tokens"


def boxed_picture(picture: PreviewPicture, row: PreviewRow) -> Image.Image:
    return boxed(picture.seen, row.boxes)


def shown(piece: Piece) -> str:
    """A picture's tokens as one word with their number; line ends to be seen."""
    if piece.kind == "picture":
        return f"{piece.text}×{piece.count}"
    return piece.text.replace("\n", "↵\n")


def coloured(pieces: Sequence[Piece]) -> Text:
    text = Text()
    for number, piece in enumerate(pieces):
        text.append(shown(piece), (TRAINED if piece.trained else UNTRAINED)[number % 2])
    return text


def bracketed(pieces: Sequence[Piece]) -> Text:
    text, inside = "", False
    for piece in pieces:
        if piece.trained != inside:
            text += "⟦" if piece.trained else "⟧"
            inside = piece.trained
        text += shown(piece)
    return Text(text + "⟧" * inside)


def blocks(picture: Image.Image, columns: int) -> Text:
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
