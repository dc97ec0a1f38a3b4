"""`evaluate`: answers held against references, as a table with intervals and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from lorgnette import config, data
from lorgnette.commands.compare_candidates import BASE, Contender, contenders, prompts_of
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Weights
from lorgnette.io.atomic import write_json
from lorgnette.io.paths import must_be_writable
from lorgnette.metrics.eval_prompts import Question, examples_of, questions
from lorgnette.metrics.held_out import names_of, shown
from lorgnette.metrics.registry import CAPTION, METRICS
from lorgnette.metrics.report import Measured, measured, style_rows, wanted
from lorgnette.report.console import Terminal
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.resolve import local

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


def evaluate(
    who: Path | str,
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
) -> Measured:
    """Answers of `who` (an adapter, a run, `base`, a model, a file of answers) to a data file's questions, scored: a
    table is printed; predictions.jsonl and scores.json are written to the folder `out`.

    metrics: names of groups (caption, latex, demo) and of metrics, with commas; default: what the run was scored by,
    or caption's.
    """
    terminal, source = Terminal(console), Path(source)
    folder = _free(Path(out), source) if out else None
    [side] = contenders([str(who)], model, terminal)
    names = wanted(metrics, usual([side]))
    asked = asked_questions([side], source, prompt=prompt, rows=rows, images_from=images_from)
    for note in side.looked_over(asked):
        terminal.warn(note)
    judged = [question for question in asked if question.references]
    if not judged:
        raise LorgnetteError("no answer to hold a prediction against", where=str(source), remedy="add the references")
    if len(judged) < len(asked):
        terminal.warn(f"{len(asked) - len(judged)} of {len(asked)} questions have no reference and are not scored")
    sampling = Sampling(max_new_tokens=max_new_tokens, batch_size=batch_size)
    texts = side.answers(asked, sampling, terminal, Weights(device))
    found = measured(names, asked, [texts])
    for line in _lines(found):
        typer.echo(line)
    if folder is not None:
        write_predictions(folder / PREDICTIONS, _rows(asked, texts, untuned=side.name == BASE))
        write_json(folder / SCORES, _scores(found, side, source))
        terminal.say(f"written    {folder / PREDICTIONS}, {folder / SCORES}")
    return found


def asked_questions(
    sides: Sequence[Contender], source: Path, *, prompt: str | None, rows: int | None, images_from: str | None
) -> list[Question]:
    """What they are asked: data that does not say it is asked as the first of them was in training."""
    asking = prompt if prompt is not None else next(iter(prompts_of(sides)), data.PROMPT)
    asked = questions(examples_of(source, asking, rows=rows, images_from=local(images_from)))
    if not asked:
        raise LorgnetteError("there is nothing to ask", where=str(source), remedy="name data that has rows")
    return asked


def usual(sides: Sequence[Contender]) -> tuple[str, ...]:
    """The metrics of the first run among them that was scored; else caption's."""
    runs = [side.run for side in sides if side.run is not None]
    said = [config.load(config.read_recipe(run.config), where=str(run.config)).predict.metrics for run in runs]
    return next((names for names in map(names_of, said) if names), CAPTION)


def _free(out: Path, source: Path) -> Path:
    if out.is_file():
        raise UsageError("a file, not a folder", where=f"--out {out}", remedy="name a folder for the two files")
    for name in (PREDICTIONS, SCORES):
        must_be_writable(out / name, source)
        if (out / name).exists():
            raise UsageError("something is there already", where=f"--out {out}", remedy="name a new folder")
    return out


def _rows(asked: Sequence[Question], texts: Sequence[str], *, untuned: bool) -> list[PredictionRow]:
    return [
        PredictionRow(
            one.example.id, one.pictures, one.prompt, one.references,
            base=text if untuned else None, tuned=None if untuned else text,
        )
        for one, text in zip(asked, texts, strict=True)
    ]  # fmt: skip


def _lines(found: Measured) -> list[str]:
    """The table; style beside that of the references."""
    styles = [found.styles[0], *([found.reference_style] if found.reference_style else [])]
    scores = [f"{one.name:<20} {shown(one)}{(one.note and f'  ({one.note})') or ''}" for one in found.scores[0]]
    head = f"{'':<28} {'answers':>24} {'references':>24}"
    return [
        *scores,
        "",
        head,
        *(f"{name:<28} " + " ".join(f"{v:>24}" for v in row) for name, row in style_rows(styles)),
    ]


def _scores(found: Measured, side: Contender, source: Path) -> dict[str, Any]:
    """scores.json: intervals are 95 % bootstrap; per_example in the order of `scored`, the lines of predictions.jsonl
    (from 0) that have a reference."""
    return {
        "answered_by": side.name,
        "data": str(source),
        "settings": side.settings,
        "scored": list(found.judged),
        "metrics": {
            one.name: {
                "value": one.value,
                "interval": one.interval,
                "better": METRICS[one.name].better,
                "note": one.note,
                "per_example": one.per_example,
            }
            for one in found.scores[0]
        },
        "style": {
            "answers": asdict(found.styles[0]),
            "references": asdict(found.reference_style) if found.reference_style else None,
        },
    }
