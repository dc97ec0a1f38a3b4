"""How well a checkpoint sees: greedy long descriptions of held-out scenes, judged by the facts they state.

Loads the folder as anyone would, in the precision it is stored in, and generates with transformers' own generate, so
what is measured is what ships.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_model.checkpoint import IMAGE_SIDE, PATCH
from demo_model.lessons import format_prompt, load_tokenizer, render_pixels
from demo_model.tower import patchify
from transformers import Qwen2VLForConditionalGeneration

from lorgnette.demo import wording
from lorgnette.demo.captions import FullFactCheck, check_description
from lorgnette.demo.scenes import Scene, sample_scene

BATCH_SIZE = 64
MAX_NEW_TOKENS = 160


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Shares of the scenes described right in each respect, a few of the texts, and what they were judged."""

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
        names = ("objects", "colours", "sizes", "relation", "background", "right", "complete")
        return "  ".join(f"{name} {getattr(self, name):.3f}" for name in names)


def sample_held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of a stream of their own: never drawn in training, though in millions of pictures most facts recur."""
    rng = random.Random(f"held out {seed}")
    return [sample_scene(rng) for _ in range(count)]


def evaluate_checkpoint(folder: Path, scenes: list[Scene], device: str) -> EvalResult:
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype="auto").to(device).eval()
    tokenizer = load_tokenizer(folder)
    texts: list[str] = []
    for start in range(0, len(scenes), BATCH_SIZE):
        prompt = wording.PROMPTS[start // BATCH_SIZE % len(wording.PROMPTS)]
        texts += generate_descriptions(model, tokenizer, scenes[start : start + BATCH_SIZE], prompt)
    judged = [check_description(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    return summarize_checks(judged, tuple(texts[:3]))


def summarize_checks(judged: list[FullFactCheck], examples: tuple[str, ...]) -> EvalResult:
    def share(right: list[bool]) -> float:
        return sum(right) / len(judged)

    return EvalResult(
        num_scenes=len(judged),
        objects=share([j.has_objects for j in judged]),
        colors=share([j.has_colors for j in judged]),
        sizes=share([j.has_sizes for j in judged]),
        relation=share([j.has_relation for j in judged]),
        background=share([j.has_background for j in judged]),
        correct=share([j.is_correct for j in judged]),
        complete=share([j.is_complete for j in judged]),
        examples=examples,
    )


@torch.no_grad()
def generate_descriptions(model: Any, tokenizer: Any, scenes: list[Scene], prompt: str) -> list[str]:
    """One prompt for all, so all rows are equally long and nothing is padded."""
    ids = tokenizer(format_prompt(prompt), add_special_tokens=False).input_ids
    tokens = torch.tensor([ids] * len(scenes), device=model.device)
    pixels = patchify(torch.from_numpy(np.stack([render_pixels(scene) for scene in scenes])).to(model.device))
    side = IMAGE_SIDE // PATCH
    said = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        pixel_values=pixels.flatten(0, 1).to(model.dtype),
        image_grid_thw=torch.tensor([[1, side, side]] * len(scenes), device=model.device),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
    )
    texts: list[str] = tokenizer.batch_decode(said[:, len(ids) :], skip_special_tokens=True)
    return texts
