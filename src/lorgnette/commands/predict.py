"""`predict`: answers with and without an adapter, as lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lorgnette import data
from lorgnette.errors import UsageError
from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Asked, Opened, enough_memory
from lorgnette.io.paths import must_be_writable
from lorgnette.metrics.eval_prompts import Question, examples_of, questions
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.resolve import local
from lorgnette.types import Example


def predict(
    source: Path | str,
    *,
    adapter: Path | str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    both: bool = False,
    images_from: str | None = None,
    out: Path | str | None = None,
    sampling: Mapping[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> list[PredictionRow]:
    """Answers to a picture, a folder of pictures or a data file: printed, and written to `out` as JSONL."""
    source = Path(source)
    adapter = Path(adapter) if adapter else None
    out = Path(out) if out else None
    if both and adapter is None:
        raise UsageError("--both compares with an adapter", remedy="name one with --adapter")
    if out is not None:
        must_be_writable(out, source)
    terminal = Terminal(console)
    asked = asked_of(model, adapter, terminal)
    if prompt is None:
        prompt = asked.contract.prompt if asked.contract else data.PROMPT
    examples = examples_of(source, prompt, images_from=local(images_from))
    rows = answered(
        asked.opened(device), examples, Sampling(**(sampling or {})), terminal,
        base=both or adapter is None, tuned=adapter is not None, smaller="a smaller --batch-size needs less",
    )  # fmt: skip
    for row in rows:
        typer.echo(_line(row, both))
    if out is not None:
        write_predictions(out, rows)
    return rows


def answered(
    opened: Opened,
    examples: Sequence[Example],
    sampling: Sampling,
    terminal: Terminal,
    *,
    base: bool = True,
    tuned: bool = True,
    smaller: str = "free some, or use --device cpu",
) -> list[PredictionRow]:
    """Every (picture, prompt) of the examples once, with the answers that were asked for, in order. smaller: what to do
    where memory runs out."""
    asked = questions(examples)
    unasked: Sequence[str | None] = [None] * len(asked)
    before = texts(opened, asked, sampling, terminal, "before", None, smaller) if base else unasked
    after = texts(opened, asked, sampling, terminal, "after", "tuned", smaller) if tuned else unasked
    return [
        PredictionRow(one.example.id, one.pictures, one.prompt, one.references, base=first, tuned=second)
        for one, first, second in zip(asked, before, after, strict=True)
    ]


def texts(
    opened: Opened,
    asked: Sequence[Question],
    sampling: Sampling,
    terminal: Terminal,
    name: str,
    adapter: str | None,
    smaller: str = "a smaller --batch-size needs less",
) -> list[str]:
    """What a model says to every question; without its adapter where that is None. name: what the bar calls it."""
    examples = [question.example for question in asked]
    with terminal.bar(name, len(examples)) as advance, enough_memory(smaller):
        given = opened.answers(examples, sampling, adapter=adapter, seen=advance)
        return [prediction.text for prediction in given]


def asked_of(model: str | None, adapter: Path | None, terminal: Terminal) -> Asked:
    """The model looked over; an adapter that does not say what it was trained with is told of."""
    asked = Asked.of(model, adapter, terminal)
    if asked.contract and not asked.contract.known:
        height, width = asked.contract.encode.size or (0, 0)
        terminal.warn(
            f"{adapter} does not say what it was trained with (no lorgnette.json): pictures are taken at "
            f"{height}×{width}, as the tutorial trains, and whether {asked.base} is its base model cannot be told"
        )
    return asked


def _line(row: PredictionRow, both: bool) -> str:
    if not both:
        return f"{row.id}\t{json.dumps(row.tuned if row.tuned is not None else row.base, ensure_ascii=False)}"
    return f"{row.id}\n  before: {row.base}\n  after:  {row.tuned}"
