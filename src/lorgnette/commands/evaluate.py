"""`evaluate`: compare answers with references; print metrics with intervals, and write them as JSON."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette import data as data_sets
from lorgnette.commands.answer_settings import select_max_new_tokens
from lorgnette.commands.arguments import as_name, as_source
from lorgnette.commands.compare_candidates import BASE, Candidate, list_training_prompts, resolve_candidates
from lorgnette.commands.predict import read_examples
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.answer_boxes import locate_references
from lorgnette.inference.answers import describe_cuts
from lorgnette.inference.loading import ModelCache
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.atomic import write_json
from lorgnette.io.paths import check_writable
from lorgnette.metrics.answer_kind import choose_metrics
from lorgnette.metrics.answer_tables import format_tables
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.metrics.own_metric import MetricFunction, check_own_metrics
from lorgnette.metrics.registry import AUTO, METRICS, expand_metric_names, uses_boxes
from lorgnette.metrics.report import MetricReport, compute_report, format_score, format_style_rows, parse_metric_names
from lorgnette.report.console import Terminal, print_result
from lorgnette.report.evaluation import Evaluation
from lorgnette.report.predictions import write_predictions
from lorgnette.report.run import Run
from lorgnette.report.training_overlap import TrainingOverlap
from lorgnette.resolve import check_local_images

PREDICTIONS_FILE, SCORES_FILE = "predictions.jsonl", "scores.json"


def evaluate(
    candidate: Path | str | Run,
    data: Path | str,
    *,
    metrics: str | Iterable[str | MetricFunction] | None = None,
    out: Path | str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    rows: int | None = None,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_size: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Score the answers of a candidate to the prompts of a data file. Print a table, and write the folder `out`.

    candidate: a run or its adapter, `base`, a model, or a file of answers. metrics: names of groups (caption, label,
    json, box, latex, demo) and metrics, separated by commas, or a list of names and functions (answer, references) →
    number; default: the run's metrics, else what suits the references (auto). image_size, max_new_tokens: as in
    `predict`. out: for predictions.jsonl and scores.json.
    """
    # Read what is asked, without weights.
    terminal, source = Terminal(console), as_source(data)
    folder = _check_output_folder(Path(out), source) if out else None
    [resolved] = resolve_candidates([as_name(candidate)], model, terminal, image_size)
    metric_names = parse_metric_names(metrics, select_default_metrics([resolved]))
    prompts = load_eval_prompts(
        [resolved], source, prompt=prompt, rows=rows, images_from=images_from,
        columns=data_sets.ColumnChoice(image_column, caption_column), needs_answer=True, terminal=terminal,
    )  # fmt: skip
    check_own_metrics(metric_names, [prompt.references for prompt in prompts if prompt.references])
    overlap = resolved.find_training_overlap(prompts)
    built_in = resolved.explain_built_in_model(prompts)
    for note in (*resolved.check_saved_answers(prompts), *([built_in] if built_in else []), *overlap.notes):
        terminal.warn(note)
    num_bare = sum(not prompt.references for prompt in prompts)
    if num_bare == len(prompts):
        raise LorgnetteError("the data has no references to compare with", where=str(source), hint="add the references")
    if num_bare:
        terminal.warn(f"{num_bare} of {len(prompts)} questions have no reference and are not scored")
    metric_names, reason = choose_for_prompts(metric_names, prompts)
    if reason:
        terminal.print(f"metrics    {reason}")
    # Answer and score.
    limit = select_max_new_tokens(max_new_tokens, [resolved.spec])
    sampling = SamplingParams(max_new_tokens=limit, batch_size=batch_size, with_boxes=uses_boxes(metric_names))
    generation = resolved.describe_generation(sampling)
    terminal.print(f"answers    {generation}")
    predictions = resolved.answer(prompts, sampling, terminal, ModelCache(device))
    for note in describe_cuts(resolved.name, [not p.is_complete for p in predictions], f"the limit of {limit} tokens"):
        terminal.warn(note)
    report = compute_report(
        metric_names, prompts, [[answer.text for answer in predictions]], [[answer.boxes for answer in predictions]]
    )
    if folder is not None:  # first: printing may fail
        key = "base" if resolved.name == BASE else "tuned"
        pairs = zip(prompts, predictions, strict=True)
        answer_rows = [prompt.build_row(**{key: answer}, generation=generation) for prompt, answer in pairs]
        write_predictions(folder / PREDICTIONS_FILE, answer_rows)
        write_json(folder / SCORES_FILE, _build_scores_json(report, resolved, source, generation, overlap))
        terminal.print(f"written    {folder / PREDICTIONS_FILE}, {folder / SCORES_FILE}")
    _print_report(report, overlap, resolved.name)
    return Evaluation.from_report(report, (resolved.name,))


