"""Rows as the model gets them, as a page: pictures as resized, boxes drawn in, every token in its colour."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorgnette.io.atomic import write_text
from lorgnette.report.html.inline_images import InlineImage, encode_data_uri
from lorgnette.report.html.templates import render_template
from lorgnette.report.preview import PreviewRow, describe_image, draw_row_boxes, format_span


def write_preview_page(path: Path, title: str, rows: Sequence[PreviewRow]) -> None:
    pieces = [piece for row in rows for piece in row.spans]
    trained = sum(piece.num_tokens for piece in pieces if piece.is_trained)
    html = render_template(
        "preview_page.html.j2",
        title=title,
        summary=f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} as the model gets them: "
        f"loss is taken on {trained} of {sum(piece.num_tokens for piece in pieces)} tokens.",
        rows=[(row, _embed_images(row), [(piece, format_span(piece)) for piece in row.spans]) for row in rows],
        data={},
    )
    write_text(path, html)


def _embed_images(row: PreviewRow) -> list[tuple[InlineImage, str]]:
    return [
        (
            InlineImage(picture.name, encode_data_uri(_encode_png(draw_row_boxes(picture, row)), "png")),
            describe_image(picture),
        )
        for picture in row.images
    ]


def _encode_png(picture: Image.Image) -> bytes:
    """Without loss: what is shown is what the model gets."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
