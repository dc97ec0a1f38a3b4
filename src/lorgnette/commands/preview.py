"""`preview`: shows rows as the model gets them.

Needs no torch and no weights; of a model on a hub it downloads the small files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
from rich.console import Console

from lorgnette import data as data_sets
from lorgnette.commands.arguments import SettingsLike, build_settings
from lorgnette.commands.settings_in_words import describe_settings, list_changed_settings
from lorgnette.config import Settings
from lorgnette.data.box_notation import find_boxes
from lorgnette.data.conversation import check_conversation
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import check_writable
from lorgnette.io.shell import format_command
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import split_into_spans
from lorgnette.report.console import Terminal
from lorgnette.report.preview import PreviewBox, PreviewImage, PreviewRow, print_rows, write_preview_page
from lorgnette.resolve import find_cached_model, read_rows, resolve_data, resolve_images_folder, resolve_model
from lorgnette.training.initial_adapter import inherit_settings
from lorgnette.types import Box, Example, Image, PixelBox, Problem, Turn


def preview(
    data: Path | str | Settings | None = None,
    *,
    recipe: str | Path | None = None,
    settings: SettingsLike = None,
    rows: int = 4,
    out: Path | str | None = None,
    output: Console | None = None,
    console: Console | None = None,
    **values: Any,
) -> list[PreviewRow]:
    """Print the first rows of the data on `output` (default: standard output), or write them as HTML to `out`.

    data, recipe, settings, values: as in `train`. A row that cannot be used is shown with the reason.
    """
    terminal = Terminal(console)
    settings = build_settings(data, recipe=recipe, settings=settings, values=values, terminal=terminal)
    settings = inherit_settings(settings, terminal)
    path = resolve_data(settings, terminal)
    if path is None:
        raise UsageError("no data", where="data.path", hint="name a file: data=captions.csv")
    if out is not None:
        check_writable(Path(out), path, is_page=True)
    model = find_cached_model(settings.model) or resolve_model(settings.model, terminal, needs_weights=False)
    processor = Processor.from_folder(model, settings.processor)
    images_from = resolve_images_folder(settings)
    # An image that is found by its name may be that of a later row: then all rows are read.
    is_by_name = images_from is not None and images_from.is_dir()
    all_rows = read_rows(settings, path, terminal, max_rows=None if is_by_name else rows)
    source_rows = data_sets.take_rows(all_rows, rows)
    preview_rows = [_build_row(row, processor) for row in source_rows]
    for line in processor.list_remarks(0, 0):
        terminal.print(f"note       {line}")
    if not preview_rows:
        raise LorgnetteError("the data has no rows", where=str(path), hint="name a file that has some")
    if out is None:
        print_rows(preview_rows, output or Console())
    else:
        examples = [row for row in source_rows if isinstance(row, Example)]
        folders = [path.parent, *([images_from] if images_from else [])]
        write_preview_page(
            Path(out),
            path.name,
            preview_rows,
            describe_settings(settings, examples, token_side=processor.image_processor.token_side),
            _suggest_steps(settings),
            [folder.absolute() for folder in folders],
        )
        terminal.print_result(f"report     {out}")
    return preview_rows


def _suggest_steps(settings: Settings) -> list[tuple[str, str]]:
    """(purpose, command): what to do after a look at the rows."""
    words = [settings.data.path, *list_changed_settings(settings, without=("data.path",))]
    return [
        ("Check all rows", format_command("check", *words)),
        ("See how long it takes, and whether it fits", format_command("plan", *words)),
        ("Train", format_command("train", *words)),
    ]


def _build_row(row: Example | Problem, processor: Processor) -> PreviewRow:
    if isinstance(row, Problem):
        return PreviewRow(row.place, f"{row.message}; {row.hint}")
    images = []
    try:
        check_conversation(row.turns)
        encoded = processor.encode(row)
        for grid in encoded.grids:
            image = data_sets.load_image(grid.image.path)
            resized = PIL.Image.fromarray(processor.image_processor.resize(image))
            images.append(PreviewImage(grid.image.path.name, image.size, resized, grid.num_tokens))
    except LorgnetteError as error:
        return PreviewRow(row.place, str(error))
    boxes = [box for turn in encoded.example.turns for box in _list_boxes(turn, encoded.example, processor)]
    spans = split_into_spans(encoded, processor.tokenizer)
    return PreviewRow(row.place, images=images, boxes=boxes, spans=spans)


def _list_boxes(turn: Turn, example: Example, processor: Processor) -> Iterator[PreviewBox]:
    """The boxes of a turn as the model gets them. Those within a text are in the only image, and in a notation that
    nothing else has."""
    for part in turn.parts:
        if isinstance(part, Image) or (isinstance(part, str) and (len(example.images) != 1 or not _has_box(part))):
            continue
        text, number = (part.text, part.image) if isinstance(part, Box) else (part, 0)
        for box, start, end in processor.parse_boxes(text, example.images[number], number):
            if box.corners:
                yield PreviewBox(PixelBox(box.corners, box.label, number), text[start:end])


def _has_box(text: str) -> bool:
    return any(box.corners for box, *_ in find_boxes(text))
