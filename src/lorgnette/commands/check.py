"""`check`: checks a whole data set as training with these settings would use it.

Needs no torch and no weights, and downloads no model; a data set on a hub is downloaded as for training.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lorgnette import data as data_sets
from lorgnette.commands.arguments import SettingsLike, build_settings, require_data
from lorgnette.commands.settings_in_words import describe_settings, list_changed_settings
from lorgnette.config import Settings
from lorgnette.data.example_table import ExampleTable
from lorgnette.engine.select import select_engine
from lorgnette.errors import UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.io.paths import check_writable, split_sources
from lorgnette.io.shell import format_command
from lorgnette.metrics.registry import check_best_model_metric, expand_metric_names, get_best_model_metric
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.quantization import list_quantization_remarks, select_quantization
from lorgnette.models.registry import HfConfig, find_family
from lorgnette.models.released_models import find_size
from lorgnette.planning.gpus import count_gpus
from lorgnette.processing.processor import Processor, list_size_remarks
from lorgnette.processing.token_stats import TokenCounts, count_tokens
from lorgnette.report.check_report import CheckReport, SplitSummary, print_report
from lorgnette.report.console import Terminal
from lorgnette.report.html.check_page import write_check_page
from lorgnette.resolve import (
    check_local_images,
    complete_name,
    find_cached_model,
    find_model_config,
    parse_model_name,
    read_rows,
    resolve_data,
    resolve_images_folder,
)
from lorgnette.startup import freeze_gc
from lorgnette.training.initial_adapter import check_initial_adapter, inherit_settings
from lorgnette.training.start_warnings import explain_idle_gpus, explain_missing_device, list_start_warnings
from lorgnette.training.step_count import StepCount
from lorgnette.types import Example, Finding, Problem


def check(
    data: Path | str | Settings | None = None,
    *,
    settings: SettingsLike = None,
    prompt: str | None = None,
    rows: int | None = None,
    name: str | None = None,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    look_alikes: bool = True,
    recipe: str | Path | None = None,
    out: Path | str | None = None,
    gpus: int | str | None = None,
    console: Console | None = None,
    **values: Any,
) -> CheckReport:
    """Check every row, print what stops training or needs attention, and write an HTML report to `out`.

    data, recipe, settings, values: as in `train`. They give the split, the token limit, the model whose tokenizer
    counts. prompt, rows and images_from override them.
    look_alikes: also compare the images' pixels, decoded at low resolution. gpus: as in `plan`. If the model is not on
    this machine, tokens are not counted. Raises UsageError for a metric that training refuses: for an unknown name at
    once, for one that is undefined for the held-out rows at the end.
    """
    terminal = Terminal(console)
    name_of_recipe = "" if recipe is None else str(recipe)
    recipe = None if isinstance(settings, Settings) else recipe  # these are the recipe's settings
    settings = build_settings(data, recipe=recipe, settings=settings, values=values, terminal=terminal)
    num_gpus = count_gpus(gpus)
    source = require_data(settings)
    is_on_hub = is_hub_address(str(source))
    if not is_on_hub:
        check_local_images(images_from)  # the settings may have a URL, for data sets on a hub
    settings = _update_data(
        settings, prompt=prompt, max_rows=rows, images_from=images_from, image_column=image_column,
        caption_column=caption_column,
    )  # fmt: skip
    settings = inherit_settings(settings, terminal)
    if settings.adapter is not None and (model := find_cached_model(settings.model, needs_weights=True)):
        check_initial_adapter(settings, BaseCheckpoint.from_folder(model), terminal)
    hf_config = _read_model_config(settings)
    get_best_model_metric(settings)
    expand_metric_names(settings.predict.metrics)
    if out is not None:
        check_writable(Path(out), source, *([settings.data.test] if settings.data.test else []), is_page=True)
    # Read all rows and images.
    typed = source
    max_rows = settings.data.max_rows
    own_settings = _update_data(settings, path=Path(f"{source}:{name}") if name and is_on_hub else source)
    source = resolve_data(own_settings, terminal) or source
    if is_on_hub:
        settings, name, max_rows = own_settings, None, None
    with freeze_gc():
        source_rows = read_rows(settings, source, terminal, max_rows=max_rows, name=name)
        scan, test_scan = _scan(source_rows, settings, look_alikes, terminal), None
        if settings.data.test is not None:
            test_scan = _scan(read_rows(settings, settings.data.test, terminal), settings, look_alikes, terminal)
        full_scan = scan if test_scan is None else scan.merge(test_scan)
        infos = full_scan.image_infos
        # Split as training does. Images and rows are built once, because each is used many times.
        full_scan.examples.images.build_all()
        identical_files = data_sets.map_identical_files(infos, infos)
        *parts, failure = _split(scan, test_scan, identical_files, settings)
        train, held_out = (part.build_all() for part in parts)
    # Count tokens.
    examples = [*train, *held_out]
    processor = _open_processor(settings, infos)
    counts, skipped = _count_tokens(processor, examples, settings, terminal, is_known=hf_config is not None)
    num_compared = sum(info.signature is not None for info in infos.iter_infos())
    if not look_alikes:
        skipped.append("look-alikes: switched off")
    elif num_compared < len(infos):
        skipped.append(f"look-alikes among {len(infos) - num_compared} very large images that are not JPEGs")
    signatures = data_sets.compute_full_signatures(infos, identical_files)
    num_trainable = len(train) - _count_unusable(train, counts.findings)
    token_side = processor.image_processor.token_side if processor else _find_token_side(settings.model)
    of_train = [sum(numbers[: len(train)]) for numbers in (counts.num_skipped, counts.num_flat)]
    remarks = processor.list_remarks(*of_train) if processor else _list_size_remarks(settings, token_side)
    is_auto = settings.data.holdout == "auto" and settings.data.test is None
    step_count = StepCount(num_trainable, settings.train)
    report = CheckReport(
        title=", ".join(path.name for path in split_sources(source)),
        data_report=data_sets.build_report(full_scan, examples),
        findings=[
            *(Finding("unusable", problem, _find_image(problem)) for problem in full_scan.problems),
            *full_scan.remarks,
            *counts.findings,
            *data_sets.find_duplicates(train, held_out, identical_files, signatures),
            *data_sets.find_row_warnings(examples, infos, settings.image_size),
        ],
        split=SplitSummary.from_examples(train, held_out, failure, is_auto=is_auto),
        scripts=data_sets.count_scripts(examples),
        token_stats=counts.stats,
        num_compared=num_compared,
        skipped_checks=skipped,
        basis=describe_settings(settings, examples, name_of_recipe, token_side),
        skips_bad_rows=settings.data.on_bad_row == "skip",
        num_trainable=num_trainable,
        steps=step_count.describe() if num_trainable and not failure else "",
        step_advice=step_count.warning,
        setting_advice=[
            *remarks,
            *_list_model_remarks(settings, hf_config),
            *list_start_warnings(settings, [row.reference for row in examples]),
            *filter(None, [explain_missing_device(settings.device), explain_idle_gpus(settings.device, num_gpus)]),
        ],
        folders=_list_folders(full_scan, settings, split_sources(source)),
    )
    report = replace(report, next_steps=_suggest_steps(report, typed, own_settings, gpus))
    print_report(report, source, terminal)
    if out is not None:
        write_check_page(Path(out), report)
        terminal.print_result(f"report     {out}")
    check_best_model_metric(settings, held_out)
    return report


def _update_data(settings: Settings, **options: object) -> Settings:
    update = {name: value for name, value in options.items() if value is not None}
    return settings.model_copy(update={"data": settings.data.model_copy(update=update)})


def _find_image(problem: Problem) -> tuple[Path, ...]:
    """The image that a problem is about, if it is there to be looked at."""
    path = Path(problem.where)
    try:
        return (path,) if problem.where and path.is_file() and path != problem.source else ()
    except (OSError, ValueError):  # not a path, or one that this system cannot have
        return ()


def _count_unusable(train: Sequence[Example], token_findings: Sequence[Finding]) -> int:
    """The rows of the training part that cannot be encoded."""
    problems = [finding.problem for finding in token_findings if finding.is_blocking]
    broken = {(problem.source, problem.row) for problem in problems}
    return sum((row.source, row.row) in broken for row in train) if broken else 0


def _list_folders(scan: data_sets.ScanResult, settings: Settings, sources: Sequence[Path]) -> list[Path]:
    """The folders that a page leaves out of paths: those of the data files, then those of other images."""
    files = [*sources, *([settings.data.test] if settings.data.test else [])]
    folders = [path.parent for path in files] + [path for path in [resolve_images_folder(settings)] if path is not None]
    folders = [form for folder in folders for form in (folder.absolute(), folder.resolve())]
    images = [*scan.image_infos, *(Path(problem.where) for problem in scan.problems if problem.where.startswith("/"))]
    others = dict.fromkeys(path.parent for path in images)
    return list(dict.fromkeys([*folders, *(o for o in others if not any(map(o.is_relative_to, folders)))]))


def _suggest_steps(
    report: CheckReport, source: Path, settings: Settings, gpus: int | str | None
) -> list[tuple[str, str]]:
    """(purpose, command): what to do after this result."""
    words = [source, *list_changed_settings(settings, without=("data.path",))]
    with_gpus = words if gpus is None else [*words, f"gpus={gpus}"]
    if report.split.failure or not report.data_report.num_usable:
        return [("Mend the data, then check it again", format_command("check", *with_gpus))]
    if report.is_blocking:
        skip = format_command("train", *with_gpus, "data.on_bad_row=skip")
        return [
            ("Mend these rows, then check again", format_command("check", *with_gpus)),
            ("Or train without them", skip),
        ]
    return [
        ("See which tokens are trained", format_command("preview", *words)),
        ("See how long it takes, and whether it fits", format_command("plan", *with_gpus)),
        ("Train", format_command("train", *with_gpus)),
    ]


def _scan(
    rows: Iterable[Example | Problem], settings: Settings, look_alikes: bool, terminal: Terminal
) -> data_sets.ScanResult:
    with terminal.show_count("rows read") as on_rows:
        return data_sets.scan(rows, with_signatures=look_alikes, keeps_shape=settings.keeps_shape, on_rows=on_rows)


def _split(
    scan: data_sets.ScanResult,
    test_scan: data_sets.ScanResult | None,
    identical_files: Mapping[Path, Path],
    settings: Settings,
) -> tuple[ExampleTable, ExampleTable, str]:
    """(training examples, held-out examples, why none can be held out)."""
    if test_scan is not None:
        return scan.examples, test_scan.examples, ""
    rows, holdout, split = scan.examples, settings.data.holdout, settings.data.split
    try:
        return *data_sets.train_test_split(rows, holdout=holdout, split=split, identical_files=identical_files), ""
    except UsageError as error:
        return rows, rows[:0], f"{error.message}; {error.hint}" if rows else ""


def _open_processor(settings: Settings, infos: Mapping[Path, data_sets.ImageInfo]) -> Processor | None:
    """None if the model is not on this machine."""
    folder = find_cached_model(settings.model)
    if folder is None:
        return None
    return Processor.from_folder(folder, settings.processor, read_size=lambda path: infos[path].size)


def _find_token_side(model: str) -> int | None:
    """Of a known model that is not on this machine."""
    size = find_size(parse_model_name(model)[0])
    return size.token_side if size else None


def _list_size_remarks(settings: Settings, token_side: int | None) -> list[str]:
    return list_size_remarks(settings.processor, token_side) if token_side else []


def _read_model_config(settings: Settings) -> HfConfig | None:
    """What is known of the model's config.json. Raises UsageError for an engine that cannot run it."""
    hf_config = find_model_config(settings.model)
    if hf_config is not None:
        select_engine(settings, hf_config)
    return hf_config


def _list_model_remarks(settings: Settings, hf_config: HfConfig | None) -> list[str]:
    if hf_config is None:
        return []
    family = find_family(hf_config.get("model_type"))
    remarks = family.list_target_remarks(settings.lora.target_modules, settings.lora.parts)
    return remarks + list_quantization_remarks(select_quantization(settings.quantization, hf_config))


def _count_tokens(
    processor: Processor | None, examples: Sequence[Example], settings: Settings, terminal: Terminal, *, is_known: bool
) -> tuple[TokenCounts, list[str]]:
    """(token counts, what is not checked and why). is_known: whether the model is known to be supported."""
    if processor is None:
        reason = f"{complete_name(settings.model)} is not on this machine"
        unknown = [] if is_known else [f"whether this model is supported: {reason}"]
        return TokenCounts(), [*unknown, f"tokens: {reason}; name a model that is (model=FOLDER)"]
    with terminal.show_count("rows counted", len(examples)) as on_rows:
        return count_tokens(processor, examples, max_new_tokens=settings.predict.max_new_tokens, on_rows=on_rows), []
