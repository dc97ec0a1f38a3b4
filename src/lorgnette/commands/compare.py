"""`compare`: one page that sets the answers of several side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette.commands.compare_candidates import BASE, Contender, contenders, halves, is_answers, prompts_of
from lorgnette.commands.evaluate import asked_questions, usual
from lorgnette.errors import UsageError
from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Weights
from lorgnette.io.paths import must_be_writable
from lorgnette.metrics.bootstrap import Difference
from lorgnette.metrics.eval_prompts import Question
from lorgnette.metrics.held_out import direction
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.report import Measured, meaning, measured, style_rows, verdict, wanted
from lorgnette.metrics.score import Score
from lorgnette.report import run_log
from lorgnette.report.console import Terminal
from lorgnette.report.html.charts import Chart, Curve, overlay
from lorgnette.report.html.comparison import Card, Cell, Comparison, Gap, MetricRow, write_comparison
from lorgnette.report.run_dir import next_free
from lorgnette.training.run_report import CURVES


def compare(
    *those: Path | str,
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
    """A page of what each of `those` says to the questions of a data file, which is the last of them. Each is `base`,
    an adapter or its run, a model, or a file of answers; one alone is compared with its base.

    out: the page; what stands there is replaced, and said to be. Default: compare.html, or the next name that is free.
    """
    terminal = Terminal(console)
    if len(those) < 2:
        raise UsageError("nothing to ask", where="compare", remedy="name an adapter and a data file")
    words, source = [str(one) for one in those[:-1]], Path(those[-1])
    page = Path(out) if out else next_free(Path(), "compare", ".html")
    replaced = page.is_file()
    must_be_writable(page, source, *(Path(word) for word in words if is_answers(word)))
    sides = _sides(words, model, terminal)
    names = wanted(metrics, usual(sides))
    asked = asked_questions(sides, source, prompt=prompt, rows=rows, images_from=images_from)
    notes = list(_notes(sides, asked))
    for note in notes:
        terminal.warn(note)
    sampling = Sampling(max_new_tokens=max_new_tokens, batch_size=batch_size)
    weights = Weights(device)
    answers = [side.answers(asked, sampling, terminal, weights) for side in sides]
    found = measured(names, asked, answers)
    write_comparison(page, _page(sides, source, asked, answers, found, notes))
    terminal.say(_summary(sides, found, len(asked)))
    terminal.say(f"page       {page}{', in the place of the one that was there' if replaced else ''}")
    return page


def _sides(words: list[str], model: str | None, terminal: Terminal) -> list[Contender]:
    if len(words) == 1 and is_answers(words[0]):
        return halves(Path(words[0]))
    if words == [BASE]:
        raise UsageError("nothing to compare it with", where=BASE, remedy="name an adapter")
    return contenders(words if len(words) > 1 else [BASE, *words], model, terminal)


def _page(
    sides: Sequence[Contender],
    source: Path,
    asked: Sequence[Question],
    answers: Sequence[Sequence[str]],
    found: Measured,
    notes: Sequence[str],
) -> Comparison:
    styles = [*found.styles, *([found.reference_style] if found.reference_style else [])]
    return Comparison(
        title="Side by side",
        summary=_summary(sides, found, len(asked)),
        sides=tuple(side.name for side in sides),
        cards=[
            Card(question.example.id, question.pictures, question.prompt, question.references, texts)
            for question, *given in zip(asked, *answers, strict=True)
            for texts in [tuple(given)]
        ],
        metrics=[_row(place, found, len(asked)) for place in range(len(found.names))] if found.scores else (),
        chosen=found.main,
        style=[(name, row if found.reference_style else (*row, "–")) for name, row in style_rows(styles)],
        charts=_charts(sides),
        settings=_differing(sides),
        facts=[("Data", str(source)), ("Questions", str(len(asked))), ("With references", str(len(found.judged)))],
        notes=notes,
    )


def _notes(sides: Sequence[Contender], asked: Sequence[Question]) -> Iterator[str]:
    """What a reader must know before believing the scores: answers may come from elsewhere, a side may be asked
    otherwise than in its training, and not all may be scored. Raises LorgnetteError where a file lacks answers."""
    for side in sides:
        yield from side.looked_over(asked)
    trained, now = prompts_of(sides), {question.prompt for question in asked}
    if len(trained) > 1:
        asking = repr(asked[0].prompt) if len(now) == 1 else "what the data says"
        yield f"trained with different prompts ({', '.join(map(repr, trained))}); all are asked {asking}"
    bare = sum(not question.references for question in asked)
    if bare:
        yield f"{bare} of {len(asked)} questions have no reference and are not scored"


def _row(place: int, found: Measured, cards: int) -> MetricRow:
    name, sides = found.names[place], range(len(found.scores))
    scores = [found.scores[side][place] for side in sides]
    note = next((score.note for score in scores if score.note), "")
    each: tuple[tuple[float | None, ...], ...] = ()
    if all(score.value is not None for score in scores):
        each = tuple(_spread(score.per_example, found.judged, cards) for score in scores)
    cells = tuple(
        _cell(scores[side], [(over, found.gaps[side, over][place]) for over in sides if over != side] if each else [])
        for side in sides
    )
    return MetricRow(name, meaning(name), METRICS[name].better, cells, each, note)


def _cell(score: Score, gaps: Sequence[tuple[int, Difference]]) -> Cell:
    if score.value is None:
        return Cell("–")
    interval = f"{score.interval[0]:.3f} to {score.interval[1]:.3f}" if score.interval else ""
    return Cell(f"{score.value:.3f}", interval, tuple(_gap(over, gap) for over, gap in gaps))


def _gap(over: int, gap: Difference) -> Gap:
    assert gap.value is not None
    if gap.interval is None:
        return Gap(over, _signed(gap.value), "", verdict(gap))
    low, high = map(_signed, gap.interval)
    return Gap(over, f"{_signed(gap.value)}, p {gap.chance:.3f}", f"{low} to {high}", verdict(gap))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _spread(values: Sequence[float], judged: Sequence[int], cards: int) -> tuple[float | None, ...]:
    """A value for every card, None for those without a reference."""
    at = dict(zip(judged, values, strict=True))
    return tuple(at.get(card) for card in range(cards))


def _summary(sides: Sequence[Contender], found: Measured, asked: int) -> str:
    """What the page says in a sentence: the last of them against the first, in the metric that says most."""
    said = f"{asked} {'question' if asked == 1 else 'questions'}, {len(sides)} answers each."
    if not found.main:
        return said
    place, last = found.names.index(found.main), len(sides) - 1
    gap, sign = found.gaps[last, 0][place], direction(found.main)
    between = _gap(0, gap)
    sure = f" ({between.interval})" if between.interval else ""
    closer, further = (sum(turn * sign * value > 0 for value in gap.per_example) for turn in (1, -1))
    return (
        f"{said} In {found.main}, {sides[last].name} differs from {sides[0].name} by {between.text}{sure}: closer to "
        f"the reference in {closer}, further in {further}."
    )


def _charts(sides: Sequence[Contender]) -> list[Chart]:
    """Loss, eval loss and learning rate of the runs whose log is at hand."""
    runs = [(side.name, side.run) for side in sides]
    logs = [(name, run_log.read(run.log) if run is not None and run.log.is_file() else []) for name, run in runs]
    drawn: list[Chart] = []
    for name in ("loss", "eval loss", "lr"):
        kind, value = CURVES[name]
        drawn += overlay(name, [Curve(side, run_log.series(records, kind, value)) for side, records in logs])
    return drawn


def _differing(sides: Sequence[Contender]) -> list[tuple[str, tuple[str, ...]]]:
    """The settings in which those that have any differ."""
    known = [side.settings for side in sides]
    names = dict.fromkeys(name for settings in known for name in settings)
    rows = [(name, tuple(settings.get(name, "–") for settings in known)) for name in names]
    return [(name, values) for name, values in rows if len(set(values) - {"–"}) > 1]
