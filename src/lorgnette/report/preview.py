"""Rows as the model gets them, on a terminal or as HTML: images, and tokens colored by whether they have loss.

Knows nothing about how rows are encoded.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from lorgnette.io.shell import escape_controls
from lorgnette.processing.token_spans import TokenSpan
from lorgnette.report.draw_boxes import draw_boxes, format_box
from lorgnette.report.html.inline_images import InlineImage, encode_data_uri
from lorgnette.report.html.templates import write_page
from lorgnette.report.manifest import describe_making
from lorgnette.types import PixelBox

TRAINED_STYLES = ("#ffffff on #0d6f65", "#ffffff on #0a4f48")
"""Used alternately, so that the end of a token is visible."""
UNTRAINED_STYLES = ("default", "dim")
_MAX_COLUMNS = 56
_SHOWN_SIDE = 320
"""Pixels of a page: an image is enlarged by a whole number up to them."""
_MAX_SHOWN_SIDE = 480
"""A larger image is shown smaller."""


@dataclass(frozen=True, slots=True)
class PreviewImage:
    """name, size: of the file. resized: as the model gets it, without boxes."""

    name: str
    size: tuple[int, int]
    resized: Image.Image
    num_tokens: int


@dataclass(frozen=True, slots=True)
class PreviewBox:
    """A box as the model gets it. written: its text. box: what that text says, in pixels of the file."""

    box: PixelBox
    written: str

    def describe(self, size: tuple[int, int]) -> str:
        """In pixels of the file, which has this (width, height), and as written."""
        limits = [size[i % 2] for i in range(len(self.box.corners))]
        is_inside = all(0 <= corner <= limit for corner, limit in zip(self.box.corners, limits, strict=True))
        outside = "" if is_inside else f", outside the image ({size[0]}×{size[1]} pixels)"
        return f"{format_box(self.box)} in pixels of the file{outside}; the model gets {self.written}"


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row; with a problem, the other fields are empty."""

    where: str
    problem: str = ""
    images: Sequence[PreviewImage] = ()
    boxes: Sequence[PreviewBox] = ()
    spans: Sequence[TokenSpan] = ()

    @property
    def num_tokens(self) -> int:
        return sum(span.num_tokens for span in self.spans)

    @property
    def num_trained(self) -> int:
        return sum(span.num_tokens for span in self.spans if span.is_trained)

    def draw_image(self, number: int) -> Image.Image:
        """The resized image with its boxes, each with its number in `box_lines`."""
        image = self.images[number]
        boxes = {index: each.box for index, each in enumerate(self.boxes, start=1) if each.box.image == number}
        return draw_boxes(image.resized, list(boxes.values()), image.size, list(boxes))

    @property
    def box_lines(self) -> list[str]:
        """The boxes in words, in order."""
        return [each.describe(self.images[each.box.image].size) for each in self.boxes]

    @property
    def token_counts(self) -> str:
        return f"{self.num_tokens} tokens, {self.num_trained} trained"


def print_rows(rows: Sequence[PreviewRow], console: Console) -> None:
    """Print with colors; on a console without them (NO_COLOR), put trained text in brackets and only name the
    images."""
    is_plain = console.color_system is None or console.no_color
    for row in rows:
        where = escape_controls(f"\n{row.where}")
        console.print(Text(where + (f"  {row.token_counts}" if row.spans else ""), "bold"), soft_wrap=True)
        if row.problem:
            console.print(Text(escape_controls(row.problem), "red"), soft_wrap=True)
        for number, image in enumerate(row.images):
            if not is_plain:
                console.print(render_half_blocks(row.draw_image(number), min(_MAX_COLUMNS, console.width)))
            console.print(Text(escape_controls(describe_image(image)), "dim"), soft_wrap=True)
        for number, line in enumerate(row.box_lines, start=1):
            console.print(Text(escape_controls(f"box {number}: {line}"), "dim"), soft_wrap=True)
        console.print(bracket_spans(row.spans) if is_plain else color_spans(row.spans), soft_wrap=is_plain)
    trained = "tokens in ⟦ ⟧" if is_plain else "green tokens"
    console.print(Text(f"\n{trained} have loss, the others do not", "dim"))


