"""`train` and `resume`: everything that can be wrong is found before torch is imported and weights are read."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lorgnette import config
from lorgnette.commands.arguments import SettingsLike, as_name, build_settings, is_rows
from lorgnette.commands.settings_in_words import describe_prompt
from lorgnette.commands.write_rows import write_rows
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import remove_folder, write_json, write_text
from lorgnette.io.paths import join_sources, split_sources
from lorgnette.io.shell import format_command
from lorgnette.kernels import compile_ahead
from lorgnette.metrics.own_metric import MetricFunction, check_own_metrics, resolve_metric_names
from lorgnette.report.console import Terminal, is_silent_rank
from lorgnette.report.manifest import build_manifest
from lorgnette.report.run import Run
from lorgnette.report.run_dir import DATA_FOLDER, RunDir, find_free_path, is_written_rows
from lorgnette.report.stage_timer import StageTimer
from lorgnette.report.trackers.tracker import open_trackers
from lorgnette.resolve import portable_name, resolve_images_folder
from lorgnette.startup import freeze_gc, get_command_start, start_cuda_init
from lorgnette.training.data_module import TrainingData
from lorgnette.training.gpu_gain import describe_gain
from lorgnette.training.initial_adapter import build_manifest_entry, describe_seen_images, inherit_settings
from lorgnette.training.kernel_stage import compile_kernels_ahead, request_kernels, wait_for_kernels
from lorgnette.training.launch import NumGpus, build_rank_terminal
from lorgnette.training.ranks import Ranks, open_ranks
from lorgnette.training.step_count import StepCount
from lorgnette.training.user_callbacks import UserCallbacks

if TYPE_CHECKING:
    from lorgnette.distributed import World


def train(
    data: Any = None,
    *,
    recipe: str | Path | None = None,
    settings: SettingsLike = None,
    name: str | None = None,
    metrics: MetricFunction | str | Iterable[str | MetricFunction] | None = None,
    callbacks: Any = (),
    gpus: NumGpus = None,
    console: Console | None = None,
    **values: Any,
) -> Run:
    """Train an adapter in a new run folder, answer the held-out prompts before and after, write the report.

        run = lorgnette.train("captions.csv", model="Qwen2-VL-2B-Instruct", epochs=3, learning_rate=1e-4)

    data: a data file or folder in any supported format, a list of them, `hf:NAME`; or rows in memory: dicts such as
    {"image": PIL.Image, "caption": "a cat"}, a DataFrame, a Dataset. Rows are written into the run's folder first.
    recipe: its name or file. settings: Settings, or a mapping with full names or sections. values: settings by their
    full or last name; later ones win. `data` may also be the Settings.
    name: of the folder, runs/NAME or the next free one; default: that of the recipe or of the data file. `run=` names
    the folder itself.
    metrics: names of metrics and groups, and functions (answer, references) → number; short for predict.metrics.
    callbacks: functions of (step, loss), and objects (training/user_callbacks.py). One that returns True ends the
    training; one that raises an exception stops it with its step saved.
    gpus: how many train together, or "all"; default: one. Each has a process of its own, which is forked; the callbacks
    are called in the first of them. With device="cpu" that many processes share the CPU.

    Raises LorgnetteError or UsageError for what the user can mend, before weights are read where possible;
    KeyboardInterrupt after Ctrl-C, when the step is saved. `lorgnette.resume(run)` goes on with a stopped run.
    """
    terminal, user_callbacks = Terminal(None if is_silent_rank() else console), UserCallbacks(callbacks)
    rows = data if is_rows(data) else None
    if metrics is not None:
        values["predict.metrics"] = resolve_metric_names(metrics)
    source = None if rows is not None else data
    chosen = build_settings(source, recipe=recipe, settings=settings, values=values, terminal=terminal)
    if name and values.get("run") is not None:
        hint = "give name= for runs/NAME, or run= for the folder itself"
        raise UsageError("two names for the run's folder", where=f"name={name}, run={values['run']}", hint=hint)
    name = name or (Path(recipe).stem if recipe else _name_after_data(chosen))
    with compile_kernels_ahead(chosen), open_ranks(gpus, chosen.device, terminal) as ranks:
        timer = StageTimer(terminal, get_command_start())
        if chosen.run is not None and ranks.is_main:
            RunDir.check_is_free(chosen.run)
        chosen = inherit_settings(chosen, terminal)
        if rows is None:
            start = _load(chosen, timer, terminal, ranks)  # before the folder is created
            with ranks.open_run(_open_run(chosen, name, terminal)) as run_dir:
                _start(start, run_dir, user_callbacks, timer, terminal, ranks)
        else:
            with ranks.open_run(_open_run(chosen, name, terminal)) as run_dir:
                with timer("rows"):
                    chosen = ranks.broadcast(ranks.is_main and _write_rows(rows, chosen, run_dir, terminal))
                _start(_load(chosen, timer, terminal, ranks), run_dir, user_callbacks, timer, terminal, ranks)
    return Run(run_dir.path)


@dataclass(frozen=True)
class _LoadedRun:
    """What a run needs before its folder has its first file."""

    settings: Settings
    data: TrainingData
    manifest: dict[str, Any]


def _load(settings: Settings, timer: StageTimer, terminal: Terminal, ranks: Ranks) -> _LoadedRun:
    with timer("data"):
        data = TrainingData.load(settings, terminal)
        settings = data.choose_metrics(settings, terminal)
        references = [[row.reference] for row in data.held_out.conversations if row.reference]
        check_own_metrics(settings.predict.metrics, references)
        hashes, image_hashes = data.hash_inputs(), data.hash_images() if ranks.is_main else {}
        ranks.check_same(
            {"settings": config.dump_settings(settings)} | {name: hashes[name] for name in ("examples", "weights")}
        )
        adapter = build_manifest_entry(settings.adapter) if settings.adapter else None
        examples = data.examples.conversations
        terminal.print(f"prompt     {describe_prompt(settings, examples)}")
        step_count = StepCount(len(examples), settings.train)
        terminal.print(f"steps      {step_count.describe()}")
        if step_count.warning:
            terminal.warn(step_count.warning)
        for title, line in zip(("gain", ""), describe_gain(settings, data, ranks.num_to_start), strict=False):
            terminal.print(f"{title:<10} {line}")
        if adapter and ranks.is_main and (note := describe_seen_images(adapter, data.select_held_out(image_hashes))):
            terminal.warn(note)
    manifest = build_manifest(
        seed=settings.seed, command=sys.argv, device=settings.device, hashes=hashes, image_hashes=image_hashes,
        num_training_images=data.num_training_images, adapter=adapter,
    )  # fmt: skip
    return _LoadedRun(settings, data, manifest)


@contextmanager
def _open_run(settings: Settings, name: str, terminal: Terminal) -> Iterator[RunDir]:
    """Create and lock the run's folder; it is removed if the block fails before the first step."""
    run_dir = RunDir.create(settings.run or find_free_path(Path("runs"), name))
    with run_dir.lock(terminal.warn) as locked, _discard_failed_run(locked):
        RunDir.check_is_free(run_dir.path)
        yield locked


