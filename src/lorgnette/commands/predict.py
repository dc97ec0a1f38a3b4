"""`predict`: answers to images or a data file, without and with an adapter."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette import data
from lorgnette.commands.answer_settings import select_max_new_tokens, set_answer_size
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.answers import AnswersInterrupted, answer_examples, describe_generation, describe_row_cuts
from lorgnette.inference.loading import ModelSpec
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.paths import check_writable
from lorgnette.report.console import Terminal, print_result
from lorgnette.report.predictions import write_predictions
from lorgnette.resolve import check_local_images
from lorgnette.types import Example, PredictionRow, Problem
from lorgnette.verification.judgement import judge_adapter


def predict(
    source: Path | str,
    *,
    adapter: Path | str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    both: bool = False,
    images_from: str | None = None,
    image_size: str | None = None,
    out: Path | str | None = None,
    sampling: Mapping[str, Any] | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> list[PredictionRow]:
    """Answer an image, a folder of images or a data file. Print the answers, and write them to `out` as JSON lines.

    image_size: native, train, or height and width in pixels ("280x420"). sampling: fields of SamplingParams. The
    defaults of image size and max_new_tokens are those of the run that trained the adapter.
    """
    source = Path(source)
    adapter = Path(adapter) if adapter else None
    out = Path(out) if out else None
    if both and adapter is None:
        raise UsageError("--both needs an adapter", hint="name one with --adapter")
    if out is not None:
        check_writable(out, source)
    terminal = Terminal(console)
    spec = load_model_spec(model, adapter, terminal)
    if both and spec.is_base_changed:
        message, hint = "this adapter changes the base model's own weights", "ask the base model with --model alone"
        raise UsageError(f"{message}: one loaded model cannot answer for both", where="--both", hint=hint)
    spec = set_answer_size(spec, image_size)
    if prompt is None:
        prompt = spec.metadata.prompt if spec.metadata else data.DEFAULT_PROMPT
    examples = read_examples(source, prompt, images_from=check_local_images(images_from))
    options = dict(sampling or {})
    options["max_new_tokens"] = select_max_new_tokens(options.get("max_new_tokens"), [spec])
    params = SamplingParams(**options)
    terminal.print(f"answers    {describe_generation(spec.processor.settings, params)}")
    try:
        rows = answer_examples(
            spec.load(device), examples, params, terminal,
            with_base=both or adapter is None, with_adapter=adapter is not None,
            memory_hint="use a smaller --batch-size",
        )  # fmt: skip
    except AnswersInterrupted as interrupted:
        _write_rows(interrupted.rows, both, out)
        terminal.warn(f"only {len(interrupted.rows)} of {interrupted.num_prompts} questions are answered")
        raise
    _write_rows(rows, both, out)
    for note in describe_row_cuts(rows, f"--max-new-tokens {params.max_new_tokens}"):
        terminal.warn(note)
    return rows


def load_model_spec(model: str | None, adapter: Path | None, terminal: Terminal) -> ModelSpec:
    """Resolve model and adapter. Warn if the adapter has no metadata of ours. Raises LorgnetteError if it is broken."""
    if adapter is None:
        return ModelSpec.from_names(model, None, terminal)
    spec = judge_adapter(model, adapter, terminal).require(terminal)
    if spec.metadata and not spec.metadata.is_ours:
        height, width = spec.metadata.processor.image_size or (0, 0)
        terminal.warn(
            f"{adapter} has no lorgnette.json: images are resized to {height}×{width} as in the tutorial, and "
            f"{spec.base_model} cannot be checked to be its base model"
        )
    return spec


def read_examples(
    source: Path,
    prompt: str,
    *,
    max_rows: int | None = None,
    images_from: Path | None = None,
    needs_answer: bool = False,
) -> list[Example]:
    """Read a data file or folder, an image or a folder of images. `prompt` is used if the data has none. Raises
    LorgnetteError for broken rows; with needs_answer, also for rows of a data file without an answer."""
    if data.is_dataset(source):
        rows = data.read(source, prompt=prompt, max_rows=max_rows, images_from=images_from)
        result = data.load_usable(rows, on_bad_row="skip", source=source, needs_answer=needs_answer)
        examples, problems = result.examples, result.problems
    else:
        images = list(islice(data.read_images(source, prompt=prompt), max_rows))
        examples = [row for row in images if isinstance(row, Example)]
        problems = [row for row in images if isinstance(row, Problem)]
    if problems:
        refusal = data.build_refusal(problems, len(examples) + len(problems))
        raise LorgnetteError(refusal.message, hint="fix or remove these rows, and try again")
    return examples


def _write_rows(rows: Sequence[PredictionRow], both: bool, out: Path | None) -> None:
    if out is not None:  # first: printing may fail
        write_predictions(out, rows)
    for row in rows:
        print_result(_format_row(row, both))


def _format_row(row: PredictionRow, both: bool) -> str:
    if not both:
        return f"{row.id}\t{json.dumps(row.tuned if row.tuned is not None else row.base, ensure_ascii=False)}"
    return f"{row.id}\n  before: {row.shown_base}\n  after:  {row.shown_tuned}"
