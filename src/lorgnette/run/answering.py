"""`predict` and `compare`: answers with and without an adapter, as lines or as a page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lorgnette import data
from lorgnette.errors import UsageError
from lorgnette.predict.generate import Sampling, answers
from lorgnette.report.page import Page, write_page
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.report.terminal import Terminal
from lorgnette.run.opened import Opened
from lorgnette.types import Example, Problem


def predict(
    source: Path,
    *,
    adapter: Path | None = None,
    model: str | None = None,
    prompt: str | None = None,
    both: bool = False,
    out: Path | None = None,
    sampling: Mapping[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> list[PredictionRow]:
    """Answers to a picture, a folder of pictures or a data file: printed, and written to `out` as JSONL."""
    if both and adapter is None:
        raise UsageError("--both compares with an adapter", remedy="name one with --adapter")
    terminal = Terminal(console)
    opened = Opened.of(model, adapter, device)
    asked = prompt or (opened.contract.prompt if opened.contract else "COCO Yes:")
    examples = _examples(source, asked)
    rows = answered(
        opened, examples, Sampling(**(sampling or {})), terminal,
        base=both or adapter is None, tuned=adapter is not None,
    )  # fmt: skip
    for row in rows:
        typer.echo(_line(row, both))
    if out is not None:
        write_predictions(out, rows)
    return rows


def compare(
    adapter: Path,
    source: Path,
    *,
    out: Path = Path("compare.html"),
    model: str | None = None,
    rows: int | None = None,
    max_new_tokens: int = 128,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """The page of a data file's pictures with reference, untuned and tuned answer."""
    terminal = Terminal(console)
    opened = Opened.of(model, adapter, device)
    assert opened.contract is not None  # an adapter was asked for
    examples = _examples(source, opened.contract.prompt, rows)
    found = answered(opened, examples, Sampling(max_new_tokens=max_new_tokens), terminal)
    facts = [("Base model", opened.base), ("Adapter", str(adapter)), ("Data", str(source))]
    summary = f"{len(found)} examples, answered without and with the adapter."
    settings = opened.contract.model_dump(mode="json", exclude={"chat_template"})
    write_page(out, Page("Before and after", summary=summary, facts=facts, settings=settings, rows=found))
    terminal.say(f"page       {out}")
    return out


def answered(
    opened: Opened,
    examples: Sequence[Example],
    sampling: Sampling,
    terminal: Terminal,
    *,
    base: bool = True,
    tuned: bool = True,
) -> list[PredictionRow]:
    """Every example with the answers that were asked for, in order."""
    texts: dict[str, list[str]] = {}
    for name, wanted, adapter in (("before", base, None), ("after", tuned, "tuned")):
        if wanted:
            with terminal.bar(name, len(examples)) as advance:
                given = answers(opened.model, opened.encoder, examples, sampling, adapter=adapter, seen=advance)
                texts[name] = [prediction.text for prediction in given]
    return [
        PredictionRow(
            id=example.id,
            pictures=tuple(picture.path for picture in example.pictures),
            prompt="\n".join(turn.text for turn in example.prompt.turns if turn.role == "user"),
            reference=example.reference,
            base=texts["before"][i] if base else None,
            tuned=texts["after"][i] if tuned else None,
        )
        for i, example in enumerate(examples)
    ]


def _examples(source: Path, prompt: str, rows: int | None = None) -> list[Example]:
    """A picture or a folder asks `prompt`; a data file asks what it says. A broken row is an error here too."""
    is_data = source.suffix.lower() in (".csv", ".json", ".jsonl")
    read = data.read(source, prompt=prompt, rows=rows) if is_data else data.pictures_of(source, prompt=prompt)
    found = list(read)
    broken = [row for row in found if isinstance(row, Problem)]
    if broken:
        raise UsageError(str(broken[0]), remedy=f"{len(broken)} broken rows: `lorgnette check {source}` lists them")
    return [row for row in found if isinstance(row, Example)]


def _line(row: PredictionRow, both: bool) -> str:
    if not both:
        return f"{row.id}\t{json.dumps(row.tuned if row.tuned is not None else row.base, ensure_ascii=False)}"
    return f"{row.id}\n  before: {row.base}\n  after:  {row.tuned}"
