"""One training: build the model, train, save, answer the held-out examples, write the report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from lorgnette.config import Settings
from lorgnette.device import get_gpu_name, measure_peak_gib, measure_reserved_gib, select_device, select_dtype
from lorgnette.distributed import World
from lorgnette.engine.base import Shards, run_on_main_rank
from lorgnette.engine.loading import FastModel
from lorgnette.errors import LorgnetteError
from lorgnette.inference.answers import AnswersInterrupted, answer_examples
from lorgnette.inference.loading import LoadedModel, build_metadata, explain_out_of_memory
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.async_writer import AsyncWriter
from lorgnette.io.atomic import atomic_folder, remove_folder
from lorgnette.lora.metadata import AdapterMetadata, AdapterOrigin
from lorgnette.lora.peft_files import write_adapter
from lorgnette.metrics.registry import expand_metric_names, get_best_model_metric, select_tracked_metric, uses_boxes
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.report.html.page import prepare_run_page
from lorgnette.report.predictions import write_predictions
from lorgnette.report.run_dir import RunDir
from lorgnette.report.run_log import RunLog
from lorgnette.report.stage_timer import StageTimer
from lorgnette.report.trackers.tracker import Tracker
from lorgnette.training.callbacks import AdapterSnapshot, SilentCallbacks, TrainingCallbacks
from lorgnette.training.checkpoint import find_latest_checkpoint, restore_checkpoint
from lorgnette.training.data_module import TrainingData
from lorgnette.training.eval_samples import SampleLogger
from lorgnette.training.initial_adapter import ContinuedModel, find_origin
from lorgnette.training.interrupt import GracefulInterrupt
from lorgnette.training.run_report import write_run_report
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.setup import TrainingSetup, build_training
from lorgnette.training.start_warnings import explain_built_in_model, explain_single_shard, explain_slow_dtype
from lorgnette.training.step_count import END_KIND, STOPPED_BY_CALLBACK, StepCount
from lorgnette.training.trainer import Trainer
from lorgnette.training.user_callbacks import UserCallbacks
from lorgnette.types import BASE_MODEL, Encoded, Example, PredictionRow
from lorgnette.verification.reference_sample import make_sample, record_sample


def run_training(
    settings: Settings,
    run_dir: RunDir,
    data: TrainingData,
    eval_processor: Processor,
    trackers: Sequence[Tracker],
    timer: StageTimer,
    terminal: Terminal,
    user_callbacks: UserCallbacks,
    world: World = World(),
) -> None:
    """Train from the latest checkpoint or from the start; write the adapter, the answers and the report.

    eval_processor: encodes the held-out prompts. Every rank of the world calls it; the first alone writes files other
    than its own log. Raises KeyboardInterrupt if Ctrl-C, TERM or HUP stopped the training, after its checkpoint is
    saved, and then what a callback of the user raised.
    """
    timer.attach_status(world.status)

    # Resolve what depends on the device and on earlier checkpoints.
    with timer("device", is_printed=False):
        device, dtype = _select_device_and_dtype(settings, terminal, world)
    step, checkpoint = _find_checkpoint(run_dir, world)
    metadata = _describe_adapter(settings, data)
    sampling = SamplingParams(
        max_new_tokens=settings.predict.max_new_tokens,
        batch_size=settings.predict.batch_size,
        with_boxes=uses_boxes([*expand_metric_names(settings.predict.metrics), settings.train.metric_for_best_model]),
    )

    with explain_out_of_memory("lower train.max_tokens_per_microbatch, image_size or lora.rank"):
        # Build the model. The reference sample's image is encoded together with those of the data.
        sample = make_sample(data.processor, metadata.prompt)
        setup = build_training(
            settings, data, device, dtype, resume_from=checkpoint, step=step or 0, extra_grids=sample.grids,
            timer=timer, terminal=terminal, world=world,
        )  # fmt: skip
        try:
            data = setup.data
            held_out = data.held_out.conversations
            model = _build_answering_model(setup, eval_processor, settings.adapter)
            selects_best = get_best_model_metric(settings) is not None
            metric = select_tracked_metric(settings)
            samples = SampleLogger(
                model, held_out, metric, sampling, selects_best=selects_best, world=world, shards=setup.engine.shards
            )
            trainer = _build_trainer(setup, settings, checkpoint, device, terminal, world)

            _start_trackers(trackers, settings, terminal)
            run_dir.check_in_place()
            with _open_log(run_dir, step, world) as log, timer.attach_log(log), AsyncWriter() as writer:
                for p in data.problems:
                    log.write({"kind": "skipped", "source": p.source, "row": p.row, "message": p.message})

                # Take the steps that are left.
                snapshot = _build_snapshot(setup, trainer, settings, metadata, sample, world)
                with GracefulInterrupt(terminal, world.status) as interrupt:
                    with (
                        timer("steps"),
                        terminal.show_progress("steps", trainer.total_steps, completed=trainer.step) as advance,
                    ):
                        callbacks = TrainingCallbacks(
                            run_dir, terminal, log, trackers, snapshot, writer, samples, advance, interrupt,
                            lambda: trainer.total_steps, settings.train.logging_steps, user_callbacks, world,
                        )  # fmt: skip
                        silent = SilentCallbacks(samples, interrupt, snapshot, callbacks.get_total_steps)
                        is_finished = trainer.train(callbacks if world.is_main else silent)
                    if not is_finished:  # a scheduler may send TERM twice: this, too, is not disturbed
                        writer.wait()
                        if not _report_stop(trainer.step, interrupt, user_callbacks, run_dir, log, terminal, world):
                            return
                if is_finished:
                    can_learn = not explain_built_in_model(settings.model, data.iter_references())
                    _report_end(trainer, log, terminal, can_learn=can_learn)

                # Save the adapter; the last checkpoint is written while the answers are generated.
                engine = "fast" if isinstance(setup.model, FastModel) else "reference"
                used = {"gpu": get_gpu_name(device), "engine": engine, "dtype": str(dtype).removeprefix("torch.")}
                log.write({"kind": "memory", **_measure_memory(device, world), **used})
                with timer("save"):
                    write, state = snapshot(), trainer.gather_state(has_optimizer=False)
                    if world.is_main:
                        Thread(target=prepare_run_page, name="page", daemon=True).start()  # while the disk writes
                        _save_result(trainer, run_dir, callbacks, state, write)

                # Answer the held-out examples as before the training and with the adapter.
                with timer("release", is_printed=False):
                    setup.release_memory()
                with timer("answers"):
                    rows = _answer_held_out(
                        model, held_out, sampling, run_dir, terminal, metadata.origin, world, setup.engine.shards
                    )
                with timer("checkpoint", is_printed=False):
                    writer.wait()
            for tracker in trackers:
                tracker.log_predictions(rows, trainer.step)
        finally:
            error = setup.close()
            if error is not None:
                terminal.warn(f"image features are not cached on disk: {error}")
            for tracker in trackers:
                tracker.finish()

    if not world.is_main:
        return
    run_dir.check_in_place()
    _write_report(settings, run_dir, data, rows, trackers, timer, terminal)
    user_callbacks.raise_error()  # of the last step, now that everything is written


def _measure_memory(device: torch.device, world: World) -> dict[str, Any]:
    """The peak so far, of the rank with the largest; for the log."""
    peaks = world.gather_objects((measure_peak_gib(device), measure_reserved_gib(device)))
    most = max(range(world.size), key=lambda rank: peaks[rank][0])
    memory = {"peak_gib": peaks[most][0], "reserved_gib": peaks[most][1]}
    return memory | {"num_ranks": world.size} if world.size > 1 else memory


def _select_device_and_dtype(settings: Settings, terminal: Terminal, world: World) -> tuple[torch.device, torch.dtype]:
    device = select_device(settings.device)
    dtype = select_dtype(settings.dtype, device)
    if device.type == "cpu" and (warning := explain_slow_dtype(settings.dtype)):
        terminal.warn(warning)
    if warning := explain_single_shard(fully_shard=settings.train.fully_shard, num_ranks=world.size):
        terminal.warn(warning)
    if settings.dtype == "auto" and dtype == torch.float16:
        terminal.print(f"dtype      float16, with loss scaling: {get_gpu_name(device)} has no bfloat16")
    return device, dtype


def _find_checkpoint(run_dir: RunDir, world: World) -> tuple[int | None, Path | None]:
    """Step and folder of the latest checkpoint. Raises LorgnetteError if a rank does not see that of the first."""
    step, checkpoint = find_latest_checkpoint(run_dir.checkpoints) or (None, None)
    (first, _), *others = world.gather_objects((step, world.machine))
    for rank, (seen, machine) in enumerate(others, start=1):
        if seen != first:
            message = f"rank {rank} on {machine} does not see the checkpoint of step {first}, where the run goes on"
            hint = "put the run's folder on a file system that all machines share"
            raise LorgnetteError(message, where=str(run_dir.checkpoints), hint=hint)
    return step, checkpoint


def _build_trainer(
    setup: TrainingSetup,
    settings: Settings,
    checkpoint: Path | None,
    device: torch.device,
    terminal: Terminal,
    world: World,
) -> Trainer:
    """The trainer at the checkpoint's step, or at the start."""
    data, max_tokens = setup.data, setup.max_tokens_per_microbatch
    by_image = settings.data.group_by_image
    sampler = BatchSampler(data.examples, settings.train, settings.seed, group_by_image=by_image)
    trainer = Trainer(setup.engine, sampler, data.held_out, settings.train, max_tokens, world, setup.pipeline)
    if checkpoint is not None:
        restore_checkpoint(trainer, checkpoint, device)
        terminal.print(f"resumed    at step {trainer.step} of {trainer.total_steps}")
    return trainer