def write_preview_page(
    path: Path,
    title: str,
    rows: Sequence[PreviewRow],
    basis: Sequence[tuple[str, str]] = (),
    next_steps: Sequence[tuple[str, str]] = (),
    folders: Sequence[Path] = (),
) -> None:
    """Write resized images with their boxes, and every token in the color of its label, as HTML.

    basis: (name, value) of what decides how rows become tokens. next_steps: (purpose, command). folders: as in
    `write_page`.
    """
    sections = []
    for row in rows:
        images = []
        for number, image in enumerate(row.images):
            buffer = io.BytesIO()
            row.draw_image(number).save(buffer, "PNG", optimize=True)  # exact pixels
            inline = InlineImage(image.name, encode_data_uri(buffer.getvalue(), "png"))
            images.append((inline, image, compute_scale(image.resized.size)))
        sections.append((row, images, [(span, format_span(span)) for span in row.spans]))
    write_page(
        path,
        "preview_page.html.j2",
        folders=folders,
        title=title,
        summary=summarize_rows(rows),
        rows=sections,
        basis=[*((name.capitalize(), value) for name, value in basis), ("Made", describe_making())],
        next_steps=next_steps,
        max_side=_MAX_SHOWN_SIDE,
        data={},
    )


def summarize_rows(rows: Sequence[PreviewRow]) -> str:
    """How many rows can be used, and how many of their tokens are trained."""
    num_broken = sum(bool(row.problem) for row in rows)
    if num_broken == len(rows):
        return f"None of {len(rows)} rows can be used."
    num_trained, num_tokens = sum(row.num_trained for row in rows), sum(row.num_tokens for row in rows)
    count = f"{len(rows)} {'row' if len(rows) == 1 else 'rows'}"
    broken = f"; {num_broken} of {count} cannot be used" if num_broken else ""
    count = "Rows" if num_broken else count
    return f"{count} as the model gets them: {num_trained} of {num_tokens} tokens are trained{broken}."


def compute_scale(size: tuple[int, int]) -> int:
    """How many times an image of this size is enlarged on a page; 0: it is shown smaller."""
    side = max(size)
    return 0 if side > _MAX_SHOWN_SIDE else max(1, _SHOWN_SIDE // side)


def describe_image(image: PreviewImage) -> str:
    (width, height), (new_width, new_height) = image.size, image.resized.size
    return f"{image.name}, {width}×{height} → {new_width}×{new_height} pixels, {image.num_tokens} tokens"


def format_span(span: TokenSpan) -> str:
    """Shorten an image's tokens to one token and their number; make newlines visible."""
    text = f"{span.text}×{span.num_tokens}" if span.kind == "image" else span.text.replace("\n", "↵\n")
    return escape_controls(text)


def color_spans(spans: Sequence[TokenSpan]) -> Text:
    text = Text()
    for number, span in enumerate(spans):
        text.append(format_span(span), (TRAINED_STYLES if span.is_trained else UNTRAINED_STYLES)[number % 2])
    return text


def bracket_spans(spans: Sequence[TokenSpan]) -> Text:
    text, is_inside = "", False
    for span in spans:
        if span.is_trained != is_inside:
            text += "⟦" if span.is_trained else "⟧"
            is_inside = span.is_trained
        text += format_span(span)
    return Text(text + "⟧" * is_inside)


def render_half_blocks(image: Image.Image, columns: int) -> Text:
    """Two pixels per character: the upper pixel's color on the lower one's."""
    height = max(2, round(columns * image.height / image.width / 2) * 2)
    small = image.resize((columns, height), Image.Resampling.BOX)
    text = Text()
    for y in range(0, height, 2):
        for x in range(columns):
            upper, lower = (Color.from_rgb(*small.getpixel((x, y + line))) for line in (0, 1))  # type: ignore[misc]
            text.append("▀", Style(color=upper, bgcolor=lower))
        text.append("\n")
    text.rstrip()
    return text
