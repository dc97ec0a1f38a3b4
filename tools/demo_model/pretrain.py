"""Teach the tiny model to see: `python -m demo_model.pretrain --out DIR --minutes 9`.

Writes a checkpoint folder and its manifest.json; saved about once a minute, and when interrupted. Needs no file that
this package does not make itself. On a CPU it runs too (`--steps 100 --batch 32 --workers 1`), only slowly.
"""

import argparse
import hashlib
import math
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from demo_model.checkpoint import IMAGE_SIDE, PATCH, count_parameters, make_checkpoint, save_weights
from demo_model.course import PretrainSettings, Progress
from demo_model.exam import EvalResult, evaluate_checkpoint, sample_held_out_scenes
from demo_model.lessons import Batch, BatchStream, load_tokenizer
from demo_model.tower import compute_features, patchify
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Qwen2VLForConditionalGeneration

from lorgnette.demo import wording
from lorgnette.demo.scenes import WIDTHS
from lorgnette.demo.shapes import COLORS, KINDS
from lorgnette.io.atomic import write_json

FACT_WEIGHT = 4.0


def start_batch_stream(settings: PretrainSettings) -> Iterator[Batch]:
    """Batches from the worker processes, started at once; fetched by a thread, so unpickling overlaps the launches."""
    lessons = BatchStream(settings.out, settings.batch_size, settings.seed)
    if not settings.num_workers:
        return iter(lessons)
    batches = iter(
        DataLoader(
            lessons,
            batch_size=None,
            collate_fn=_return_unchanged,
            num_workers=settings.num_workers,
            prefetch_factor=2,
            worker_init_fn=_init_worker,
            multiprocessing_context="fork",
        )
    )
    waiting: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=4)

    def fetch() -> None:
        try:
            for batch in batches:
                waiting.put(batch)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    return _drain_queue(waiting)