def _open_log(run_dir: RunDir, step: int | None, world: World) -> RunLog:
    """The run's log; for ranks but the first one of their own."""
    path = run_dir.log if world.is_main else run_dir.ranks / f"rank-{world.rank}.jsonl"
    return RunLog.resume(path, step, repeated_kinds=("skipped", END_KIND))


def _start_trackers(trackers: Sequence[Tracker], settings: Settings, terminal: Terminal) -> None:
    for tracker in trackers:
        tracker.start(settings.model_dump(mode="json"))
        if tracker.address:
            terminal.print(f"tracker    {tracker.address}")


def _report_stop(
    step: int,
    interrupt: GracefulInterrupt,
    user_callbacks: UserCallbacks,
    run_dir: RunDir,
    log: RunLog,
    terminal: Terminal,
    world: World,
) -> bool:
    """Say why the training ended before its last step, which is saved. Raises KeyboardInterrupt for a signal on any
    rank, and on the first what a callback of the user raised; the others then return False. Returns True if a callback
    asked for the end."""
    numbers = [number for number in world.gather_objects(interrupt.number) if number is not None]
    has_error = world.broadcast_object(user_callbacks.error is not None)
    if numbers or has_error:
        terminal.print(f"saved      at step {step}; to resume: {run_dir.resume_command}")
        gpus = f", gpus={run_dir.gpus}" if run_dir.gpus > 1 else ""
        resume = f"lorgnette.resume({str(run_dir.path)!r}{gpus})"
        user_callbacks.raise_error(f"The run is saved at step {step}; {resume} goes on.")
        if has_error:
            return False
        interrupt.number = numbers[0]  # another rank may have received it
        interrupt.stop()
    text = f"step {step}: {STOPPED_BY_CALLBACK} {user_callbacks.stop_reason}"
    terminal.print(f"{text}; to take the other steps later: {run_dir.resume_command}")
    log.write({"kind": "event", "step": step, "text": text, "level": "info"})
    return True


