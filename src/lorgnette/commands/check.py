"""`check`: the pre-flight over a whole data set, as a training with these settings would meet it. No torch, no weights,
nothing downloaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.io.paths import check_writable
from lorgnette.metrics.held_out import check_best_model_metric, expand_metric_names, get_best_model_metric
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_stats import TokenStats, compute_token_stats
from lorgnette.report.check_report import CheckReport, SplitSummary, format_histogram, list_facts, list_warnings
from lorgnette.report.console import Terminal
from lorgnette.report.html.check_page import write_check_page
from lorgnette.resolve import check_local_images, find_cached_model, resolve_images_folder
from lorgnette.types import Example, Finding


def check(
    source: Path | str,
    *,
    settings: Settings | None = None,
    prompt: str | None = None,
    rows: int | None = None,
    name: str | None = None,
    images_from: str | None = None,
    look_alikes: bool = True,
    out: Path | str | None = None,
    console: Console | None = None,
) -> CheckReport:
    """Look a data set over; say what is there, and name every row that would stop a training or is worth a look.

    chosen: the settings to check by: the split, the token budget, the model whose tokenizer counts. prompt, rows and
    images_from go before theirs. looks: also compare the pictures' looks, which decodes each at a fraction. out: a
    page. Nothing is fetched: a model that is not on this machine means that tokens are not counted, and it is said.
    Raises UsageError for a metric that a training would refuse: one there is not at once, one that means nothing for
    what is held out when all else is told.
    """
    terminal = Terminal(console)
    settings = _apply_options(settings or Settings(), prompt, rows, images_from)
    source = Path(source)
    get_best_model_metric(settings)
    expand_metric_names(settings.predict.metrics)
    if out is not None:
        check_writable(Path(out), source, *([settings.data.test] if settings.data.test else []))
    seen = _scan(source, settings, name, settings.data.max_rows, look_alikes)
    test = _scan(settings.data.test, settings, None, None, look_alikes) if settings.data.test else None
    whole = seen if test is None else seen.merge(test)
    same = data.map_identical_files(whole.image_infos, whole.image_infos)
    trained, held, why_none = _split(seen, test, same, settings)
    tokens, unfit, unchecked = _count_tokens([*trained, *held], whole.image_infos, settings)
    compared = sum(look.signature is not None for look in whole.image_infos.values())
    if not look_alikes:
        unchecked.append("look-alikes: left out, as asked")
    elif compared < len(whole.image_infos):
        unchecked.append(f"look-alikes among {len(whole.image_infos) - compared} huge pictures that are no JPEGs")
    found = CheckReport(
        title=source.name,
        data_report=data.build_report(whole),
        findings=[
            *(Finding("unusable", problem) for problem in whole.problems),
            *unfit,
            *data.find_duplicates(trained, held, same, data.compute_full_signatures(whole.image_infos, same)),
            *data.find_row_warnings([*trained, *held], whole.image_infos, settings.image_size),
        ],
        split=SplitSummary.from_examples(trained, held, why_none),
        scripts=data.count_scripts([*trained, *held]),
        token_stats=tokens,
        num_compared=compared,
        skipped_checks=unchecked,
    )
    _print_report(found, source, terminal)
    if out is not None:
        write_check_page(Path(out), found)
        terminal.print(f"page       {out}")
    check_best_model_metric(settings, held)
    return found


def _apply_options(chosen: Settings, prompt: str | None, rows: int | None, images_from: str | None) -> Settings:
    given = {"prompt": prompt, "rows": rows, "images_from": images_from}
    told = {name: value for name, value in given.items() if value is not None}
    check_local_images(
        images_from
    )  # the settings' own may be an address: of the pictures of a data set that is on a hub
    return chosen.model_copy(update={"data": chosen.data.model_copy(update=told)})


def _scan(path: Path, chosen: Settings, name: str | None, rows: int | None, looks: bool) -> data.ScanResult:
    pictures = resolve_images_folder(chosen)
    read = data.read(path, prompt=chosen.data.prompt, max_rows=rows, name=name, images_from=pictures)
    return data.scan(read, with_signatures=looks)


def _split(
    seen: data.ScanResult, test: data.ScanResult | None, same: Mapping[Path, Path], chosen: Settings
) -> tuple[Sequence[Example], Sequence[Example], str]:
    """(trained on, held out, why none is)."""
    if test is not None:
        return seen.examples, test.examples, ""
    try:
        return *data.train_test_split(
            seen.examples, holdout=chosen.data.holdout, split=chosen.data.split, identical_files=same
        ), ""
    except UsageError as error:
        return seen.examples, [], f"{error.message}; {error.hint}" if seen.examples else ""


def _count_tokens(
    rows: Sequence[Example], looks: Mapping[Path, data.ImageInfo], chosen: Settings
) -> tuple[TokenStats | None, list[Finding], list[str]]:
    """The rows' tokens, which rows have the wrong ones, and why nothing was counted."""
    folder = find_cached_model(chosen.model)
    if folder is None:
        return None, [], [f"tokens: {chosen.model} is not on this machine; name a model that is (model=FOLDER)"]
    encoder = Processor.from_folder(folder, chosen.processor, read_size=lambda path: looks[path].size)
    return *compute_token_stats(encoder, rows, max_new_tokens=chosen.predict.max_new_tokens), []


def _print_report(found: CheckReport, source: Path, terminal: Terminal) -> None:
    for finding in found.findings:
        if finding.is_blocking:
            terminal.error(str(finding.problem))
    for line in found.advice if found.split.failure else ():
        terminal.error(line)
    for line in list_warnings(found):
        terminal.warn(line)
    if not found.data_report.num_rows:
        terminal.warn(f"{source}: there are no rows; name a data file that has some")
    for name, value in list_facts(found):
        terminal.print(f"{name:<10} {value}")
    for line in format_histogram(found.token_stats) if found.token_stats else ():
        terminal.print(f"{'':<10} {line}")
    terminal.print(f"verdict    {found.verdict}")
