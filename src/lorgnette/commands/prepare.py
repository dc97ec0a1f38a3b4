"""`prepare`: a source looked over and put in order. No torch."""

from pathlib import Path

from rich.console import Console

from lorgnette import data
from lorgnette.errors import UsageError
from lorgnette.hub.address import is_source
from lorgnette.report.console import Terminal
from lorgnette.resolve import local, told


def prepare(
    source: Path | str,
    out: Path | str = Path("data"),
    *,
    prompt: str = data.PROMPT,
    holdout: int = 4,
    split: data.Split = "picture",
    rows: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    to: data.To = "json",
    name: str | None = None,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    on_bad_row: data.OnBadRow = "error",
    console: Console | None = None,
) -> data.Prepared:
    """Write the source into `out`: whole, and in a training and a test part. A source on a hub is first fetched there,
    as pictures and captions.csv.

    rows: the first so many; sample: so many, drawn fairly by `seed`. to: the form. name: the part of a source that has
    several (a split, an entry of dataset_info.json).
    """
    terminal = Terminal(console)
    source, out = Path(source), Path(out)
    if out.exists() and not out.is_dir():
        raise UsageError("a file, not a folder", where=f"--out {out}", remedy="name another")
    if is_source(str(source)):
        from lorgnette.hub.collect import collect

        with terminal.transfer("data") as seen:
            collected = collect(
                str(source), out, rows=rows, sample=sample, seed=seed, images_from=images_from, split=name,
                image_column=image_column, caption_column=caption_column, seen=seen, say=terminal.say,
            )  # fmt: skip
        told(collected, terminal)
        source, rows, sample, name, images_from = collected.table, None, None, None, None
    prepared = data.prepare(
        Path(str(source).removeprefix("coco:")), out, prompt=prompt, holdout=holdout, split=split, rows=rows,
        sample=sample, seed=seed, to=to, name=name, images_from=local(images_from), on_bad_row=on_bad_row,
    )  # fmt: skip
    for problem in prepared.problems:
        terminal.warn(f"left out: {problem}")
    if prepared.tidied:
        terminal.warn(f"{prepared.tidied} rows lost blanks around a picture's text, which this form does not keep")
    if prepared.shared_pictures:
        terminal.warn(f"{prepared.shared_pictures} pictures stand in both parts: the test asks for what was trained")
    terminal.say(f"all        {prepared.all}, {prepared.train_rows + prepared.test_rows} examples")
    terminal.say(f"train      {prepared.train}, {prepared.train_rows}")
    terminal.say(f"test       {prepared.test}, {prepared.test_rows}")
    return prepared
