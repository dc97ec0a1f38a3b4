"""The tuning itself: from material to an adapter, its answers and its page."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lorgnette.commands.predict import answer_examples
from lorgnette.device import measure_peak_gib, measure_reserved_gib, select_device
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import LoadedModel, build_metadata, explain_out_of_memory
from lorgnette.io.async_writer import AsyncWriter
from lorgnette.io.atomic import atomic_folder
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.metrics.held_out import get_best_model_metric, score_before_after, select_tracked_metric
from lorgnette.processing.processor import Processor
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import Tracker, open_trackers
from lorgnette.training import checkpoint as checkpoints
from lorgnette.training.callbacks import AdapterSnapshot, GracefulInterrupt, TrainingCallbacks
from lorgnette.training.eval_samples import SampleLogger
from lorgnette.training.job import Job
from lorgnette.training.run_report import write_run_report
from lorgnette.training.setup import TrainingSetup, build_sampler, build_training
from lorgnette.training.trainer import Trainer
from lorgnette.verification import reference_sample

NATIVE_IMAGE_TOKENS = (4, 16384)
"""Of a picture in Qwen2-VL's own preprocessor_config.json: 3,136 to 12,845,056 pixels."""


def run_training(job: Job) -> None:
    """Train from the latest checkpoint or the start, save the adapter, answer the held-out examples, write the page.

    Raises KeyboardInterrupt where Ctrl-C stopped the training, once its checkpoint is saved and the way on is said.
    """
    trackers = _open_trackers(job)
    step, checkpoint = checkpoints.find_latest_checkpoint(job.folder.checkpoints) or (0, None)
    with explain_out_of_memory("lower train.max_tokens_per_microbatch, image_size or lora.rank"):
        contract = _build_metadata(job)
        with TemporaryDirectory() as scratch:
            asked = reference_sample.make_sample(Path(scratch), job.material.processor, contract.prompt)
            made = build_training(job, checkpoint, extra_grids=asked.grids)
        job = replace(job, material=made.data)

        def snapshot() -> Callable[[Path], None]:
            state, family = made.copy_adapter(), job.material.checkpoint.family
            seen = reference_sample.record_sample(made.engine, asked, job.material.processor, contract.prompt)

            def write(folder: Path) -> None:
                peft_files.write_adapter(folder, state, family, job.settings.lora, contract)
                seen.save(folder)

            return write

        training = Trainer(
            made.engine,
            build_sampler(job),
            job.material.held_out,
            job.settings.train,
            max_tokens_per_microbatch=made.max_tokens_per_microbatch,
        )
        if checkpoint is not None:
            training.load_state_dict(checkpoints.load_checkpoint(checkpoint, select_device(job.settings.device)))
            job.terminal.print(f"resumed    at step {training.step} of {training.total_steps}")
        try:
            _start_trackers(trackers, job)
            with RunLog.resume(job.folder.log, step) as log, AsyncWriter() as writing:
                job.stages.attach_log(log)
                for problem in job.material.problems:
                    log.write(
                        {"kind": "skipped", "source": problem.source, "row": problem.row, "what": problem.message}
                    )
                _train_and_save(job, training, log, trackers, snapshot, writing, _build_sample_logger(job, made))
                rows = _answer_held_out(job, made)
            for tracker in trackers:
                tracker.log_predictions(rows, training.total_steps)
        finally:
            unkept = made.features.close()
            if unkept is not None:
                job.terminal.warn(f"features are not kept on disk: {unkept}")
            for tracker in trackers:
                tracker.finish()
    scores = score_before_after(rows, job.settings.predict.metrics)
    for score in scores:
        job.terminal.print(f"{score.name:<28} {score.before:>22} → {score.after}{score.note and f'  ({score.note})'}")
    write_run_report(job, rows, scores, [tracker.address for tracker in trackers if tracker.address])
    job.terminal.print(f"adapter    {job.folder.adapter}")
    job.terminal.print(f"page       {job.folder.report}")


