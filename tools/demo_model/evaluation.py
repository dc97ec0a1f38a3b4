"""Evaluates a checkpoint: greedy long descriptions of held-out scenes, checked by the facts they state.

It loads the folder like any user, in its stored precision, and generates with transformers' own generate, so the
shipped model is what is measured.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2VLForConditionalGeneration

from demo_model import wording
from demo_model.batches import format_prompt, load_tokenizer, render_pixels
from demo_model.checkpoint import IMAGE_SIDE, PATCH
from demo_model.descriptions import FactCheck, check_description
from demo_model.vision import patchify
from lorgnette.demo.scenes import Scene, sample_scene

BATCH_SIZE = 64
MAX_NEW_TOKENS = 160


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The share of scenes (0 … 1) with each fact correct, and the first generated texts."""

    num_scenes: int
    objects: float
    colors: float
    sizes: float
    relation: float
    background: float
    correct: float
    complete: float
    examples: tuple[str, ...]

    def __str__(self) -> str:
        names = ("objects", "colors", "sizes", "relation", "background", "correct", "complete")
        return "  ".join(f"{name} {getattr(self, name):.3f}" for name in names)


def sample_held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Return scenes of a random stream that training never uses."""
    rng = random.Random(f"held out {seed}")
    return [sample_scene(rng) for _ in range(count)]


def evaluate_checkpoint(folder: Path, scenes: list[Scene], device: str) -> EvalResult:
    """Generate a description of every scene and check it."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype="auto").to(device).eval()
    tokenizer = load_tokenizer(folder)
    texts: list[str] = []
    for start in range(0, len(scenes), BATCH_SIZE):
        prompt = wording.PROMPTS[start // BATCH_SIZE % len(wording.PROMPTS)]
        texts += generate_descriptions(model, tokenizer, scenes[start : start + BATCH_SIZE], prompt)
    checks = [check_description(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    return summarize_checks(checks, tuple(texts[:3]))


def summarize_checks(checks: list[FactCheck], examples: tuple[str, ...]) -> EvalResult:
    """Average the checks over the scenes."""

    def average(flags: list[bool]) -> float:
        return sum(flags) / len(checks)

    return EvalResult(
        num_scenes=len(checks),
        objects=average([check.has_objects for check in checks]),
        colors=average([check.has_colors for check in checks]),
        sizes=average([check.has_sizes for check in checks]),
        relation=average([check.has_relation for check in checks]),
        background=average([check.has_background for check in checks]),
        correct=average([check.is_correct for check in checks]),
        complete=average([check.is_complete for check in checks]),
        examples=examples,
    )


@torch.no_grad()
def generate_descriptions(model: Any, tokenizer: Any, scenes: list[Scene], prompt: str) -> list[str]:
    """Generate greedily for one prompt. All rows have the same length, so there is no padding."""
    prompt_ids = tokenizer(format_prompt(prompt), add_special_tokens=False).input_ids
    input_ids = torch.tensor([prompt_ids] * len(scenes), device=model.device)
    pixels = patchify(torch.from_numpy(np.stack([render_pixels(scene) for scene in scenes])).to(model.device))
    side = IMAGE_SIDE // PATCH
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        pixel_values=pixels.flatten(0, 1).to(model.dtype),
        image_grid_thw=torch.tensor([[1, side, side]] * len(scenes), device=model.device),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    texts: list[str] = tokenizer.batch_decode(output[:, len(prompt_ids) :], skip_special_tokens=True)
    return texts
