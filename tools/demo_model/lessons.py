"""What the model is pretrained on: an endless stream of batches of fresh scenes, each with a prompt and a description.

Knows nothing about weights or devices. Made by worker processes, whole batches at a time, so that the training process
only copies. Shapes: n examples, T tokens (padded on the right), R label rows.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo_model.checkpoint import IMAGE_SIDE, MERGE, PATCH
from jaxtyping import Int16, Int32, UInt8
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from transformers import Qwen2Tokenizer

from lorgnette.demo import wording
from lorgnette.demo.captions import write_description
from lorgnette.demo.scenes import Scene, draw_scene, sample_scene

GRID = IMAGE_SIDE // PATCH // MERGE
NUM_IMAGE_TOKENS = GRID * GRID
LENGTH_MULTIPLE = 16
"""Batches are padded to a multiple of this, so that few distinct shapes reach the GPU's allocator."""

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
IMAGE = "<|vision_start|>" + "<|image_pad|>" * NUM_IMAGE_TOKENS + "<|vision_end|>"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


def load_tokenizer(folder: Path) -> Any:
    return Qwen2Tokenizer.from_pretrained(folder)


def render_pixels(scene: Scene) -> UInt8[np.ndarray, "112 112 3"]:
    """The pixels the model gets: drawn at 224, then resized as the image processor resizes."""
    picture = draw_scene(scene).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def format_prompt(prompt: str, image_last: bool = False) -> str:
    """Everything before the answer, as the chat template writes it, the picture's tokens spelt out."""
    return SYSTEM + (prompt + IMAGE if image_last else IMAGE + prompt) + ANSWER


_WORDS = sorted({word for line in (*wording.GENERAL_ENGLISH, *wording.REMARKS) for word in line.split()})


def sample_prompt(rng: random.Random) -> str:
    """Mostly what people ask; else words thrown together, so that no prompt is a surprise."""
    if rng.random() < 0.7:
        return rng.choice(wording.PROMPTS)
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 6)))


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the host, in the smallest types that hold it.

    positions:  M-RoPE positions of every token.
    image_rows: rows of the flattened [n·T] tokens that hold image tokens, picture after picture.
    label_rows: rows whose hidden state predicts targets[r]: the answer and its <|im_end|>, nothing else.
    """

    images: UInt8[np.ndarray, "n 112 112 3"]
    input_ids: Int16[np.ndarray, "n T"]
    position_ids: Int16[np.ndarray, "3 n T"]
    image_token_indices: Int32[np.ndarray, " n*16"]
    label_indices: Int32[np.ndarray, " R"]
    labels: Int16[np.ndarray, " R"]


class BatchStream(IterableDataset[Batch]):
    """Never ends; worker w of seed s always gives the same batches."""

    def __init__(self, folder: Path, batch: int, seed: int) -> None:
        self.folder, self.batch, self.seed = folder, batch, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = random.Random(f"lessons {self.seed} {worker.id if worker else 0}")
        encode = load_tokenizer(self.folder).backend_tokenizer
        while True:
            yield build_batch([sample_scene(rng) for _ in range(self.batch)], encode, rng)


def build_batch(scenes: list[Scene], encode: Any, rng: random.Random) -> Batch:
    """encode is a tokenizers.Tokenizer that knows the special tokens."""
    asked = [format_prompt(sample_prompt(rng), image_last=rng.random() < 0.1) for _ in scenes]
    said = [write_description(scene, rng) + "<|im_end|>" for scene in scenes]
    prompts = [found.ids for found in encode.encode_batch(asked, add_special_tokens=False)]
    answers = [found.ids for found in encode.encode_batch(said, add_special_tokens=False)]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    image_token = encode.token_to_id("<|image_pad|>")
    tokens = np.full((len(scenes), length), encode.token_to_id("<|endoftext|>"), np.int16)
    positions = np.empty((3, len(scenes), length), np.int16)
    image_rows, label_rows, targets = [], [], []
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[n, : len(prompt)], tokens[n, len(prompt) : len(prompt) + len(answer)] = prompt, answer
        start = prompt.index(image_token)
        positions[:, n] = compute_position_ids(start, length)
        image_rows.append(n * length + start + np.arange(NUM_IMAGE_TOKENS))
        label_rows.append(n * length + len(prompt) - 1 + np.arange(len(answer)))
        targets.extend(answer)
    return Batch(
        images=np.stack([render_pixels(scene) for scene in scenes]),
        input_ids=tokens,
        position_ids=positions,
        image_token_indices=np.concatenate(image_rows).astype(np.int32),
        label_indices=np.concatenate(label_rows).astype(np.int32),
        labels=np.asarray(targets, np.int16),
    )


def compute_position_ids(start: int, length: int) -> Int16[np.ndarray, "3 length"]:
    """M-RoPE positions of a row with one picture whose first token stands at `start`: time, height, width."""
    positions = np.tile(np.arange(length), (3, 1))
    end = start + NUM_IMAGE_TOKENS
    rows, columns = np.divmod(np.arange(NUM_IMAGE_TOKENS), GRID)
    positions[0, start:end], positions[1, start:end], positions[2, start:end] = start, start + rows, start + columns
    positions[:, end:] -= NUM_IMAGE_TOKENS - GRID
    return positions.astype(np.int16)
