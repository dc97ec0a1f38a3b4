"""`compare`: one HTML page with the answers of several candidates side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette.commands.compare_candidates import (
    BASE,
    Candidate,
    is_answers_file,
    list_training_prompts,
    resolve_candidates,
    split_before_after,
)
from lorgnette.commands.evaluate import load_eval_prompts, select_default_metrics
from lorgnette.errors import UsageError
from lorgnette.inference.loading import ModelCache
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.paths import check_writable
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.report import compute_report, parse_metric_names
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.html.charts import Chart, Curve, build_overlay
from lorgnette.report.html.comparison import ComparisonPage, write_comparison_page
from lorgnette.report.run_dir import find_free_path


def compare(
    *inputs: Path | str,
    out: Path | str | None = None,
    metrics: str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    rows: int | None = None,
    images_from: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Compare the answers of candidates to the prompts of a data file, on one HTML page.

    inputs: the candidates, then the data file. A candidate is `base`, a run or its adapter, a model, or a file of
    answers; a single one is compared with its base model. out: the page, replaced if it exists; default: compare.html,
    or the next free name. metrics: as in `evaluate`.
    """
    terminal = Terminal(console)
    if len(inputs) < 2:
        raise UsageError("no data to answer", where="compare", hint="name a candidate and a data file")
    names, source = [str(name) for name in inputs[:-1]], Path(inputs[-1])
    page_path = Path(out) if out else find_free_path(Path(), "compare", ".html")
    is_replaced = page_path.is_file()
    check_writable(page_path, source, *(Path(name) for name in names if is_answers_file(name)))
    candidates = _resolve_inputs(names, model, terminal)
    metric_names = parse_metric_names(metrics, select_default_metrics(candidates))
    prompts = load_eval_prompts(candidates, source, prompt=prompt, rows=rows, images_from=images_from)
    notes = list(_collect_notes(candidates, prompts))
    for note in notes:
        terminal.warn(note)
    sampling = SamplingParams(max_new_tokens=max_new_tokens, batch_size=batch_size)
    model_cache = ModelCache(device)
    answers = [candidate.answer(prompts, sampling, terminal, model_cache) for candidate in candidates]
    page = ComparisonPage(
        candidates=tuple(candidate.name for candidate in candidates),
        source=source,
        prompts=prompts,
        answers=answers,
        report=compute_report(metric_names, prompts, answers),
        charts=_build_charts(candidates),
        settings=_find_differing_settings(candidates),
        notes=notes,
    )
    write_comparison_page(page_path, page)
    terminal.print(page.summary)
    terminal.print(f"report     {page_path}{' (replaced)' if is_replaced else ''}")
    return page_path


def _resolve_inputs(names: list[str], model: str | None, terminal: Terminal) -> list[Candidate]:
    if len(names) == 1 and is_answers_file(names[0]):
        return split_before_after(Path(names[0]))
    if names == [BASE]:
        raise UsageError("nothing to compare with", where=BASE, hint="name an adapter")
    return resolve_candidates(names if len(names) > 1 else [BASE, *names], model, terminal)


def _collect_notes(candidates: Sequence[Candidate], prompts: Sequence[EvalPrompt]) -> Iterator[str]:
    """Warnings: answers matched by name, different training prompts, prompts without references. Raises LorgnetteError
    if a file lacks answers."""
    for candidate in candidates:
        yield from candidate.check_saved_answers(prompts)
    training_prompts, texts = list_training_prompts(candidates), {prompt.text for prompt in prompts}
    if len(training_prompts) > 1:
        used = repr(prompts[0].text) if len(texts) == 1 else "the data's prompts"
        yield f"trained with different prompts ({', '.join(map(repr, training_prompts))}); all are asked {used}"
    num_bare = sum(not prompt.references for prompt in prompts)
    if num_bare:
        yield f"{num_bare} of {len(prompts)} questions have no reference and are not scored"


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
