"""`prepare`: a source looked over and put in order. No torch."""

from pathlib import Path

from rich.console import Console

from lorgnette import data
from lorgnette.errors import UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.report.console import Terminal
from lorgnette.resolve import check_local_images, report_download


def prepare(
    source: Path | str,
    out: Path | str = Path("data"),
    *,
    prompt: str = data.DEFAULT_PROMPT,
    holdout: int = 4,
    split: data.Split = "image",
    max_rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    to: data.ExportFormat = "json",
    name: str | None = None,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    on_bad_row: data.OnBadRow = "error",
    console: Console | None = None,
) -> data.PrepareResult:
    """Write the source into `out`: whole, and in a training and a test part. A source on a hub is first fetched there,
    as pictures and captions.csv.

    rows: the first so many; sample: so many, drawn fairly by `seed`. to: the form. name: the part of a source that has
    several (a split, an entry of dataset_info.json).
    """
    terminal = Terminal(console)
    source, out = Path(source), Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError("a file, not a folder", where=f"--out {out}", hint="name another")
    if is_hub_address(str(source)):
        from lorgnette.hub.collect import collect

        with terminal.show_transfer("data") as seen:
            collected = collect(
                str(source), out, rows=max_rows, sample=sample, seed=seed, images_from=images_from, split=name,
                image_column=image_column, caption_column=caption_column, seen=seen, say=terminal.print,
            )  # fmt: skip
        report_download(collected, terminal)
        source, max_rows, sample, name, images_from = collected.table, None, None, None, None
    prepared = data.prepare(
        Path(str(source).removeprefix("coco:")), out, prompt=prompt, holdout=holdout, split=split, max_rows=max_rows,
        sample=sample, seed=seed, export_format=to, name=name, images_from=check_local_images(images_from), on_bad_row=on_bad_row,
    )  # fmt: skip
    for problem in prepared.problems:
        terminal.warn(f"left out: {problem}")
    if prepared.num_trimmed:
        terminal.warn(f"{prepared.num_trimmed} rows lost blanks around a picture's text, which this form does not keep")
    if prepared.num_shared_images:
        terminal.warn(f"{prepared.num_shared_images} pictures stand in both parts: the test asks for what was trained")
    terminal.print(f"all        {prepared.all_path}, {prepared.num_train + prepared.num_test} examples")
    terminal.print(f"train      {prepared.train_path}, {prepared.num_train}")
    terminal.print(f"test       {prepared.test_path}, {prepared.num_test}")
    return prepared
