"""`predict`: answers with and without an adapter, as lines."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lorgnette import data
from lorgnette.errors import UsageError
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import LoadedModel, ModelSpec, explain_out_of_memory
from lorgnette.io.paths import check_writable
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt, read_examples
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.resolve import check_local_images
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
        raise UsageError("--both compares with an adapter", hint="name one with --adapter")
    if out is not None:
        check_writable(out, source)
    terminal = Terminal(console)
    asked = load_model_spec(model, adapter, terminal)
    if prompt is None:
        prompt = asked.metadata.prompt if asked.metadata else data.DEFAULT_PROMPT
    examples = read_examples(source, prompt, images_from=check_local_images(images_from))
    rows = answer_examples(
        asked.load(device), examples, SamplingParams(**(sampling or {})), terminal,
        with_base=both or adapter is None, with_adapter=adapter is not None, memory_hint="a smaller --batch-size needs less",
    )  # fmt: skip
    for row in rows:
        typer.echo(_format_row(row, both))
    if out is not None:
        write_predictions(out, rows)
    return rows


def answer_examples(
    model: LoadedModel,
    examples: Sequence[Example],
    sampling: SamplingParams,
    terminal: Terminal,
    *,
    with_base: bool = True,
    with_adapter: bool = True,
    memory_hint: str = "free some, or use --device cpu",
) -> list[PredictionRow]:
    """Every (picture, prompt) of the examples once, with the answers that were asked for, in order. smaller: what to do
    where memory runs out."""
    asked = group_by_prompt(examples)
    unasked: Sequence[str | None] = [None] * len(asked)
    before = answer_prompts(model, asked, sampling, terminal, "before", None, memory_hint) if with_base else unasked
    after = answer_prompts(model, asked, sampling, terminal, "after", "tuned", memory_hint) if with_adapter else unasked
    return [
        PredictionRow(one.example.id, one.image_paths, one.text, one.references, base=first, tuned=second)
        for one, first, second in zip(asked, before, after, strict=True)
    ]


def answer_prompts(
    model: LoadedModel,
    prompts: Sequence[EvalPrompt],
    sampling: SamplingParams,
    terminal: Terminal,
    label: str,
    adapter: str | None,
    memory_hint: str = "a smaller --batch-size needs less",
) -> list[str]:
    """What a model says to every question; without its adapter where that is None. name: what the bar calls it."""
    examples = [question.example for question in prompts]
    with terminal.show_progress(label, len(examples)) as advance, explain_out_of_memory(memory_hint):
        given = model.generate_answers(examples, sampling, adapter=adapter, on_progress=advance)
        return [prediction.text for prediction in given]


def load_model_spec(model: str | None, adapter: Path | None, terminal: Terminal) -> ModelSpec:
    """The model looked over; an adapter that does not say what it was trained with is told of."""
    asked = ModelSpec.from_names(model, adapter, terminal)
    if asked.metadata and not asked.metadata.is_ours:
        height, width = asked.metadata.processor.image_size or (0, 0)
        terminal.warn(
            f"{adapter} does not say what it was trained with (no lorgnette.json): pictures are taken at "
            f"{height}×{width}, as the tutorial trains, and whether {asked.base_model} is its base model cannot be told"
        )
    return asked


def _format_row(row: PredictionRow, both: bool) -> str:
    if not both:
        return f"{row.id}\t{json.dumps(row.tuned if row.tuned is not None else row.base, ensure_ascii=False)}"
    return f"{row.id}\n  before: {row.base}\n  after:  {row.tuned}"