def _build_metadata(job: Job) -> AdapterMetadata:
    """With the prompt that the data ask, where they ask."""
    contract = build_metadata(job.settings, job.material.checkpoint, job.material.processor)
    return contract.model_copy(update={"prompt": job.material.most_common_prompt or contract.prompt})


def _train_and_save(
    job: Job,
    training: Trainer,
    log: RunLog,
    trackers: list[Tracker],
    snapshot: AdapterSnapshot,
    writing: AsyncWriter,
    film: SampleLogger,
) -> None:
    """Take the steps that are left and save the adapter; the last checkpoint may still be written."""
    with (
        job.stages("steps"),
        job.terminal.show_progress("steps", training.total_steps, completed=training.step) as advance,
        GracefulInterrupt(job.terminal) as stop,
    ):
        watching = TrainingCallbacks(
            job, log, trackers, snapshot=snapshot, writer=writing, advance=advance, interrupt=stop, total_steps=training.total_steps,
            samples=film,
        )  # fmt: skip
        finished = training.train(watching)
    if not finished:
        writing.wait()
        job.terminal.print(
            f"saved      at step {training.step}; go on with: lorgnette train --resume {job.folder.path}"
        )
        raise KeyboardInterrupt
    device = select_device(job.settings.device)
    log.write({"kind": "memory", "peak_gib": measure_peak_gib(device), "reserved_gib": measure_reserved_gib(device)})
    with job.stages("save"):
        write = snapshot()
        with atomic_folder(job.folder.adapter) as beside:
            write(beside)
    watching.save_checkpoint(training.step, training.state_dict(), write)
    if training.best_step == training.step:
        shutil.rmtree(job.folder.best, ignore_errors=True)  # the last is the best


def _answer_held_out(job: Job, made: TrainingSetup) -> list[PredictionRow]:
    """The held-out examples answered without and with the adapter."""
    examples = [encoded.example for encoded in job.material.held_out]
    with job.stages("answers"):
        opened = LoadedModel(made.model, _build_eval_processor(job))
        smaller = f"lower predict.batch_size in {job.folder.config}, then: lorgnette train --resume {job.folder.path}"
        rows = answer_examples(opened, examples, _build_sampling(job), job.terminal, memory_hint=smaller)
        write_predictions(job.folder.predictions, rows)
    return rows


def _build_sample_logger(job: Job, made: TrainingSetup) -> SampleLogger:
    examples = [encoded.example for encoded in job.material.held_out]
    return SampleLogger(
        LoadedModel(made.model, _build_eval_processor(job)), examples, select_tracked_metric(job.settings), _build_sampling(job),
        selects_best=get_best_model_metric(job.settings) is not None,
    )  # fmt: skip


def _build_sampling(job: Job) -> SamplingParams:
    chosen = job.settings.predict
    return SamplingParams(max_new_tokens=chosen.max_new_tokens, batch_size=chosen.batch_size)


def _build_eval_processor(job: Job) -> Processor:
    """The encoder of the held-out examples: training's, or, for predict.image_size=native, one that takes pictures as large
    as they are, within what the hub's checkpoints allow."""
    if job.settings.predict.image_size == "train":
        return job.material.processor
    native = job.settings.processor.model_copy(update={"image_size": None, "image_tokens": NATIVE_IMAGE_TOKENS})
    return Processor.from_folder(job.material.checkpoint.folder, native)


def _open_trackers(job: Job) -> list[Tracker]:
    """Not started yet: one that is not installed is an error before weights are read."""
    return open_trackers(
        job.settings.report_to,
        project=job.settings.project,
        experiment=job.folder.path.resolve().name,
        folder=job.folder.path,
        warn=job.terminal.warn,
    )


def _start_trackers(trackers: list[Tracker], job: Job) -> None:
    for tracker in trackers:
        tracker.start(job.settings.model_dump(mode="json"))
        if tracker.address:
            job.terminal.print(f"tracker    {tracker.address}")
