"""Rows as the model gets them, as a page: pictures as resized, boxes drawn in, every token in its colour."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from lorgnette.io.atomic import write_text
from lorgnette.report.html.inline_images import Shown, data_uri
from lorgnette.report.html.templates import rendered
from lorgnette.report.preview import PreviewRow, boxed_picture, described, shown


def write_preview(path: Path, title: str, rows: Sequence[PreviewRow]) -> None:
    pieces = [piece for row in rows for piece in row.pieces]
    trained = sum(piece.count for piece in pieces if piece.trained)
    html = rendered(
        "preview_page.html.j2",
        title=title,
        summary=f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} as the model gets them: "
        f"loss is taken on {trained} of {sum(piece.count for piece in pieces)} tokens.",
        rows=[(row, _pictures(row), [(piece, shown(piece)) for piece in row.pieces]) for row in rows],
        data={},
    )
    write_text(path, html)


def _pictures(row: PreviewRow) -> list[tuple[Shown, str]]:
    return [
        (Shown(picture.name, data_uri(_png(boxed_picture(picture, row)), "png")), described(picture))
        for picture in row.pictures
    ]


def _png(picture: Image.Image) -> bytes:
    """Without loss: what is shown is what the model gets."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
