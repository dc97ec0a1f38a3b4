"""`check`: the pre-flight over a whole data set, as a training with these settings would meet it. No torch, no weights,
nothing downloaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.io.paths import must_be_writable
from lorgnette.metrics.held_out import demand_judge, judge_of, names_of
from lorgnette.processing.processor import Encoder
from lorgnette.processing.token_stats import Tokens, counted
from lorgnette.report.check_report import Parts, Preflight, facts, histogram, warnings
from lorgnette.report.console import Terminal
from lorgnette.report.html.check_page import write_preflight
from lorgnette.resolve import at_hand, local, pictures_of
from lorgnette.types import Example, Finding


def check(
    source: Path | str,
    *,
    chosen: Settings | None = None,
    prompt: str | None = None,
    rows: int | None = None,
    name: str | None = None,
    images_from: str | None = None,
    looks: bool = True,
    out: Path | str | None = None,
    console: Console | None = None,
) -> Preflight:
    """Look a data set over; say what is there, and name every row that would stop a training or is worth a look.

    chosen: the settings to check by: the split, the token budget, the model whose tokenizer counts. prompt, rows and
    images_from go before theirs. looks: also compare the pictures' looks, which decodes each at a fraction. out: a
    page. Nothing is fetched: a model that is not on this machine means that tokens are not counted, and it is said.
    Raises UsageError for a metric that a training would refuse: one there is not at once, one that means nothing for
    what is held out when all else is told.
    """
    terminal = Terminal(console)
    chosen = _with(chosen or Settings(), prompt, rows, images_from)
    source = Path(source)
    judge_of(chosen)
    names_of(chosen.predict.metrics)
    if out is not None:
        must_be_writable(Path(out), source, *([chosen.data.test] if chosen.data.test else []))
    seen = _surveyed(source, chosen, name, chosen.data.rows, looks)
    test = _surveyed(chosen.data.test, chosen, None, None, looks) if chosen.data.test else None
    whole = seen if test is None else seen.joined(test)
    same = data.identities(whole.looks, whole.looks)
    trained, held, why_none = _parts(seen, test, same, chosen)
    tokens, unfit, unchecked = _tokens([*trained, *held], whole.looks, chosen)
    compared = sum(look.sketch is not None for look in whole.looks.values())
    if not looks:
        unchecked.append("look-alikes: left out, as asked")
    elif compared < len(whole.looks):
        unchecked.append(f"look-alikes among {len(whole.looks) - compared} huge pictures that are no JPEGs")
    found = Preflight(
        title=source.name,
        report=data.report_of(whole),
        findings=[
            *(Finding("unusable", problem) for problem in whole.problems),
            *unfit,
            *data.repeats(trained, held, same, data.whole_sketches(whole.looks, same)),
            *data.oddities([*trained, *held], whole.looks, chosen.encode.size),
        ],
        parts=Parts.of(trained, held, why_none),
        scripts=data.scripts([*trained, *held]),
        tokens=tokens,
        compared=compared,
        unchecked=unchecked,
    )
    _told(found, source, terminal)
    if out is not None:
        write_preflight(Path(out), found)
        terminal.say(f"page       {out}")
    demand_judge(chosen, held)
    return found


def _with(chosen: Settings, prompt: str | None, rows: int | None, images_from: str | None) -> Settings:
    given = {"prompt": prompt, "rows": rows, "images_from": images_from}
    told = {name: value for name, value in given.items() if value is not None}
    local(images_from)  # the settings' own may be an address: of the pictures of a data set that is on a hub
    return chosen.model_copy(update={"data": chosen.data.model_copy(update=told)})


def _surveyed(path: Path, chosen: Settings, name: str | None, rows: int | None, looks: bool) -> data.Survey:
    pictures = pictures_of(chosen)
    read = data.read(path, prompt=chosen.data.prompt, rows=rows, name=name, images_from=pictures)
    return data.survey(read, sketched=looks)


def _parts(
    seen: data.Survey, test: data.Survey | None, same: Mapping[Path, Path], chosen: Settings
) -> tuple[Sequence[Example], Sequence[Example], str]:
    """(trained on, held out, why none is)."""
    if test is not None:
        return seen.examples, test.examples, ""
    try:
        return *data.parts(seen.examples, holdout=chosen.data.holdout, split=chosen.data.split, same=same), ""
    except UsageError as error:
        return seen.examples, [], f"{error.what}; {error.remedy}" if seen.examples else ""


def _tokens(
    rows: Sequence[Example], looks: Mapping[Path, data.Look], chosen: Settings
) -> tuple[Tokens | None, list[Finding], list[str]]:
    """The rows' tokens, which rows have the wrong ones, and why nothing was counted."""
    folder = at_hand(chosen.model)
    if folder is None:
        return None, [], [f"tokens: {chosen.model} is not on this machine; name a model that is (model=FOLDER)"]
    encoder = Encoder.of_folder(folder, chosen.encode, size_of=lambda path: looks[path].size)
    return *counted(encoder, rows, longest_answer=chosen.predict.max_new_tokens), []


def _told(found: Preflight, source: Path, terminal: Terminal) -> None:
    for finding in found.findings:
        if finding.stops:
            terminal.fail(str(finding.problem))
    for line in found.advice if found.parts.why_none else ():
        terminal.fail(line)
    for line in warnings(found):
        terminal.warn(line)
    if not found.report.rows:
        terminal.warn(f"{source}: there are no rows; name a data file that has some")
    for name, value in facts(found):
        terminal.say(f"{name:<10} {value}")
    for line in histogram(found.tokens) if found.tokens else ():
        terminal.say(f"{'':<10} {line}")
    terminal.say(f"verdict    {found.verdict}")
