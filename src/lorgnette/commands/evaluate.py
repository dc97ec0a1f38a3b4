"""`evaluate`: compare answers with references; print metrics with intervals, and write them as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lorgnette import data
from lorgnette.commands.compare_candidates import BASE, Candidate, list_training_prompts, resolve_candidates
from lorgnette.commands.predict import read_examples
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelCache
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.atomic import write_json
from lorgnette.io.paths import check_writable
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.metrics.registry import CAPTION_METRICS, METRICS, expand_metric_names
from lorgnette.metrics.report import MetricReport, compute_report, format_score, format_style_rows, parse_metric_names
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import write_predictions
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
    """Score the answers of a candidate to the prompts of a data file. Print a table, and write the folder `out`.

    candidate: a run or its adapter, `base`, a model, or a file of answers. metrics: names of groups (caption, latex,
    demo) and metrics, separated by commas; default: the run's metrics, else caption. out: for predictions.jsonl and
    scores.json.
    """
    terminal, source = Terminal(console), Path(source)
    folder = _check_output_folder(Path(out), source) if out else None
    [resolved] = resolve_candidates([str(candidate)], model, terminal)
    metric_names = parse_metric_names(metrics, select_default_metrics([resolved]))
    prompts = load_eval_prompts([resolved], source, prompt=prompt, rows=rows, images_from=images_from)
    for note in resolved.check_saved_answers(prompts):
        terminal.warn(note)
    num_bare = sum(not prompt.references for prompt in prompts)
    if num_bare == len(prompts):
        raise LorgnetteError("the data has no references to compare with", where=str(source), hint="add the references")
    if num_bare:
        terminal.warn(f"{num_bare} of {len(prompts)} questions have no reference and are not scored")
    sampling = SamplingParams(max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = resolved.answer(prompts, sampling, terminal, ModelCache(device))
    report = compute_report(metric_names, prompts, [answers])
    for score in report.scores[0]:
        typer.echo(f"{score.name:<20} {format_score(score)}{f'  ({score.note})' if score.note else ''}")
    typer.echo(f"\n{'':<28} {'answers':>24} {'references':>24}")
    for name, (of_answers, of_references) in format_style_rows(report):
        typer.echo(f"{name:<28} {of_answers:>24} {of_references:>24}")
    if folder is not None:
        key = "base" if resolved.name == BASE else "tuned"
        answer_rows = [prompt.build_row(**{key: answer}) for prompt, answer in zip(prompts, answers, strict=True)]
        write_predictions(folder / PREDICTIONS_FILE, answer_rows)
        write_json(folder / SCORES_FILE, _build_scores_json(report, resolved, source))
        terminal.print(f"written    {folder / PREDICTIONS_FILE}, {folder / SCORES_FILE}")
    return report


def load_eval_prompts(
    candidates: Sequence[Candidate], source: Path, *, prompt: str | None, rows: int | None, images_from: str | None
) -> list[EvalPrompt]:
    """The prompts of a data file. Data without prompts gets the first candidate's training prompt."""
    default = prompt if prompt is not None else next(iter(list_training_prompts(candidates)), data.DEFAULT_PROMPT)
    images = check_local_images(images_from)
    examples = read_examples(source, default, max_rows=rows, images_from=images, needs_answer=True)
    prompts = group_by_prompt(examples)
    if not prompts:
        raise LorgnetteError("the data has no rows", where=str(source), hint="name data that has rows")
    return prompts


def select_default_metrics(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The metrics of the first candidate's run that has some, else the caption metrics."""
    settings = [candidate.load_run_settings() for candidate in candidates]
    metric_names = (expand_metric_names(run.predict.metrics) for run in settings if run is not None)
    return next((names for names in metric_names if names), CAPTION_METRICS)


def _check_output_folder(out: Path, source: Path) -> Path:
    if out.is_file():
        raise UsageError("a file, not a folder", where=f"--out {out}", hint="name a folder for the two files")
    for name in (PREDICTIONS_FILE, SCORES_FILE):
        check_writable(out / name, source)
        if (out / name).exists():
            raise UsageError(f"{name} exists already", where=f"--out {out}", hint="name a new folder")
    return out


def _build_scores_json(report: MetricReport, candidate: Candidate, source: Path) -> dict[str, Any]:
    """scores.json. Intervals are 95 % bootstrap; per_example follows `scored`, the lines of predictions.jsonl with
    references (from 0)."""
    return {
        "answered_by": candidate.name,
        "data": str(source),
        "settings": candidate.training_settings,
        "scored": list(report.scored_indices),
        "metrics": {
            score.name: {
                "value": score.value,
                "interval": score.interval,
                "better": METRICS[score.name].better,
                "note": score.note,
                "per_example": score.per_example,
            }
            for score in report.scores[0]
        },
        "style": {
            "answers": asdict(report.styles[0]),
            "references": asdict(report.reference_style) if report.reference_style else None,
        },
    }
