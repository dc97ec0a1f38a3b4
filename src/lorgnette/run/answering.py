"""`predict` and `compare`: answers with and without an adapter, as lines or as a page."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import typer
from rich.console import Console

from lorgnette import data
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.predict.generate import Sampling
from lorgnette.report.page import Page, write_page
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.report.terminal import Terminal
from lorgnette.run.opened import Asked, Opened, enough_memory
from lorgnette.types import Example, Problem


def predict(
    source: Path | str,
    *,
    adapter: Path | str | None = None,
    model: str | None = None,
    prompt: str | None = None,
    both: bool = False,
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
        _must_be_writable(out, source)
    terminal = Terminal(console)
    asked = _asked(model, adapter, terminal)
    if prompt is None:
        prompt = asked.contract.prompt if asked.contract else data.PROMPT
    examples = examples_of(source, prompt)
    rows = answered(
        asked.opened(device), examples, Sampling(**(sampling or {})), terminal,
        base=both or adapter is None, tuned=adapter is not None, smaller="a smaller --batch-size needs less",
    )  # fmt: skip
    for row in rows:
        typer.echo(_line(row, both))
    if out is not None:
        write_predictions(out, rows)
    return rows


def compare(
    adapter: Path | str,
    source: Path | str,
    *,
    out: Path | str = Path("compare.html"),
    model: str | None = None,
    rows: int | None = None,
    max_new_tokens: int = 128,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """The page of a data file's pictures with reference, untuned and tuned answer."""
    terminal = Terminal(console)
    adapter, source, out = Path(adapter), Path(source), Path(out)
    _must_be_writable(out, source)
    asked = _asked(model, adapter, terminal)
    assert asked.contract is not None  # an adapter was asked for
    examples = examples_of(source, asked.contract.prompt, rows)
    found = answered(asked.opened(device), examples, Sampling(max_new_tokens=max_new_tokens), terminal)
    facts = [("Base model", asked.base), ("Adapter", str(adapter)), ("Data", str(source))]
    summary = f"{len(found)} examples, answered without and with the adapter."
    settings = asked.contract.model_dump(mode="json", exclude={"chat_template"})
    write_page(out, Page("Before and after", summary=summary, facts=facts, settings=settings, rows=found))
    terminal.say(f"page       {out}")
    return out


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
    """Every example with the answers that were asked for, in order. smaller: what to do where memory runs out."""
    texts: dict[str, list[str]] = {}
    for name, wanted, adapter in (("before", base, None), ("after", tuned, "tuned")):
        if wanted:
            with terminal.bar(name, len(examples)) as advance, enough_memory(smaller):
                given = opened.answers(examples, sampling, adapter=adapter, seen=advance)
                texts[name] = [prediction.text for prediction in given]
    return [
        PredictionRow(
            id=example.id,
            pictures=tuple(picture.path for picture in example.pictures),
            prompt="\n".join(turn.text for turn in example.prompt.turns if turn.role == "user"),
            reference=example.reference,
            base=texts["before"][i] if base else None,
            tuned=texts["after"][i] if tuned else None,
        )
        for i, example in enumerate(examples)
    ]


def _asked(model: str | None, adapter: Path | None, terminal: Terminal) -> Asked:
    asked = Asked.of(model, adapter, terminal)
    if asked.contract and not asked.contract.known:
        height, width = asked.contract.encode.size or (0, 0)
        terminal.warn(
            f"{adapter} does not say what it was trained with (no lorgnette.json): pictures are taken at "
            f"{height}×{width}, as the tutorial trains, and whether {asked.base} is its base model cannot be told"
        )
    return asked


def _must_be_writable(out: Path, source: Path) -> None:
    """Before the model is asked: what it says must find a place, and not the place of what it was asked about."""
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError("the answers would overwrite what they answer", where=f"--out {out}", remedy="name another")
    if out.is_dir():
        raise UsageError("a folder, not a file", where=f"--out {out}", remedy="name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise LorgnetteError(
            f"cannot write: {error.strerror}", where=f"--out {out}", remedy="name another place"
        ) from error


def examples_of(source: Path, prompt: str, rows: int | None = None) -> list[Example]:
    """A picture or a folder asks `prompt`; a data file asks what it says. A broken row is an error here too."""
    if source.suffix.lower() in (".csv", ".json", ".jsonl", ".tar"):
        read = data.read(source, prompt=prompt, rows=rows)
        examples, broken = data.usable(read, on_bad_row="skip", where=source)
    else:
        found = list(islice(data.pictures_of(source, prompt=prompt), rows))
        examples = [row for row in found if isinstance(row, Example)]
        broken = [row for row in found if isinstance(row, Problem)]
    if broken:
        refused = data.refusal(broken, len(examples) + len(broken))
        raise LorgnetteError(refused.what, remedy="mend or remove them, and ask again")
    return examples


def _line(row: PredictionRow, both: bool) -> str:
    if not both:
        return f"{row.id}\t{json.dumps(row.tuned if row.tuned is not None else row.base, ensure_ascii=False)}"
    return f"{row.id}\n  before: {row.base}\n  after:  {row.tuned}"
