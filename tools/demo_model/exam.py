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
from demo_model.checkpoint import ENCODED_SIDE, PATCH
from demo_model.lessons import conversation, load_tokenizer, seen
from demo_model.tower import patches
from transformers import Qwen2VLForConditionalGeneration

from lorgnette.demo import wording
from lorgnette.demo.captions import FullJudgement, judge_description
from lorgnette.demo.scenes import Scene, random_scene

AT_ONCE = 64
LONGEST = 160


@dataclass(frozen=True, slots=True)
class Marks:
    """Shares of the scenes described right in each respect, a few of the texts, and what they were judged."""

    scenes: int
    objects: float
    colours: float
    sizes: float
    relation: float
    background: float
    right: float
    complete: float
    examples: tuple[str, ...]

    def __str__(self) -> str:
        names = ("objects", "colours", "sizes", "relation", "background", "right", "complete")
        return "  ".join(f"{name} {getattr(self, name):.3f}" for name in names)


def held_out(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of a stream of their own: never drawn in training, though in millions of pictures most facts recur."""
    rng = random.Random(f"held out {seed}")
    return [random_scene(rng) for _ in range(count)]


def examine(folder: Path, scenes: list[Scene], device: str) -> Marks:
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype="auto").to(device).eval()
    tokenizer = load_tokenizer(folder)
    texts: list[str] = []
    for start in range(0, len(scenes), AT_ONCE):
        prompt = wording.PROMPTS[start // AT_ONCE % len(wording.PROMPTS)]
        texts += descriptions(model, tokenizer, scenes[start : start + AT_ONCE], prompt)
    judged = [judge_description(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    return marks(judged, tuple(texts[:3]))


def marks(judged: list[FullJudgement], examples: tuple[str, ...]) -> Marks:
    def share(right: list[bool]) -> float:
        return sum(right) / len(judged)

    return Marks(
        scenes=len(judged),
        objects=share([j.objects for j in judged]),
        colours=share([j.colours for j in judged]),
        sizes=share([j.sizes for j in judged]),
        relation=share([j.relation for j in judged]),
        background=share([j.background for j in judged]),
        right=share([j.right for j in judged]),
        complete=share([j.complete for j in judged]),
        examples=examples,
    )


@torch.no_grad()
def descriptions(model: Any, tokenizer: Any, scenes: list[Scene], prompt: str) -> list[str]:
    """One prompt for all, so all rows are equally long and nothing is padded."""
    ids = tokenizer(conversation(prompt), add_special_tokens=False).input_ids
    tokens = torch.tensor([ids] * len(scenes), device=model.device)
    pixels = patches(torch.from_numpy(np.stack([seen(scene) for scene in scenes])).to(model.device))
    side = ENCODED_SIDE // PATCH
    said = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        pixel_values=pixels.flatten(0, 1).to(model.dtype),
        image_grid_thw=torch.tensor([[1, side, side]] * len(scenes), device=model.device),
        max_new_tokens=LONGEST,
        do_sample=False,
    )
    texts: list[str] = tokenizer.batch_decode(said[:, len(ids) :], skip_special_tokens=True)
    return texts
