"""`preview`: rows as the model gets them. No torch, no weights; of a hub's names only those on this machine."""

from pathlib import Path

from PIL import Image
from rich.console import Console

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import check_writable
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import split_into_spans
from lorgnette.report.console import Terminal
from lorgnette.report.draw_boxes import parse_boxes
from lorgnette.report.html.preview_page import write_preview_page
from lorgnette.report.preview import PreviewImage, PreviewRow, print_rows
from lorgnette.resolve import find_cached_model, resolve_data, resolve_images_folder
from lorgnette.types import Encoded, Example, Problem


def preview(
    settings: Settings,
    *,
    rows: int = 4,
    out: Path | str | None = None,
    output: Console | None = None,
    console: Console | None = None,
) -> list[PreviewRow]:
    """The first rows of the settings' data, on `paper` (standard output), or as a page. A row that cannot be used is
    shown with the reason."""
    terminal = Terminal(console)
    table = resolve_data(settings, terminal)
    if table is None:
        raise UsageError("no data", where="data.path", hint="name a file: data=captions.csv")
    if out is not None:
        check_writable(Path(out), table)
    folder = find_cached_model(settings.model)
    if folder is None:
        raise LorgnetteError(
            "the model is not on this machine, and its tokenizer is needed",
            where=settings.model,
            hint="name one that is: model=FOLDER, or model=demo",
        )
    encoder = Processor.from_folder(folder, settings.processor)
    read = data.read(table, prompt=settings.data.prompt, max_rows=rows, images_from=resolve_images_folder(settings))
    shown = [_build_row(row, encoder) for row in read]
    if not shown:
        raise LorgnetteError("there are no rows", where=str(table), hint="name a data file that has some")
    if out is None:
        print_rows(shown, output or Console())
    else:
        write_preview_page(Path(out), table.name, shown)
        terminal.print(f"page       {out}")
    return shown


def _build_row(row: Example | Problem, encoder: Processor) -> PreviewRow:
    if isinstance(row, Problem):
        return PreviewRow(f"row {row.row}", f"{row.message}; {row.hint}")
    try:
        encoded = encoder.encode(row)
        return _build_preview(encoded, encoder)
    except LorgnetteError as error:
        return PreviewRow(f"row {row.row}", str(error))


def _build_preview(encoded: Encoded, encoder: Processor) -> PreviewRow:
    example = encoded.example
    said = " ".join(turn.text for turn in example.turns)
    pictures = []
    for grid in encoded.grids:
        whole = data.load_image(grid.image.path)
        seen = Image.fromarray(encoder.image_processor.resize(whole))
        pictures.append(PreviewImage(grid.image.path.name, whole.size, seen, grid.num_tokens))
    return PreviewRow(
        f"row {example.row}",
        images=pictures,
        boxes=parse_boxes(said) if len(pictures) == 1 else (),
        spans=split_into_spans(encoded, encoder.tokenizer),
    )