def _start(
    run: _LoadedRun,
    run_dir: RunDir,
    user_callbacks: UserCallbacks,
    timer: StageTimer,
    terminal: Terminal,
    ranks: Ranks,
) -> None:
    if ranks.is_main:
        write_json(run_dir.manifest, run.manifest)
        write_text(run_dir.config, config.dump_settings(_make_absolute(run.settings, run_dir)))
    _train(run.settings, run_dir, run.data, user_callbacks, timer, terminal, ranks)


def _write_rows(rows: Any, settings: Settings, run_dir: RunDir, terminal: Terminal) -> Settings:
    """Write rows in memory into the run's folder. Returns the settings with their data file."""
    folder = find_free_path(run_dir.path, DATA_FOLDER)
    path = write_rows(
        rows, folder, image_column=settings.data.image_column, caption_column=settings.data.caption_column,
        on_bad_row=settings.data.on_bad_row, needs_answer=True, terminal=terminal,
    )  # fmt: skip
    update = {"path": path, "image_column": None, "caption_column": None}  # the file has columns of its own
    return settings.model_copy(update={"data": settings.data.model_copy(update=update)})


def _name_after_data(settings: Settings) -> str:
    sources = split_sources(settings.data.path) if settings.data.path else ()
    return sources[0].stem if len(sources) == 1 and sources[0].exists() else "run"


def resume(
    run: Path | str | Run,
    *,
    metrics: MetricFunction | str | Iterable[str | MetricFunction] = (),
    callbacks: Any = (),
    gpus: NumGpus = None,
    console: Console | None = None,
) -> Run:
    """Continue a stopped run from its latest checkpoint. The result is the same as without the stop.

    metrics: functions of the user that the run was started with; callbacks, gpus: as in `train`. Their number may be
    another than before.
    """
    terminal, user_callbacks = Terminal(None if is_silent_rank() else console), UserCallbacks(callbacks)
    resolve_metric_names(metrics)
    timer = StageTimer(terminal, get_command_start())
    run_dir = RunDir.open_existing(Path(as_name(run)))
    if run_dir.is_taught:
        hint = f"go on with it: {run_dir.resume_command}; or train on its answers: {_format_training(run_dir)}"
        raise UsageError("a run of `teach`, not of `train`", where=str(run_dir.path), hint=hint)
    settings = config.load_settings(config.read_recipe(run_dir.config), where=str(run_dir.config))
    settings = _relocate(settings, run_dir)
    with (
        compile_kernels_ahead(settings),
        open_ranks(gpus, settings.device, terminal) as ranks,
        ranks.open_run(run_dir.lock(terminal.warn)) as locked,
    ):
        with timer("data"):
            data = TrainingData.load(settings, terminal)
            data.check_unchanged(run_dir.manifest)
            settings = data.choose_metrics(settings, terminal)
        _train(settings, locked, data, user_callbacks, timer, terminal, ranks)
    return Run(run_dir.path)


