"""`preview`: rows as the model gets them. No torch, no weights; of a hub's names only those on this machine."""

from pathlib import Path

from PIL import Image
from rich.console import Console

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import must_be_writable
from lorgnette.processing.processor import Encoder
from lorgnette.processing.token_spans import pieces
from lorgnette.report.console import Terminal
from lorgnette.report.draw_boxes import boxes
from lorgnette.report.html.preview_page import write_preview
from lorgnette.report.preview import PreviewPicture, PreviewRow, print_rows
from lorgnette.resolve import at_hand, data_table, pictures_of
from lorgnette.types import Encoded, Example, Problem


def preview(
    chosen: Settings,
    *,
    rows: int = 4,
    out: Path | str | None = None,
    paper: Console | None = None,
    console: Console | None = None,
) -> list[PreviewRow]:
    """The first rows of the settings' data, on `paper` (standard output), or as a page. A row that cannot be used is
    shown with the reason."""
    terminal = Terminal(console)
    table = data_table(chosen, terminal)
    if table is None:
        raise UsageError("no data", where="data.path", remedy="name a file: data=captions.csv")
    if out is not None:
        must_be_writable(Path(out), table)
    folder = at_hand(chosen.model)
    if folder is None:
        raise LorgnetteError(
            "the model is not on this machine, and its tokenizer is needed",
            where=chosen.model,
            remedy="name one that is: model=FOLDER, or model=demo",
        )
    encoder = Encoder.of_folder(folder, chosen.encode)
    read = data.read(table, prompt=chosen.data.prompt, rows=rows, images_from=pictures_of(chosen))
    shown = [_row(row, encoder) for row in read]
    if not shown:
        raise LorgnetteError("there are no rows", where=str(table), remedy="name a data file that has some")
    if out is None:
        print_rows(shown, paper or Console())
    else:
        write_preview(Path(out), table.name, shown)
        terminal.say(f"page       {out}")
    return shown


def _row(row: Example | Problem, encoder: Encoder) -> PreviewRow:
    if isinstance(row, Problem):
        return PreviewRow(f"row {row.row}", f"{row.what}; {row.remedy}")
    try:
        encoded = encoder.encode(row)
        return _seen(encoded, encoder)
    except LorgnetteError as error:
        return PreviewRow(f"row {row.row}", str(error))


def _seen(encoded: Encoded, encoder: Encoder) -> PreviewRow:
    example = encoded.example
    said = " ".join(turn.text for turn in example.turns)
    pictures = []
    for grid in encoded.grids:
        whole = data.load(grid.picture.path)
        seen = Image.fromarray(encoder.rule.pixels(whole))
        pictures.append(PreviewPicture(grid.picture.path.name, whole.size, seen, grid.tokens))
    return PreviewRow(
        f"row {example.row}",
        pictures=pictures,
        boxes=boxes(said) if len(pictures) == 1 else (),
        pieces=pieces(encoded, encoder.tokenizer),
    )
