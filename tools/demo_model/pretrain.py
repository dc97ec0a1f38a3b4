"""Pretrain the built-in model: `cd tools && python -m demo_model.pretrain --out DIR --minutes 9`.

Writes a checkpoint folder and its manifest.json, about once a minute and on an interrupt. Needs no other files. On a
CPU it works too (`--steps 100 --batch-size 32 --num-workers 1`), but slowly.
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
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import Qwen2VLForConditionalGeneration

from demo_model import wording
from demo_model.batches import Batch, BatchStream, load_tokenizer
from demo_model.checkpoint import IMAGE_SIDE, PATCH, count_parameters, make_checkpoint, save_weights
from demo_model.evaluation import EvalResult, evaluate_checkpoint, sample_held_out_scenes
from demo_model.schedule import PretrainSettings, Progress
from demo_model.vision import compute_features, patchify
from lorgnette.demo.scenes import WIDTHS
from lorgnette.demo.shapes import COLORS, KINDS
from lorgnette.io.atomic import write_json

FACT_WEIGHT = 4.0


def start_batch_stream(settings: PretrainSettings) -> Iterator[Batch]:
    """Start the worker processes. A thread fetches their batches, so unpickling overlaps the kernel launches."""
    stream = BatchStream(settings.out, settings.batch_size, settings.seed)
    if not settings.num_workers:
        return iter(stream)
    batches = iter(
        DataLoader(
            stream,
            batch_size=None,
            collate_fn=_return_unchanged,
            num_workers=settings.num_workers,
            prefetch_factor=2,
            worker_init_fn=_init_worker,
            multiprocessing_context="fork",
        )
    )
    batch_queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=4)

    def fetch() -> None:
        try:
            for batch in batches:
                batch_queue.put(batch)
        except BaseException as error:
            batch_queue.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    return _drain_queue(batch_queue)


def _drain_queue(batch_queue: "queue.Queue[Batch | BaseException]") -> Iterator[Batch]:
    while True:
        batch = batch_queue.get()
        if isinstance(batch, BaseException):
            raise batch
        yield batch


def _return_unchanged(batch: Any) -> Any:
    return batch


def _init_worker(worker: int) -> None:
    """Ignore Ctrl-C and leave TERM to the parent, which saves first. A worker ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)


def compute_token_weights(settings: PretrainSettings, device: torch.device) -> Float[Tensor, " V"]:
    """Return the loss weight of every token: larger for the words that only the image determines.

    Nine of ten tokens of a description follow from the text before them. Without weights, the few that depend on the
    image are a small part of the gradient, and the model learns to see late.
    """
    tokenizer = load_tokenizer(settings.out)
    weights = torch.ones(len(tokenizer))
    for word in (*KINDS, *COLORS, *WIDTHS, "left", "right", "above", "below", *wording.KEYWORDS.values()):
        weights[tokenizer(f" {word}", add_special_tokens=False).input_ids] = FACT_WEIGHT
    return weights.to(device)


