"""The tuning itself: from material to an adapter, its answers and its page."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from lorgnette.commands.predict import answered
from lorgnette.device import device_of, peak_gib, reserved_gib
from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Opened, contract_of, enough_memory
from lorgnette.io.async_writer import Writing
from lorgnette.io.atomic import folder_whole
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import Contract
from lorgnette.metrics.held_out import judge_of, scored, watched
from lorgnette.processing.processor import Encoder
from lorgnette.report.predictions import PredictionRow, write_predictions
from lorgnette.report.run_log import RunLog
from lorgnette.report.trackers.tracker import Tracker, open_trackers
from lorgnette.training import checkpoint as checkpoints
from lorgnette.training.callbacks import Snapshot, Stop, Watching
from lorgnette.training.eval_samples import Filmstrip
from lorgnette.training.job import Job
from lorgnette.training.run_report import write_results
from lorgnette.training.setup import Tuned, batches_of, tuned
from lorgnette.training.trainer import Training
from lorgnette.verification import reference_sample

NATIVE_TOKENS = (4, 16384)
"""Of a picture in Qwen2-VL's own preprocessor_config.json: 3,136 to 12,845,056 pixels."""


def tune(job: Job) -> None:
    """Train from the latest checkpoint or the start, save the adapter, answer the held-out examples, write the page.

    Raises KeyboardInterrupt where Ctrl-C stopped the training, once its checkpoint is saved and the way on is said.
    """
    trackers = _trackers(job)
    step, checkpoint = checkpoints.latest(job.folder.checkpoints) or (0, None)
    with enough_memory("lower train.pass_tokens, encode.size or lora.rank"):
        contract = _contract(job)
        with TemporaryDirectory() as scratch:
            asked = reference_sample.question(Path(scratch), job.material.encoder, contract.prompt)
            made = tuned(job, checkpoint, beside=asked.grids)
        job = replace(job, material=made.material)

        def snapshot() -> Callable[[Path], None]:
            state, family = made.state(), job.material.checkpoint.family
            seen = reference_sample.witnessed(made.engine, asked, job.material.encoder, contract.prompt)

            def write(folder: Path) -> None:
                peft_files.write(folder, state, family, job.settings.lora, contract)
                seen.write(folder)

            return write

        training = Training(
            made.engine, batches_of(job), job.material.held_out, job.settings.train, pass_tokens=made.pass_tokens
        )
        if checkpoint is not None:
            training.restore(checkpoints.restore(checkpoint, device_of(job.settings.device)))
            job.terminal.say(f"resumed    at step {training.step} of {training.total}")
        try:
            _start(trackers, job)
            with RunLog.resumed(job.folder.log, step) as log, Writing() as writing:
                job.stages.keep(log)
                for problem in job.material.problems:
                    log.write({"kind": "skipped", "source": problem.source, "row": problem.row, "what": problem.what})
                _trained(job, training, log, trackers, snapshot, writing, _film(job, made))
                rows = _answers(job, made)
            for tracker in trackers:
                tracker.predictions(rows, training.total)
        finally:
            unkept = made.features.finish()
            if unkept is not None:
                job.terminal.warn(f"features are not kept on disk: {unkept}")
            for tracker in trackers:
                tracker.finish()
    scores = scored(rows, job.settings.predict.metrics)
    for score in scores:
        job.terminal.say(f"{score.name:<28} {score.before:>22} → {score.after}{score.note and f'  ({score.note})'}")
    write_results(job, rows, scores, [tracker.address for tracker in trackers if tracker.address])
    job.terminal.say(f"adapter    {job.folder.adapter}")
    job.terminal.say(f"page       {job.folder.page}")


def _contract(job: Job) -> Contract:
    """With the prompt that the data ask, where they ask."""
    contract = contract_of(job.settings, job.material.checkpoint, job.material.encoder)
    return contract.model_copy(update={"prompt": job.material.prompt or contract.prompt})


def _trained(
    job: Job,
    training: Training,
    log: RunLog,
    trackers: list[Tracker],
    snapshot: Snapshot,
    writing: Writing,
    film: Filmstrip,
) -> None:
    """Take the steps that are left and save the adapter; the last checkpoint may still be written."""
    with (
        job.stages("steps"),
        job.terminal.bar("steps", training.total, done=training.step) as advance,
        Stop(job.terminal) as stop,
    ):
        watching = Watching(
            job, log, trackers, snapshot=snapshot, writing=writing, advance=advance, stop=stop, total=training.total,
            film=film,
        )  # fmt: skip
        finished = training.run(watching)
    if not finished:
        writing.wait()
        job.terminal.say(f"saved      at step {training.step}; go on with: lorgnette train --resume {job.folder.path}")
        raise KeyboardInterrupt
    device = device_of(job.settings.device)
    log.write({"kind": "memory", "peak_gib": peak_gib(device), "reserved_gib": reserved_gib(device)})
    with job.stages("save"):
        write = snapshot()
        with folder_whole(job.folder.adapter) as beside:
            write(beside)
    watching.keep(training.step, training.state(), write)
    if training.best_step == training.step:
        shutil.rmtree(job.folder.best, ignore_errors=True)  # the last is the best


def _answers(job: Job, made: Tuned) -> list[PredictionRow]:
    """The held-out examples answered without and with the adapter."""
    examples = [encoded.example for encoded in job.material.held_out]
    with job.stages("answers"):
        opened = Opened(made.model, _asking(job))
        smaller = f"lower predict.batch_size in {job.folder.config}, then: lorgnette train --resume {job.folder.path}"
        rows = answered(opened, examples, _sampling(job), job.terminal, smaller=smaller)
        write_predictions(job.folder.predictions, rows)
    return rows


def _film(job: Job, made: Tuned) -> Filmstrip:
    examples = [encoded.example for encoded in job.material.held_out]
    return Filmstrip(
        Opened(made.model, _asking(job)), examples, watched(job.settings), _sampling(job),
        judges=judge_of(job.settings) is not None,
    )  # fmt: skip


def _sampling(job: Job) -> Sampling:
    chosen = job.settings.predict
    return Sampling(max_new_tokens=chosen.max_new_tokens, batch_size=chosen.batch_size)


def _asking(job: Job) -> Encoder:
    """The encoder of the held-out examples: training's, or, for predict.size=native, one that takes pictures as large
    as they are, within what the hub's checkpoints allow."""
    if job.settings.predict.size == "trained":
        return job.material.encoder
    native = job.settings.encode.model_copy(update={"size": None, "image_tokens": NATIVE_TOKENS})
    return Encoder.of_folder(job.material.checkpoint.folder, native)


def _trackers(job: Job) -> list[Tracker]:
    """Not started yet: one that is not installed is an error before weights are read."""
    track = job.settings.track
    return open_trackers(
        track.to,
        project=track.project,
        experiment=job.folder.path.resolve().name,
        folder=job.folder.path,
        warn=job.terminal.warn,
    )


def _start(trackers: list[Tracker], job: Job) -> None:
    for tracker in trackers:
        tracker.start(job.settings.model_dump(mode="json"))
        if tracker.address:
            job.terminal.say(f"tracker    {tracker.address}")
