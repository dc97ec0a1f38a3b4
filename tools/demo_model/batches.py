"""The pretraining data: an endless stream of batches of new scenes, each with a prompt and a long description.

Knows nothing about weights or devices. Worker processes build whole batches, so the training process only copies.
Shapes: n examples, T tokens (padded on the right), R labels.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16, Int32, UInt8
from PIL import Image as PILImage
from torch.utils.data import IterableDataset, get_worker_info
from transformers import Qwen2Tokenizer

from demo_model import wording
from demo_model.checkpoint import IMAGE_SIDE, MERGE, PATCH
from demo_model.descriptions import write_description
from lorgnette.demo.scenes import Scene, draw_scene, sample_scene

GRID = IMAGE_SIDE // PATCH // MERGE
NUM_IMAGE_TOKENS = GRID * GRID
LENGTH_MULTIPLE = 16
"""T is a multiple of this, so the GPU's allocator sees few distinct shapes."""

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
IMAGE = "<|vision_start|>" + "<|image_pad|>" * NUM_IMAGE_TOKENS + "<|vision_end|>"
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


def load_tokenizer(folder: Path) -> Any:
    """Load transformers' tokenizer from a checkpoint folder."""
    return Qwen2Tokenizer.from_pretrained(folder)


def render_pixels(scene: Scene) -> UInt8[np.ndarray, "112 112 3"]:
    """Draw the scene at 224×224 and resize it as the image processor does."""
    image = draw_scene(scene).resize((IMAGE_SIDE, IMAGE_SIDE), PILImage.Resampling.BICUBIC)
    return np.asarray(image)


def format_prompt(prompt: str, *, image_last: bool = False) -> str:
    """Return all text before the answer, as the chat template writes it, with every image token spelled out."""
    return SYSTEM + (prompt + IMAGE if image_last else IMAGE + prompt) + ANSWER


_WORDS = sorted({word for text in (*wording.GENERAL_ENGLISH, *wording.REMARKS) for word in text.split()})


def sample_prompt(rng: random.Random) -> str:
    """Return a common prompt (70 %) or one to six random words, so that no prompt is out of distribution."""
    if rng.random() < 0.7:
        return rng.choice(wording.PROMPTS)
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 6)))


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the host, in the smallest types that hold it.

    position_ids:        M-RoPE positions of every token.
    image_token_indices: indices of the image tokens in the flattened [n·T] input, image after image.
    label_indices:       indices of the tokens whose hidden state predicts labels[r]: the answer and its <|im_end|>.
    """

    images: UInt8[np.ndarray, "n 112 112 3"]
    input_ids: Int16[np.ndarray, "n T"]
    position_ids: Int16[np.ndarray, "3 n T"]
    image_token_indices: Int32[np.ndarray, " n*16"]
    label_indices: Int32[np.ndarray, " R"]
    labels: Int16[np.ndarray, " R"]


class BatchStream(IterableDataset[Batch]):
    """Endless batches; worker w with seed s always yields the same ones."""

    def __init__(self, folder: Path, batch_size: int, seed: int) -> None:
        self.folder, self.batch_size, self.seed = folder, batch_size, seed

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        rng = random.Random(f"lessons {self.seed} {worker.id if worker else 0}")
        tokenizer = load_tokenizer(self.folder).backend_tokenizer
        while True:
            yield build_batch([sample_scene(rng) for _ in range(self.batch_size)], tokenizer, rng)


def build_batch(scenes: list[Scene], tokenizer: Any, rng: random.Random) -> Batch:
    """Encode one example per scene. tokenizer: a tokenizers.Tokenizer with the special tokens."""
    prompt_texts = [format_prompt(sample_prompt(rng), image_last=rng.random() < 0.1) for _ in scenes]
    answer_texts = [write_description(scene, rng) + "<|im_end|>" for scene in scenes]
    prompts = [encoding.ids for encoding in tokenizer.encode_batch(prompt_texts, add_special_tokens=False)]
    answers = [encoding.ids for encoding in tokenizer.encode_batch(answer_texts, add_special_tokens=False)]
    max_length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    length = -(-max_length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    image_token = tokenizer.token_to_id("<|image_pad|>")
    input_ids = np.full((len(scenes), length), tokenizer.token_to_id("<|endoftext|>"), np.int16)
    position_ids = np.empty((3, len(scenes), length), np.int16)
    image_token_indices, label_indices, labels = [], [], []
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        input_ids[n, : len(prompt)], input_ids[n, len(prompt) : len(prompt) + len(answer)] = prompt, answer
        start = prompt.index(image_token)
        position_ids[:, n] = compute_position_ids(start, length)
        image_token_indices.append(n * length + start + np.arange(NUM_IMAGE_TOKENS))
        label_indices.append(n * length + len(prompt) - 1 + np.arange(len(answer)))
        labels.extend(answer)
    return Batch(
        images=np.stack([render_pixels(scene) for scene in scenes]),
        input_ids=input_ids,
        position_ids=position_ids,
        image_token_indices=np.concatenate(image_token_indices).astype(np.int32),
        label_indices=np.concatenate(label_indices).astype(np.int32),
        labels=np.asarray(labels, np.int16),
    )


def compute_position_ids(start: int, length: int) -> Int16[np.ndarray, "3 length"]:
    """Return M-RoPE positions (time, height, width) of a row whose only image starts at token `start`."""
    positions = np.tile(np.arange(length), (3, 1))
    end = start + NUM_IMAGE_TOKENS
    rows, columns = np.divmod(np.arange(NUM_IMAGE_TOKENS), GRID)
    positions[0, start:end], positions[1, start:end], positions[2, start:end] = start, start + rows, start + columns
    positions[:, end:] -= NUM_IMAGE_TOKENS - GRID
    return positions.astype(np.int16)
