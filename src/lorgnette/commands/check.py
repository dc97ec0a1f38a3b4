"""`check`: checks a whole data set as training with these settings would use it.

Needs no torch and no weights, and downloads no model; a data set on a hub is downloaded as for training.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from lorgnette import data
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.io.paths import check_writable, split_sources
from lorgnette.metrics.registry import check_best_model_metric, expand_metric_names, get_best_model_metric
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_stats import TokenStats, compute_token_stats
from lorgnette.report.check_report import CheckReport, SplitSummary, print_report
from lorgnette.report.console import Terminal
from lorgnette.report.html.check_page import write_check_page
from lorgnette.resolve import check_local_images, find_cached_model, resolve_data, resolve_images_folder
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
    """Check every row, print what stops training or needs attention, and write an HTML report to `out`.

    settings: the split, the token limit, the model whose tokenizer counts. prompt, rows and images_from override them.
    look_alikes: also compare the images' pixels, decoded at low resolution. If the model is not on this machine, tokens
    are not counted. Raises UsageError for a metric that training refuses: for an unknown name at once, for one that is
    undefined for the held-out rows at the end.
    """
    terminal = Terminal(console)
    is_on_hub, source = is_hub_address(str(source)), Path(source)
    if not is_on_hub:
        check_local_images(images_from)  # the settings may have a URL, for data sets on a hub
    settings = _update_data(settings or Settings(), prompt=prompt, max_rows=rows, images_from=images_from)
    get_best_model_metric(settings)
    expand_metric_names(settings.predict.metrics)
    if out is not None:
        check_writable(Path(out), source, *([settings.data.test] if settings.data.test else []))
    # Read all rows and images.
    max_rows = settings.data.max_rows
    own_settings = _update_data(settings, path=Path(f"{source}:{name}") if name and is_on_hub else source)
    source = resolve_data(own_settings, terminal) or source
    if is_on_hub:
        settings, name, max_rows = own_settings, None, None
    scan = _scan(source, settings, name, max_rows, look_alikes)
    test_scan = _scan(settings.data.test, settings, None, None, look_alikes) if settings.data.test else None
    full_scan = scan if test_scan is None else scan.merge(test_scan)
    infos = full_scan.image_infos
    # Split as training does, and count tokens.
    identical_files = data.map_identical_files(infos, infos)
    train, held_out, failure = _split(scan, test_scan, identical_files, settings)
    examples = [*train, *held_out]
    token_stats, token_findings, skipped = _count_tokens(examples, infos, settings)
    num_compared = sum(info.signature is not None for info in infos.values())
    if not look_alikes:
        skipped.append("look-alikes: switched off")
    elif num_compared < len(infos):
        skipped.append(f"look-alikes among {len(infos) - num_compared} very large images that are not JPEGs")
    signatures = data.compute_full_signatures(infos, identical_files)
    report = CheckReport(
        title=", ".join(path.name for path in split_sources(source)),
        data_report=data.build_report(full_scan),
        findings=[
            *(Finding("unusable", problem) for problem in full_scan.problems),
            *full_scan.remarks,
            *token_findings,
            *data.find_duplicates(train, held_out, identical_files, signatures),
            *data.find_row_warnings(examples, infos, settings.image_size),
        ],
        split=SplitSummary.from_examples(train, held_out, failure),
        scripts=data.count_scripts(examples),
        token_stats=token_stats,
        num_compared=num_compared,
        skipped_checks=skipped,
    )
    print_report(report, source, terminal)
    if out is not None:
        write_check_page(Path(out), report)
        terminal.print(f"report     {out}")
    check_best_model_metric(settings, held_out)
    return report


def _update_data(settings: Settings, **options: object) -> Settings:
    update = {name: value for name, value in options.items() if value is not None}
    return settings.model_copy(update={"data": settings.data.model_copy(update=update)})


def _scan(path: Path, settings: Settings, name: str | None, max_rows: int | None, look_alikes: bool) -> data.ScanResult:
    images_from = resolve_images_folder(settings)
    prompt, trim = settings.data.prompt, settings.data.trim
    rows = data.read(path, prompt=prompt, max_rows=max_rows, name=name, images_from=images_from, trim=trim)
    return data.scan(rows, with_signatures=look_alikes, keeps_shape=settings.keeps_shape)


def _split(
    scan: data.ScanResult, test_scan: data.ScanResult | None, identical_files: Mapping[Path, Path], settings: Settings
) -> tuple[Sequence[Example], Sequence[Example], str]:
    """(training examples, held-out examples, why none can be held out)."""
    if test_scan is not None:
        return scan.examples, test_scan.examples, ""
    rows, holdout, split = scan.examples, settings.data.holdout, settings.data.split
    try:
        return *data.train_test_split(rows, holdout=holdout, split=split, identical_files=identical_files), ""
    except UsageError as error:
        return rows, [], f"{error.message}; {error.hint}" if rows else ""


def _count_tokens(
    examples: Sequence[Example], infos: Mapping[Path, data.ImageInfo], settings: Settings
) -> tuple[TokenStats | None, list[Finding], list[str]]:
    """(token counts, findings, why tokens are not counted)."""
    folder = find_cached_model(settings.model)
    if folder is None:
        return None, [], [f"tokens: {settings.model} is not on this machine; name a model that is (model=FOLDER)"]
    processor = Processor.from_folder(folder, settings.processor, read_size=lambda path: infos[path].size)
    return *compute_token_stats(processor, examples, max_new_tokens=settings.predict.max_new_tokens), []