def _format_training(run_dir: RunDir) -> str:
    """The command that trains an adapter on the answers of a run of `teach`."""
    return format_command("train", run_dir.config, f"run={run_dir.path}-trained")


def _relocate(settings: Settings, run_dir: RunDir) -> Settings:
    """The settings with the data that is inside the run's folder where that folder is now."""
    path, folder = settings.data.path, settings.run
    if path is None or folder is None or path.exists() or not path.is_relative_to(folder):
        return settings
    update = {"path": run_dir.path.resolve() / path.relative_to(folder)}
    return settings.model_copy(update={"data": settings.data.model_copy(update=update)})


def _train(
    settings: Settings,
    run_dir: RunDir,
    data: TrainingData,
    user_callbacks: UserCallbacks,
    timer: StageTimer,
    terminal: Terminal,
    ranks: Ranks,
) -> None:
    # What torch is not needed for: a tracker that is not installed is an error now.
    trackers = open_trackers(settings.report_to, settings.project, run_dir.path, terminal.warn)
    eval_processor = data.build_eval_processor(settings.processor, settings.predict.image_size)
    if "demo" in settings.predict.metrics:
        from lorgnette.commands.demo import register_facts_metric

        register_facts_metric()

    # CUDA starts on a thread while torch is imported; not in a process that is forked.
    request_kernels(settings, data)
    with timer("imports"):
        if ranks.num_to_start == 1 and settings.device != "cpu":
            start_cuda_init()
        with freeze_gc():
            from lorgnette.training.checkpoint import find_latest_checkpoint
            from lorgnette.training.run import run_training

            if ranks.num_to_start > 1 and settings.device == "cpu" and settings.engine != "fast":
                _import_reference_engine(data.checkpoint.family.class_name)

    def train_rank(world: "World", run_dir: RunDir) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of libraries, for their developers
            if world.is_main:
                run_training(settings, run_dir, data, eval_processor, trackers, timer, terminal, user_callbacks, world)
            else:
                own = build_rank_terminal()
                run_training(settings, run_dir, data, eval_processor, (), StageTimer(own), own, UserCallbacks(), world)

    if ranks.num_to_start > 1:
        wait_for_kernels(timer, terminal)
        compile_ahead.stop()  # no process of ours is there at the fork
    try:
        ranks.run(settings.device, run_dir, train_rank)
    except LorgnetteError:
        if ranks.num_to_start > 1 and (latest := find_latest_checkpoint(run_dir.checkpoints)):
            terminal.print(f"saved      at step {latest[0]}; to resume: {run_dir.resume_command}")
        raise


def _import_reference_engine(class_name: str) -> None:
    """Import what every rank would import, for seconds, after the fork. With GPUs these libraries may touch CUDA."""
    import peft
    import transformers

    import lorgnette.engine.peft_engine  # noqa: F401

    _ = peft.LoraConfig, getattr(transformers, class_name)


def _make_absolute(settings: Settings, run_dir: RunDir) -> Settings:
    """The settings with absolute paths, so that a run can be resumed from any folder."""
    inputs = {"path": settings.data.path, "test": settings.data.test, "images_from": resolve_images_folder(settings)}
    paths: dict[str, Any] = {name: _make_path_absolute(path) for name, path in inputs.items() if path}
    if "images_from" in paths:
        paths["images_from"] = str(paths["images_from"])
    data = settings.data.model_copy(update=paths)
    model = portable_name(settings.model)
    adapter = settings.adapter and settings.adapter.resolve()
    return settings.model_copy(update={"run": run_dir.path.resolve(), "model": model, "adapter": adapter, "data": data})


def _make_path_absolute(path: Path) -> Path:
    """The path, or the list of paths, from the root; what is no path on this machine stays as it is."""
    return join_sources(source.resolve() if source.exists() else source for source in split_sources(path))


@contextmanager
def _discard_failed_run(run_dir: RunDir) -> Iterator[None]:
    """Remove the folder of a run that fails before its log is opened, that is before its first step.

    A folder with other files in it (a tracker starts before the log) stays, and can be resumed.
    """
    before = set(run_dir.path.iterdir())
    try:
        yield
    except BaseException as error:
        own_files = (run_dir.config, run_dir.manifest, run_dir.lock_file)
        files = set(run_dir.path.iterdir()) if run_dir.is_in_place else set()
        folders = {path for path in files - before if is_written_rows(path)}
        if str(run_dir.ranks) not in str(error):  # it does not name what a rank printed
            folders |= {run_dir.ranks} & files
        if run_dir.is_in_place and files <= {*own_files, *folders}:
            for path in folders:
                remove_folder(path)
            for path in own_files:
                path.unlink(missing_ok=True)
            run_dir.path.rmdir()
        raise
