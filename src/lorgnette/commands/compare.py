"""`compare`: one HTML page with the answers of several candidates side by side."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import data as data_sets
from lorgnette.commands.answer_settings import select_max_new_tokens
from lorgnette.commands.arguments import as_name, as_source
from lorgnette.commands.compare_candidates import (
    BASE,
    Candidate,
    check_image_size,
    is_answers_file,
    list_training_prompts,
    resolve_candidates,
    split_before_after,
)
from lorgnette.commands.comparison_facts import list_facts, list_next_steps, tabulate_candidates
from lorgnette.commands.evaluate import choose_for_prompts, load_eval_prompts, select_default_metrics
from lorgnette.config import DataSettings, ProcessorSettings
from lorgnette.errors import UsageError
from lorgnette.inference.answers import describe_cuts
from lorgnette.inference.loading import ModelCache
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.paths import check_writable
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.own_metric import MetricFunction, check_own_metrics
from lorgnette.metrics.registry import uses_boxes
from lorgnette.metrics.report import compute_report, parse_metric_names
from lorgnette.report import run_log
from lorgnette.report.comparison_verdict import judge_candidates
from lorgnette.report.console import Terminal
from lorgnette.report.evaluation import Comparison
from lorgnette.report.html.charts import Chart, Curve, build_overlay
from lorgnette.report.html.comparison import ComparisonPage, write_comparison_page
from lorgnette.report.run import Run
from lorgnette.report.run_dir import find_free_path
from lorgnette.report.training_overlap import read_examples_hash


def compare(
    *candidates: Path | str | Run,
    data: Path | str | None = None,
    out: Path | str | None = None,
    metrics: str | Iterable[str | MetricFunction] | None = None,
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
) -> Comparison:
    """Compare the answers of candidates to the prompts of a data file, on one HTML page.

    candidates: what to compare, and last the data file, unless it is named as `data`. A candidate is `base`, a run
    or its adapter, a model, or a file of answers; a single one is compared with its base model. out: the page, replaced
    if it exists; default: compare.html, or the next free name. metrics: as in `evaluate`. image_size: as in `predict`.
    max_new_tokens: of all candidates; default: the largest of their runs.
    """
    # Read what is asked, without weights.
    terminal = Terminal(console)
    sources = [*candidates, data] if data is not None else [*candidates]
    words = [*map(as_name, sources[:-1]), *(str(as_source(source)) for source in sources[-1:])]
    if len(words) < 2:
        raise UsageError("no data to answer", where="compare", hint="name a candidate and a data file")
    names, source = words[:-1], Path(words[-1])
    page_path = Path(out) if out else find_free_path(Path(), "compare", ".html")
    is_replaced = page_path.is_file()
    check_writable(page_path, source, *(Path(name) for name in names if is_answers_file(name)), is_page=True)
    resolved = _resolve_inputs(names, model, terminal, image_size)
    names = names if len(names) == len(resolved) else [BASE, *names]
    metric_names = parse_metric_names(metrics, select_default_metrics(resolved))
    prompts = load_eval_prompts(
        resolved, source, prompt=prompt, rows=rows, images_from=images_from,
        columns=data_sets.ColumnChoice(image_column, caption_column), needs_answer=False, terminal=terminal,
    )  # fmt: skip
    metric_names, reason = choose_for_prompts(metric_names, prompts)
    if reason:
        terminal.print(f"metrics    {reason}")
    check_own_metrics(metric_names, [prompt.references for prompt in prompts if prompt.references])
    limit = select_max_new_tokens(max_new_tokens, [candidate.spec for candidate in resolved])
    sampling = SamplingParams(max_new_tokens=limit, batch_size=batch_size, with_boxes=uses_boxes(metric_names))
    generations = [candidate.describe_generation(sampling) for candidate in resolved]
    overlaps = [candidate.find_training_overlap(prompts) for candidate in resolved]
    settings = _find_differing_settings(resolved)
    notes = [
        *_collect_notes(resolved, prompts, generations),
        *(note for overlap in overlaps for note in overlap.notes),
        *_compare_eval_losses([candidate for candidate in resolved if candidate.run is not None]),
    ]
    for note in notes:
        terminal.warn(note)
    # Answer and score.
    model_cache = ModelCache(device)
    predictions = [candidate.answer(prompts, sampling, terminal, model_cache) for candidate in resolved]
    for candidate, answers in zip(resolved, predictions, strict=True):
        for note in describe_cuts(candidate.name, [not answer.is_complete for answer in answers], "the token limit"):
            terminal.warn(note)
            notes.append(note)
    # Judge them, and write the page.
    texts = [[answer.text for answer in answers] for answers in predictions]
    boxes = [[answer.boxes for answer in answers] for answers in predictions]
    short_names = tuple(candidate.name for candidate in resolved)
    trained_on = [overlap.flags or () for overlap in overlaps]
    is_tuned = [candidate.is_tuned for candidate in resolved]
    verdict, best = judge_candidates(
        short_names, prompts, texts, metric_names, boxes=boxes, tuned=is_tuned, trained_on=trained_on
    )
    page = ComparisonPage(
        candidates=short_names,
        prompts=prompts,
        verdict=verdict,
        compared=tabulate_candidates(resolved),
        facts=list_facts(prompts, source, generations, device),
        next_steps=list_next_steps(resolved, names, source, best, verdict),
        folders=[Path.cwd(), source.absolute().parent],
        answers=[[answer.shown_text for answer in answers] for answers in predictions],
        report=compute_report(metric_names, prompts, texts, boxes),
        boxes=boxes,
        charts=_build_charts(resolved),
        settings=settings,
        notes=notes,
        generations=generations,
        trained_on=trained_on,
        overlap_summaries=[overlap.summary for overlap in overlaps] if any(o.is_tuned for o in overlaps) else (),
    )
    write_comparison_page(page_path, page)
    terminal.print_result(f"result     {verdict.text}")
    terminal.print_result(f"report     {page_path}{' (replaced)' if is_replaced else ''}")
    return Comparison.from_report(page.report, tuple(page.candidates), path=page_path, verdict=verdict.text)


def _resolve_inputs(
    names: list[str], model: str | None, terminal: Terminal, image_size: str | None = None
) -> list[Candidate]:
    if len(names) == 1 and is_answers_file(names[0]):
        check_image_size(names, image_size)
        return split_before_after(Path(names[0]))
    if names == [BASE]:
        raise UsageError("nothing to compare with", where=BASE, hint="name an adapter")
    return resolve_candidates(names if len(names) > 1 else [BASE, *names], model, terminal, image_size)


def _collect_notes(
    candidates: Sequence[Candidate], prompts: Sequence[EvalPrompt], generations: Sequence[str]
) -> Iterator[str]:
    """Warnings: answers matched by name, answers generated in different ways, different training prompts, prompts
    without references. Raises LorgnetteError if a file lacks answers."""
    for candidate in candidates:
        yield from candidate.check_saved_answers(prompts)
    yield from {note for candidate in candidates if (note := candidate.explain_built_in_model(prompts))}
    if len(set(generations)) > 1:
        ways = "; ".join(f"{candidate.name}: {way}" for candidate, way in zip(candidates, generations, strict=True))
        yield f"the answers are generated in different ways, so the scores may differ because of that ({ways})"
    training_prompts, texts = list_training_prompts(candidates), {prompt.text for prompt in prompts}
    if len(training_prompts) > 1:
        used = repr(prompts[0].text) if len(texts) == 1 else "the data's prompts"
        yield f"trained with different prompts ({', '.join(map(repr, training_prompts))}); all are asked {used}"
    conventions = {candidate.spec.processor.box_convention for candidate in candidates if candidate.spec}
    if len(conventions) > 1 and any(prompt.reference_boxes for prompt in prompts):
        yield "the models write boxes in different ways, so only the metrics of boxes (--metrics box) compare them"
    num_bare = sum(not prompt.references for prompt in prompts)
    if num_bare:
        yield f"{num_bare} of {len(prompts)} questions have no reference and are not scored"


def _compare_eval_losses(candidates: Sequence[Candidate]) -> Iterator[str]:
    """A warning if the runs' eval losses, which are in one chart, are of other examples or inputs."""
    inputs = {"model", *ProcessorSettings.model_fields, *(f"data.{name}" for name in DataSettings.model_fields)}
    inputs.remove("data.group_by_image")
    names = [name for name, _ in _find_differing_settings(candidates) if name in inputs]
    hashes = {read_examples_hash(candidate.run.manifest) for candidate in candidates if candidate.run}
    if not names and len(hashes - {None}) > 1:
        names = ["the content of their data"]
    if names:
        yield f"the eval losses of the runs cannot be compared, because these differ: {', '.join(names)}"


def _build_charts(candidates: Sequence[Candidate]) -> list[Chart]:
    """Loss, eval loss and learning rate of the runs that have a log."""
    logs = [
        (candidate.name, run_log.read_log(candidate.run.log) if candidate.run and candidate.run.log.is_file() else [])
        for candidate in candidates
    ]
    charts: list[Chart] = []
    for name in ("loss", "eval loss", "learning rate"):
        kind, field = run_log.CURVES[name]
        charts += build_overlay(
            name, [Curve(candidate, run_log.select_series(records, kind, field)) for candidate, records in logs]
        )
    return charts


def _find_differing_settings(candidates: Sequence[Candidate]) -> list[tuple[str, tuple[str, ...]]]:
    """(setting, value of each candidate) where two known values differ."""
    settings = [candidate.training_settings for candidate in candidates]
    names = dict.fromkeys(name for known in settings for name in known)
    rows = [(name, tuple(known.get(name, "–") for known in settings)) for name in names]
    return [(name, values) for name, values in rows if len(set(values) - {"–"}) > 1]
