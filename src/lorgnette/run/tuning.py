"""The tuning itself: from material to an adapter, its answers and its page."""

from pathlib import Path

from lorgnette.config import Settings
from lorgnette.files import folder_whole
from lorgnette.model import adapter as adapters
from lorgnette.model import load as weights
from lorgnette.model.features import Features, Tower
from lorgnette.model.reference import ReferenceEngine
from lorgnette.predict.generate import Sampling
from lorgnette.report.folder import RunFolder
from lorgnette.report.log import RunLog
from lorgnette.report.predictions import write_predictions
from lorgnette.report.terminal import Terminal
from lorgnette.report.trackers import Tracker, open_trackers
from lorgnette.run.answering import answered
from lorgnette.run.material import Material
from lorgnette.run.opened import Opened, contract_of
from lorgnette.run.results import write_results
from lorgnette.run.watching import Stages, Stop, Watching
from lorgnette.train import checkpoints
from lorgnette.train.loop import Training


def tune(folder: RunFolder, chosen: Settings, material: Material, stages: Stages, terminal: Terminal) -> None:
    latest = checkpoints.latest(folder.checkpoints)
    done, checkpoint = latest or (0, None)
    device = weights.device_of(chosen.device)
    with RunLog.resumed(folder.log, done) as log:
        stages.log = log
        with stages("weights"):
            base = weights.load(material.checkpoint, device, weights.dtype_of(chosen.dtype, device))
        live = bool({"vision", "merger"} & set(chosen.lora.towers))
        features = Features(Tower(base, material.encoder.rule), material.encoder.rule, live=live)
        with stages("features"), terminal.bar("pictures", len(material.grids)) as advance:
            material = material.without(features.prepare(material.grids, seen=advance), chosen.data.on_bad_row)
        for problem in material.problems:
            log.write({"kind": "skipped", "source": problem.source, "row": problem.row, "what": problem.what})
        with stages("adapter"):
            if checkpoint is None:
                model = adapters.attach(base, material.checkpoint.family, chosen.lora, chosen.seed)
            else:
                model = adapters.load(base, checkpoint, trainable=True)
        training = Training(
            ReferenceEngine(model, features), material.examples, material.held_out, chosen.train, chosen.seed
        )
        if checkpoint is None:
            weights.seed(chosen.seed)
        else:
            training.restore(checkpoints.restore(checkpoint, device))
            terminal.say(f"resumed    at step {training.step} of {training.total}")
        contract = contract_of(chosen, material.checkpoint, material.encoder)
        trackers = _trackers(folder, chosen, terminal)

        def save(to: Path) -> None:
            adapters.write(model, to, contract)

        with stages("steps"), terminal.bar("steps", training.total, done=training.step) as advance, Stop(terminal) as stop:
            watching = Watching(folder, terminal, log, trackers, save, advance, stop)
            finished = training.run(watching)
        if not finished:
            for tracker in trackers:
                tracker.finish()
            terminal.say(f"saved      at step {training.step}; go on with: lorgnette train --resume {folder.path}")
            raise KeyboardInterrupt
        with stages("save"), folder_whole(folder.adapter) as beside:
            save(beside)
        opened = Opened(model, material.encoder, contract, chosen.model)
        sampling = Sampling(max_new_tokens=chosen.predict.max_new_tokens, batch_size=chosen.predict.batch_size)
        with stages("answers"):
            rows = answered(opened, [encoded.example for encoded in material.held_out], sampling, terminal)
            write_predictions(folder.predictions, rows)
        for tracker in trackers:
            tracker.predictions(rows, training.total)
            tracker.finish()
    write_results(folder, chosen, material, rows, trackers)
    terminal.say(f"adapter    {folder.adapter}")
    terminal.say(f"page       {folder.page}")


def _trackers(folder: RunFolder, chosen: Settings, terminal: Terminal) -> list[Tracker]:
    trackers = open_trackers(
        chosen.track.to,
        project=chosen.track.project,
        experiment=chosen.track.experiment or folder.path.name,
        folder=folder.path,
        warn=terminal.warn,
    )
    for tracker in trackers:
        tracker.start(chosen.model_dump(mode="json"))
        if tracker.address:
            terminal.say(f"tracker    {tracker.address}")
    return trackers