def compute_loss(model: Any, batch: Batch, weights: Float[Tensor, " V"]) -> Tensor:
    """Return the weighted mean cross-entropy over the answers' tokens. Logits exist at the labels only."""
    device = weights.device

    def copy_to_device(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    images = copy_to_device(batch.images)
    input_ids = copy_to_device(batch.input_ids).long()
    features = compute_features(model.model.visual, patchify(images), IMAGE_SIDE // PATCH)
    embeddings = model.model.language_model.embed_tokens(input_ids)
    flat_embeddings = embeddings.flatten(0, 1).index_copy(
        0, copy_to_device(batch.image_token_indices).long(), features.flatten(0, 1).to(embeddings.dtype)
    )
    hidden = model.model.language_model(
        inputs_embeds=flat_embeddings.view_as(embeddings),
        position_ids=copy_to_device(batch.position_ids).long(),
        attention_mask=None,
        use_cache=False,
    ).last_hidden_state
    at_labels = hidden.flatten(0, 1).index_select(0, copy_to_device(batch.label_indices).long())
    labels = copy_to_device(batch.labels).long()
    return functional.cross_entropy(model.lm_head(at_labels).float(), labels, weight=weights)


def build_optimizer(model: Any, device: torch.device) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=device.type == "cuda")


def train(model: Any, batches: Iterator[Batch], settings: PretrainSettings, started_at: float) -> Progress:
    """Run the training loop to the end of the schedule, or until Ctrl-C or TERM."""
    device: torch.device = model.device
    progress, optimizer = Progress(settings, started_at), build_optimizer(model, device)
    weights = compute_token_weights(settings, device)
    logged_at, loss_sum = time.monotonic(), torch.zeros((), device=device)
    num_steps = 0
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
            loss_sum += loss.detach()
            progress.step, num_steps = progress.step + 1, num_steps + 1
            is_done = progress.fraction_done >= 1
            if is_done or time.monotonic() - logged_at >= settings.log_seconds:
                progress.loss = float(loss_sum) / num_steps
                images_per_second = num_steps * settings.batch_size / (time.monotonic() - logged_at)
                log_progress(model, progress, images_per_second, evaluate=not is_done)
                loss_sum.zero_()
                logged_at, num_steps = time.monotonic(), 0
            if is_done:
                break
    except KeyboardInterrupt:
        print_line(f"interrupted after {progress.step} steps; saving")
    return progress


def log_progress(model: Any, progress: Progress, images_per_second: float, *, evaluate: bool) -> None:
    """Print one line. With `evaluate` also save the weights, so that a killed run loses at most a minute."""
    settings = progress.settings
    line = f"step {progress.step}  loss {progress.loss:.4f}  {images_per_second:.0f} images/s  {progress.elapsed:.0f} s"
    if evaluate:
        save_weights(model, settings.out)
        scenes = sample_held_out_scenes(min(64, settings.num_eval_scenes))
        line += f"  {evaluate_checkpoint(settings.out, scenes, str(model.device))}"
    print_line(line)


def build_manifest(
    settings: PretrainSettings, progress: Progress, result: EvalResult, num_parameters: int, device: str
) -> dict[str, Any]:
    """Return the record of the run: command, data, evaluation, versions and the hash of the weights."""
    weights = (settings.out / "model.safetensors").read_bytes()
    return {
        "command": settings.command,
        "seed": settings.seed,
        "steps": progress.step,
        "images_seen": progress.step * settings.batch_size,
        "seconds": round(progress.elapsed),
        "loss": round(progress.loss, 4) if math.isfinite(progress.loss) else None,
        "held_out": asdict(result),
        "parameters": num_parameters,
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
    """Make the checkpoint, train, evaluate and save it. Returns the manifest."""
    started_at = time.monotonic()
    device_name = settings.device
    if device_name == "auto":
        device_name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device_name)
    torch.set_float32_matmul_precision("high")
    make_checkpoint(settings.out, settings.seed)
    batches = start_batch_stream(settings)
    model = Qwen2VLForConditionalGeneration.from_pretrained(settings.out, dtype=torch.float32).to(device).train()
    progress = train(model, batches, settings, started_at)
    save_weights(model, settings.out)
    result = evaluate_checkpoint(settings.out, sample_held_out_scenes(settings.num_eval_scenes), device_name)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    manifest = build_manifest(settings, progress, result, count_parameters(model), hardware)
    write_json(settings.out / "manifest.json", manifest)
    print_line(f"{result}\n" + "\n".join(result.examples))
    return manifest


def print_line(line: str) -> None:
    print(line, flush=True)


def parse_arguments(arguments: list[str] | None = None) -> PretrainSettings:
    default = PretrainSettings
    parser = argparse.ArgumentParser(prog="python -m demo_model.pretrain", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=default.minutes, help="the whole run, start to saved")
    parser.add_argument("--steps", type=int, help="end after N steps instead")
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--learning-rate", type=float, default=default.learning_rate)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--num-workers", type=int, default=default.num_workers, help="processes that draw; 0: none")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--num-eval-scenes", type=int, default=default.num_eval_scenes, help="scenes of the evaluation")
    parser.add_argument("--log-seconds", type=float, default=default.log_seconds)
    return PretrainSettings(**vars(parser.parse_args(arguments)))


def _raise_interrupt(*_: object) -> None:
    """Handle TERM, which the workers often get too; torch would report their end as a crash while we save."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _raise_interrupt)
    transformers.utils.logging.disable_progress_bar()
    pretrain(parse_arguments())
