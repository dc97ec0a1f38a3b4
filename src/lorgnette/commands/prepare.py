"""`prepare`: any data set → a training and a test file. Imports no torch."""

from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette import data as data_sets
from lorgnette.commands.arguments import as_source
from lorgnette.errors import UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.report.console import Terminal
from lorgnette.resolve import check_local_images, report_download


def prepare(
    data: Any,
    out: Path | str = Path("data"),
    *,
    prompt: str | None = None,
    holdout: data_sets.Holdout | str = "auto",
    split: data_sets.Split = "image",
    rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    to: data_sets.ExportFormat = "json",
    name: str | None = None,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    on_bad_row: data_sets.OnBadRow = "error",
    text_boxes: data_sets.TextBoxUnit | None = None,
    console: Console | None = None,
) -> data_sets.PrepareResult:
    """Write the examples of any data into `out`: all of them, and split in training and test.

    A data set on a hub is downloaded there first, as data.jsonl and images/. rows: the first N rows; sample: N rows
    drawn fairly by `seed`. to: the format. name: the part of a source that has several (a split, an entry of
    dataset_info.json). image_column, caption_column: of a table, if they are not recognized. text_boxes: what the
    numbers of boxes in texts count, which become boxes ("pixels" of the image file, or "thousandths" of its sides).
    """
    terminal = Terminal(console)
    source, out, max_rows = as_source(data), Path(out), rows
    if out.exists() and not out.is_dir():
        raise UsageError("a file, not a folder", where=f"--out {out}", hint="name a folder")
    if is_hub_address(str(source)):
        from lorgnette.data.hub_dataset import download_dataset

        with terminal.show_transfer("data") as on_progress:
            dataset = download_dataset(
                str(source), out, max_rows=max_rows, sample=sample, seed=seed, images_from=images_from, split=name,
                image_column=image_column, caption_column=caption_column, on_progress=on_progress,
                on_message=terminal.print,
            )  # fmt: skip
        report_download(dataset, terminal)
        source, max_rows, sample, name, images_from = dataset.path, None, None, None, None
        image_column = caption_column = None
    result = data_sets.prepare(
        Path(str(source).removeprefix("coco:")), out, prompt=data_sets.DEFAULT_PROMPT if prompt is None else prompt,
        holdout=data_sets.parse_holdout(holdout), split=split, max_rows=max_rows,
        sample=sample, seed=seed, export_format=to, name=name, images_from=check_local_images(images_from),
        on_bad_row=on_bad_row, columns=data_sets.ColumnChoice(image_column, caption_column), text_boxes=text_boxes,
        on_columns=lambda text: terminal.print(f"columns    {text}"),
    )  # fmt: skip
    for line in data_sets.format_problems(result.problems):
        terminal.warn(f"skipped: {line}")
    for finding in result.remarks:
        terminal.warn(str(finding.problem))
    if result.num_trimmed:
        terminal.warn(f"{result.num_trimmed} rows lost blanks around an image's text, which this format does not keep")
    if result.num_shared_images:
        terminal.warn(f"{result.num_shared_images} images are in both parts: the test asks for what was trained")
    terminal.print_result(f"all        {result.all_path}, {result.num_train + result.num_test} examples")
    terminal.print_result(f"train      {result.train_path}, {result.num_train}")
    terminal.print_result(f"test       {result.test_path}, {result.num_test}")
    return result