def load_eval_prompts(
    candidates: Sequence[Candidate],
    source: Path,
    *,
    prompt: str | None,
    rows: int | None,
    images_from: str | None,
    needs_answer: bool,
    columns: data_sets.ColumnChoice = data_sets.RECOGNIZED,
    terminal: Terminal | None = None,
) -> list[EvalPrompt]:
    """The prompts of a data file. Data without prompts gets the first candidate's training prompt. needs_answer: a row
    of a data file without an answer is an error."""
    default = prompt if prompt is not None else next(iter(list_training_prompts(candidates)), data_sets.DEFAULT_PROMPT)
    images = check_local_images(images_from)
    examples = read_examples(
        source, default, max_rows=rows, images_from=images, columns=columns, needs_answer=needs_answer,
        terminal=terminal,
    )  # fmt: skip
    # References in the notation of the model that answers; a file of answers is compared in pixels.
    processors = [candidate.spec.processor for candidate in candidates if candidate.spec is not None]
    prompts = group_by_prompt(map(processors[0].write_boxes, examples) if processors else examples)
    prompts = locate_references(prompts, processors[0]) if processors else prompts
    if not prompts:
        raise LorgnetteError("the data has no rows", where=str(source), hint="name data that has rows")
    return prompts


def select_default_metrics(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """The metrics of the first candidate's run that has some, else `auto`."""
    settings = [candidate.load_run_settings() for candidate in candidates]
    metric_names = (expand_metric_names(run.predict.metrics) for run in settings if run is not None)
    return next((names for names in metric_names if names), (AUTO,))


def choose_for_prompts(metric_names: Sequence[str], prompts: Sequence[EvalPrompt]) -> tuple[tuple[str, ...], str]:
    """(the metrics without `auto`, the choice in words: empty without `auto`)."""
    has_boxes = [bool(prompt.reference_boxes) for prompt in prompts]
    choice = choose_metrics(metric_names, [prompt.references for prompt in prompts], has_boxes)
    return expand_metric_names(choice.names), choice.describe("--metrics ") if choice.reason else ""


def _check_output_folder(out: Path, source: Path) -> Path:
    if out.is_file():
        raise UsageError("a file, not a folder", where=f"--out {out}", hint="name a folder for the two files")
    for name in (PREDICTIONS_FILE, SCORES_FILE):
        check_writable(out / name, source)
        if (out / name).exists():
            raise UsageError(f"{name} exists already", where=f"--out {out}", hint="name a new folder")
    return out


def _print_report(report: MetricReport, overlap: TrainingOverlap, name: str) -> None:
    for score in report.scores[0]:
        print_result(f"{score.name:<20} {format_score(score)}{f'  ({score.note})' if score.note else ''}")
    if overlap.is_tuned:
        print_result(f"{'trained on':<20} {overlap.summary}")
    width = shutil.get_terminal_size().columns
    if lines := format_tables(report.tables, [name], width=width, page=f"{SCORES_FILE} (--out)"):
        print_result("\n" + "\n".join(lines))
    print_result(f"\n{'':<28} {'answers':>24} {'references':>24}")
    for row, (of_answers, of_references) in format_style_rows(report):
        print_result(f"{row:<28} {of_answers:>24} {of_references:>24}")


def _build_scores_json(
    report: MetricReport, candidate: Candidate, source: Path, generation: str, overlap: TrainingOverlap
) -> dict[str, Any]:
    """scores.json. Intervals are 95 % bootstrap; per_example follows `scored`, the lines of predictions.jsonl with
    references (from 0). trained_on: the lines about images that the candidate was trained on; null if unknown.
    labels, fields: their tables, with the metrics of labels and of JSON answers."""
    return {
        "answered_by": candidate.name,
        "data": str(source),
        "generation": generation,
        "settings": candidate.training_settings,
        "trained_on": None if overlap.flags is None else [i for i, flag in enumerate(overlap.flags) if flag],
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
        **({"labels": counts.as_dict()} if (counts := next(iter(report.tables.labels), None)) else {}),
        **({"fields": fields.as_dict()} if (fields := next(iter(report.tables.fields), None)) else {}),
        "style": {
            "answers": asdict(report.styles[0]),
            "references": asdict(report.reference_style) if report.reference_style else None,
        },
    }