def _report_end(trainer: Trainer, log: RunLog, terminal: Terminal, *, can_learn: bool) -> None:
    """Say how many steps were taken, and why no more."""
    auto_steps, count = trainer.auto_steps, StepCount(len(trainer.sampler.examples), trainer.settings)
    text = count.describe_end(trainer.step, auto_steps, can_learn=can_learn)
    reason = auto_steps.end_reason if auto_steps else None
    log.write({"kind": END_KIND, "step": trainer.step, "reason": reason, "text": text})
    terminal.print(f"trained    {text}")


def _save_result(
    trainer: Trainer,
    run_dir: RunDir,
    callbacks: TrainingCallbacks,
    state: dict[str, Any],
    write: Callable[[Path], None],
) -> None:
    """Save the adapter, and in the background the last checkpoint."""
    run_dir.check_in_place()
    with atomic_folder(run_dir.adapter) as folder:
        write(folder)
    # No step changes the optimizer's state any more, so it is copied when it is written.
    callbacks.save_checkpoint(trainer.step, state, write, trainer.optimizer.state_dict)
    if trainer.best_step == trainer.step:  # best/ holds only another step's adapter
        callbacks.writer.remove(partial(remove_folder, run_dir.best))


def _answer_held_out(
    model: LoadedModel,
    held_out: Sequence[Example],
    sampling: SamplingParams,
    run_dir: RunDir,
    terminal: Terminal,
    origin: AdapterOrigin | None,
    world: World,
    shards: Shards | None,
) -> list[PredictionRow]:
    """Answer as before the training and with the adapter; write predictions.jsonl. origin: what the run continued.

    The ranks share the prompts; with sharded layers rank 0 answers, and all take part.
    """
    hint = f"lower predict.batch_size in {run_dir.config}, then: {run_dir.resume_command}"
    try:
        answer = partial(answer_examples, model, held_out, sampling, terminal, memory_hint=hint)
        rows = answer(world=world) if shards is None else run_on_main_rank(world, shards, answer) or []
    except AnswersInterrupted:
        terminal.print(f"saved      the adapter; for the answers and the report: {run_dir.resume_command}")
        raise
    if not world.is_main:
        return []
    run_dir.check_in_place()
    rows = [replace(row, before=str(origin or BASE_MODEL)) for row in rows]
    write_predictions(run_dir.predictions, rows)
    return rows


