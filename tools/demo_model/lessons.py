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
from demo_model.checkpoint import ENCODED_SIDE, MERGE, PATCH
from jaxtyping import Int16, Int32, UInt8
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from transformers import Qwen2Tokenizer

from lorgnette.demo import wording
from lorgnette.demo.captions import describe
from lorgnette.demo.scenes import Scene, draw, random_scene

GRID = ENCODED_SIDE // PATCH // MERGE
IMAGE_TOKENS = GRID * GRID
LENGTH_STEP = 16
"""Batches are padded to a multiple of this, so that few distinct shapes reach the GPU's allocator."""

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
PICTURE = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


def load_tokenizer(folder: Path) -> Any:
    return Qwen2Tokenizer.from_pretrained(folder)


def seen(scene: Scene) -> UInt8[np.ndarray, "112 112 3"]:
    """The pixels the model gets: drawn at 224, then resized as the image processor resizes."""
    picture = draw(scene).resize((ENCODED_SIDE, ENCODED_SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def conversation(prompt: str, picture_last: bool = False) -> str:
    """Everything before the answer, as the chat template writes it, the picture's tokens spelt out."""
    return SYSTEM + (prompt + PICTURE if picture_last else PICTURE + prompt) + ANSWER


_WORDS = sorted({word for line in (*wording.GENERAL_ENGLISH, *wording.REMARKS) for word in line.split()})


def random_prompt(rng: random.Random) -> str:
    """Mostly what people ask; else words thrown together, so that no prompt is a surprise."""
    if rng.random() < 0.7:
        return rng.choice(wording.PROMPTS)
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 6)))


@dataclass(frozen=True, slots=True)
class Lesson:
    """One batch on the host, in the smallest types that hold it.

    positions:  M-RoPE positions of every token.
    image_rows: rows of the flattened [n·T] tokens that hold image tokens, picture after picture.
    label_rows: rows whose hidden state predicts targets[r]: the answer and its <|im_end|>, nothing else.
    """

    pictures: UInt8[np.ndarray, "n 112 112 3"]
    tokens: Int16[np.ndarray, "n T"]
    positions: Int16[np.ndarray, "3 n T"]
    image_rows: Int32[np.ndarray, " n*16"]
    label_rows: Int32[np.ndarray, " R"]
    targets: Int16[np.ndarray, " R"]


class Lessons(IterableDataset[Lesson]):
    """Never ends; worker w of seed s always gives the same batches."""

    def __init__(self, folder: Path, batch: int, seed: int) -> None:
        self.folder, self.batch, self.seed = folder, batch, seed

    def __iter__(self) -> Iterator[Lesson]:
        worker = get_worker_info()
        rng = random.Random(f"lessons {self.seed} {worker.id if worker else 0}")
        encode = load_tokenizer(self.folder).backend_tokenizer
        while True:
            yield lesson([random_scene(rng) for _ in range(self.batch)], encode, rng)


def lesson(scenes: list[Scene], encode: Any, rng: random.Random) -> Lesson:
    """encode is a tokenizers.Tokenizer that knows the special tokens."""
    asked = [conversation(random_prompt(rng), picture_last=rng.random() < 0.1) for _ in scenes]
    said = [describe(scene, rng) + "<|im_end|>" for scene in scenes]
    prompts = [found.ids for found in encode.encode_batch(asked, add_special_tokens=False)]
    answers = [found.ids for found in encode.encode_batch(said, add_special_tokens=False)]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    length = -(-longest // LENGTH_STEP) * LENGTH_STEP
    image_token = encode.token_to_id("<|image_pad|>")
    tokens = np.full((len(scenes), length), encode.token_to_id("<|endoftext|>"), np.int16)
    positions = np.empty((3, len(scenes), length), np.int16)
    image_rows, label_rows, targets = [], [], []
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[n, : len(prompt)], tokens[n, len(prompt) : len(prompt) + len(answer)] = prompt, answer
        start = prompt.index(image_token)
        positions[:, n] = picture_positions(start, length)
        image_rows.append(n * length + start + np.arange(IMAGE_TOKENS))
        label_rows.append(n * length + len(prompt) - 1 + np.arange(len(answer)))
        targets.extend(answer)
    return Lesson(
        pictures=np.stack([seen(scene) for scene in scenes]),
        tokens=tokens,
        positions=positions,
        image_rows=np.concatenate(image_rows).astype(np.int32),
        label_rows=np.concatenate(label_rows).astype(np.int32),
        targets=np.asarray(targets, np.int16),
    )


def picture_positions(start: int, length: int) -> Int16[np.ndarray, "3 length"]:
    """M-RoPE positions of a row with one picture whose first token stands at `start`: time, height, width."""
    positions = np.tile(np.arange(length), (3, 1))
    end = start + IMAGE_TOKENS
    rows, columns = np.divmod(np.arange(IMAGE_TOKENS), GRID)
    positions[0, start:end], positions[1, start:end], positions[2, start:end] = start, start + rows, start + columns
    positions[:, end:] -= IMAGE_TOKENS - GRID
    return positions.astype(np.int16)
