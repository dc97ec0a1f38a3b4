"""The HTML of `preview`: resized images with their boxes, and every token in the color of its label."""

import io
from collections.abc import Sequence
from pathlib import Path

from lorgnette.report.html.inline_images import InlineImage, encode_data_uri
from lorgnette.report.html.templates import write_page
from lorgnette.report.preview import PreviewRow, describe_image, format_span


def write_preview_page(path: Path, title: str, rows: Sequence[PreviewRow]) -> None:
    num_trained = sum(row.num_trained for row in rows)
    write_page(
        path,
        "preview_page.html.j2",
        title=title,
        summary=f"{len(rows)} {'row' if len(rows) == 1 else 'rows'} as the model gets them, "
        f"{num_trained} of {sum(row.num_tokens for row in rows)} tokens with loss.",
        rows=[(row, _embed_images(row), [(span, format_span(span)) for span in row.spans]) for row in rows],
        data={},
    )


def _embed_images(row: PreviewRow) -> list[tuple[InlineImage, str]]:
    """(image, description) pairs; PNG, because the report shows the exact pixels that the model gets."""
    pairs = []
    for image in row.images:
        buffer = io.BytesIO()
        row.draw_boxes(image).save(buffer, "PNG", optimize=True)
        pairs.append((InlineImage(image.name, encode_data_uri(buffer.getvalue(), "png")), describe_image(image)))
    return pairs