def _write_report(
    settings: Settings,
    run_dir: RunDir,
    data: TrainingData,
    rows: Sequence[PredictionRow],
    trackers: Sequence[Tracker],
    timer: StageTimer,
    terminal: Terminal,
) -> None:
    with timer("report", is_printed=False):
        write_run_report(settings, run_dir, data, rows, trackers, terminal)
    with RunLog(run_dir.log) as log, timer.attach_log(log):
        pass  # the stages since the log was closed


def _describe_adapter(settings: Settings, data: TrainingData) -> AdapterMetadata:
    """The metadata of the adapter that is trained."""
    metadata = build_metadata(settings, data.checkpoint, data.processor)
    origin = find_origin(settings.adapter) if settings.adapter else None
    return metadata.model_copy(update={"prompt": data.most_common_prompt or metadata.prompt, "origin": origin})


def _build_answering_model(setup: TrainingSetup, processor: Processor, initial_adapter: Path | None) -> LoadedModel:
    """The trained model. Without its adapter it answers as before the training, that is with the one it continued."""
    if initial_adapter is None:
        return LoadedModel(setup.model, processor)
    return ContinuedModel(setup.model, processor, initial_adapter, setup.copy_adapter, setup.load_adapter)


def _build_snapshot(
    setup: TrainingSetup, trainer: Trainer, settings: Settings, metadata: AdapterMetadata, sample: Encoded, world: World
) -> AdapterSnapshot:
    """Copies the adapter and the loss of the reference sample; both are written later.

    All ranks call it, but the first alone writes: the others take part in the pass if the layers are sharded.
    """
    checkpoint, processor = setup.data.checkpoint, setup.data.processor

    def snapshot() -> Callable[[Path], None]:
        record = partial(record_sample, setup.engine, sample, processor, metadata.prompt)
        recorded = run_on_main_rank(world, setup.engine.shards, record)
        wait_for_copy = setup.start_copy() if world.is_main else dict  # last: the record would wait for it
        described = metadata.model_copy(update={"step": trainer.step})

        def write(folder: Path) -> None:
            assert recorded is not None
            write_adapter(folder, wait_for_copy(), checkpoint.family, settings.lora, described)
            recorded.save(folder)

        return write

    return snapshot
