"""`evaluate`: answers held against references, as a table with intervals and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lorgnette import config, data
from lorgnette.commands.compare_candidates import BASE, Candidate, list_training_prompts, resolve_candidates
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import ModelCache
from lorgnette.io.atomic import write_json
from lorgnette.io.paths import check_writable
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt, read_examples
from lorgnette.metrics.held_out import expand_metric_names, format_score
from lorgnette.metrics.registry import CAPTION_METRICS, METRICS
from lorgnette.metrics.report import MetricReport, compute_report, format_style_rows, parse_metric_names
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.resolve import check_local_images

PREDICTIONS_FILE, SCORES_FILE = "predictions.jsonl", "scores.json"


def evaluate(
    candidate: Path | str,
    source: Path | str,
    *,
    metrics: str | None = None,
    out: Path | str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    rows: int | None = None,
    images_from: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    device: str = "auto",
    console: Console | None = None,
) -> MetricReport:
    """Answers of `who` (an adapter, a run, `base`, a model, a file of answers) to a data file's questions, scored: a
    table is printed; predictions.jsonl and scores.json are written to the folder `out`.

    metrics: names of groups (caption, latex, demo) and of metrics, with commas; default: what the run was scored by,
    or caption's.
    """
    terminal, source = Terminal(console), Path(source)
    folder = _check_output_folder(Path(out), source) if out else None
    [side] = resolve_candidates([str(candidate)], model, terminal)
    names = parse_metric_names(metrics, select_default_metrics([side]))
    asked = load_eval_prompts([side], source, prompt=prompt, rows=rows, images_from=images_from)
    for note in side.check_saved_answers(asked):
        terminal.warn(note)
    judged = [question for question in asked if question.references]
    if not judged:
        raise LorgnetteError("no answer to hold a prediction against", where=str(source), hint="add the references")
    if len(judged) < len(asked):
        terminal.warn(f"{len(asked) - len(judged)} of {len(asked)} questions have no reference and are not scored")
    sampling = SamplingParams(max_new_tokens=max_new_tokens, batch_size=batch_size)
    texts = side.answer(asked, sampling, terminal, ModelCache(device))
    found = compute_report(names, asked, [texts])
    for line in _format_report(found):
        typer.echo(line)
    if folder is not None:
        write_predictions(folder / PREDICTIONS_FILE, _build_rows(asked, texts, is_base=side.name == BASE))
        write_json(folder / SCORES_FILE, _build_scores_json(found, side, source))
        terminal.print(f"written    {folder / PREDICTIONS_FILE}, {folder / SCORES_FILE}")
    return found


def load_eval_prompts(
    candidates: Sequence[Candidate], source: Path, *, prompt: str | None, rows: int | None, images_from: str | None
) -> list[EvalPrompt]:
    """What they are asked: data that does not say it is asked as the first of them was in training."""
    asking = prompt if prompt is not None else next(iter(list_training_prompts(candidates)), data.DEFAULT_PROMPT)
    asked = group_by_prompt(read_examples(source, asking, max_rows=rows, images_from=check_local_images(images_from)))
    if not asked:
        raise LorgnetteError("there is nothing to ask", where=str(source), hint="name data that has rows")
    return asked


def select_default_metrics(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The metrics of the first run among them that was scored; else caption's."""
    runs = [side.run for side in candidates if side.run is not None]
    said = [config.load_settings(config.read_recipe(run.config), where=str(run.config)).predict.metrics for run in runs]
    return next((names for names in map(expand_metric_names, said) if names), CAPTION_METRICS)


def _check_output_folder(out: Path, source: Path) -> Path:
    if out.is_file():
        raise UsageError("a file, not a folder", where=f"--out {out}", hint="name a folder for the two files")
    for name in (PREDICTIONS_FILE, SCORES_FILE):
        check_writable(out / name, source)
        if (out / name).exists():
            raise UsageError("something is there already", where=f"--out {out}", hint="name a new folder")
    return out


def _build_rows(prompts: Sequence[EvalPrompt], answers: Sequence[str], *, is_base: bool) -> list[PredictionRow]:
    return [
        PredictionRow(
            one.example.id, one.image_paths, one.text, one.references,
            base=text if is_base else None, tuned=None if is_base else text,
        )
        for one, text in zip(prompts, answers, strict=True)
    ]  # fmt: skip


def _format_report(report: MetricReport) -> list[str]:
    """The table; style beside that of the references."""
    styles = [report.styles[0], *([report.reference_style] if report.reference_style else [])]
    scores = [f"{one.name:<20} {format_score(one)}{(one.note and f'  ({one.note})') or ''}" for one in report.scores[0]]
    head = f"{'':<28} {'answers':>24} {'references':>24}"
    return [
        *scores,
        "",
        head,
        *(f"{name:<28} " + " ".join(f"{v:>24}" for v in row) for name, row in format_style_rows(styles)),
    ]


def _build_scores_json(report: MetricReport, candidate: Candidate, source: Path) -> dict[str, Any]:
    """scores.json: intervals are 95 % bootstrap; per_example in the order of `scored`, the lines of predictions.jsonl
    (from 0) that have a reference."""
    return {
        "answered_by": candidate.name,
        "data": str(source),
        "settings": candidate.training_settings,
        "scored": list(report.scored_indices),
        "metrics": {
            one.name: {
                "value": one.value,
                "interval": one.interval,
                "better": METRICS[one.name].better,
                "note": one.note,
                "per_example": one.per_example,
            }
            for one in report.scores[0]
        },
        "style": {
            "answers": asdict(report.styles[0]),
            "references": asdict(report.reference_style) if report.reference_style else None,
        },
    }