def _drain_queue(waiting: "queue.Queue[Batch | BaseException]") -> Iterator[Batch]:
    while True:
        batch = waiting.get()
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def _return_unchanged(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:
    """A worker ends when its parent does; Ctrl-C and TERM are for the parent, which saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def compute_token_weights(settings: PretrainSettings, device: torch.device) -> Float[Tensor, " V"]:
    """Weight of every token as a target: more for the words that only the picture can tell.

    Nine tokens in ten of a description follow from the words before them; unweighted, the few that have to be seen
    are a small part of the gradient, and seeing is learnt late.
    """
    tokenizer = load_tokenizer(settings.out)
    weights = torch.ones(len(tokenizer))
    for word in (*KINDS, *COLORS, *WIDTHS, "left", "right", "above", "below", *wording.KEY_WORDS.values()):
        weights[tokenizer(f" {word}", add_special_tokens=False).input_ids] = FACT_WEIGHT
    return weights.to(device)


def compute_loss(model: Any, batch: Batch, weights: Float[Tensor, " V"]) -> Tensor:
    """Weighted mean cross-entropy over the answers' tokens; logits are made at the label rows only."""
    device = weights.device

    def on_device(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    pictures = on_device(batch.images)
    tokens = on_device(batch.input_ids).long()
    features = compute_features(model.model.visual, patchify(pictures), IMAGE_SIDE // PATCH)
    embedded = model.model.language_model.embed_tokens(tokens)
    rows = embedded.flatten(0, 1).index_copy(
        0, on_device(batch.image_token_indices).long(), features.flatten(0, 1).to(embedded.dtype)
    )
    hidden = model.model.language_model(
        inputs_embeds=rows.view_as(embedded),
        position_ids=on_device(batch.position_ids).long(),
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state
    chosen = hidden.flatten(0, 1).index_select(0, on_device(batch.label_indices).long())
    return functional.cross_entropy(model.lm_head(chosen).float(), on_device(batch.labels).long(), weight=weights)


def build_optimizer(model: Any, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=device.type == "cuda")


def train(model: Any, batches: Iterator[Batch], settings: PretrainSettings, began: float) -> Progress:
    """The loop. Stops at the end of the schedule, or early and in good order on Ctrl-C or TERM."""
    device: torch.device = model.device
    progress, optimizer = Progress(settings, began), build_optimizer(model, device)
    weights = compute_token_weights(settings, device)
    reported, smooth = time.monotonic(), torch.zeros((), device=device)
    since = 0
    try:
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = progress.learning_rate
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = compute_loss(model, batch, weights)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            smooth += loss.detach()
            progress.step, since = progress.step + 1, since + 1
            done = progress.fraction_done >= 1
            if done or time.monotonic() - reported >= settings.log_seconds:
                progress.loss = float(smooth) / since
                speed = since * settings.batch_size / (time.monotonic() - reported)
                log_progress(model, progress, speed, evaluate=not done)
                smooth.zero_()
                reported, since = time.monotonic(), 0
            if done:
                break
    except KeyboardInterrupt:
        print_line(f"interrupted after {progress.step} steps; saving")
    return progress


def log_progress(model: Any, progress: Progress, speed: float, evaluate: bool) -> None:
    """One line; the weights are saved on the way, so a run that is killed keeps its last minute."""
    settings = progress.settings
    line = f"step {progress.step}  loss {progress.loss:.4f}  {speed:.0f} pictures/s  {progress.elapsed:.0f} s"
    if evaluate:
        save_weights(model, settings.out)
        line += f"  {evaluate_checkpoint(settings.out, sample_held_out_scenes(min(64, settings.num_eval_scenes)), str(model.device))}"
    print_line(line)


def build_manifest(
    settings: PretrainSettings, progress: Progress, marks: EvalResult, parameters: int, device: str
) -> dict[str, Any]:
    weights = (settings.out / "model.safetensors").read_bytes()
    return {
        "command": settings.command,
        "seed": settings.seed,
        "steps": progress.step,
        "pictures_seen": progress.step * settings.batch_size,
        "seconds": round(progress.elapsed),
        "loss": round(progress.loss, 4) if math.isfinite(progress.loss) else None,
        "held_out": asdict(marks),
        "parameters": parameters,
        "device": device,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
    }


def pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Make, train, examine and save; return the manifest."""
    began = time.monotonic()
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    torch.set_float32_matmul_precision("high")
    make_checkpoint(settings.out, settings.seed)
    batches = start_batch_stream(settings)
    model = Qwen2VLForConditionalGeneration.from_pretrained(settings.out, dtype=torch.float32).to(device).train()
    progress = train(model, batches, settings, began)
    save_weights(model, settings.out)
    marks = evaluate_checkpoint(settings.out, sample_held_out_scenes(settings.num_eval_scenes), name)
    shown = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    written = build_manifest(settings, progress, marks, count_parameters(model), shown)
    write_json(settings.out / "manifest.json", written)
    print_line(f"{marks}\n" + "\n".join(marks.examples))
    return written


def print_line(line: str) -> None:
    print(line, flush=True)


def parse_arguments(arguments: list[str] | None = None) -> PretrainSettings:
    parser = argparse.ArgumentParser(prog="python -m demo_model.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=PretrainSettings.minutes, help="the whole run, start to saved")
    parser.add_argument("--steps", type=int, help="end after so many steps instead")
    parser.add_argument("--batch", type=int, default=PretrainSettings.batch_size)
    parser.add_argument("--lr", type=float, default=PretrainSettings.learning_rate)
    parser.add_argument("--seed", type=int, default=PretrainSettings.seed)
    parser.add_argument(
        "--workers", type=int, default=PretrainSettings.num_workers, help="processes that draw; 0: none"
    )
    parser.add_argument("--device", default=PretrainSettings.device)
    parser.add_argument(
        "--examined", type=int, default=PretrainSettings.num_eval_scenes, help="held-out scenes at the end"
    )
    parser.add_argument("--report-seconds", type=float, default=PretrainSettings.log_seconds)
    return PretrainSettings(**vars(parser.parse_args(arguments)))


def _raise_interrupt(*_: object) -> None:
    """TERM, often sent to the workers too; torch would call their end a crash in the midst of our saving."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _raise_interrupt)
    transformers.utils.logging.disable_progress_bar()
    pretrain(parse_arguments())
