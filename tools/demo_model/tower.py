"""Equal pictures through Qwen2-VL's vision tower in one go: transformers' modules, one attention call a layer.

transformers calls attention once per picture, which at 512 pictures a step is thousands of launches. Here all pictures
have one grid, so a batch is a dense [n, L, …] tensor. Same weights, same answer (tests hold it to transformers').

Shapes: n pictures of side S pixels, L = (S/14)² patches each, P = L/4 image tokens each.
"""

from functools import lru_cache
from typing import Any

import torch
from demo_model.checkpoint import MEAN, MERGE, PATCH, STD
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional


def patchify(pictures: UInt8[Tensor, "n S S 3"]) -> Float[Tensor, "n L 1176"]:
    """Normalised pixels in Qwen2-VL's order: merge blocks row by row, in each its 2×2 patches, the frame twice."""
    n, side = pictures.shape[:2]
    mean, std = _load_clip_stats(pictures.device)
    pixels = (pictures.float() / 255 - mean) / std
    blocks = side // PATCH // MERGE
    cut = pixels.view(n, blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
    cut = cut.permute(0, 1, 4, 2, 5, 7, 3, 6)
    twice = cut.unsqueeze(6).expand(*cut.shape[:6], 2, PATCH, PATCH)
    return twice.reshape(n, blocks * blocks * MERGE * MERGE, 3 * 2 * PATCH * PATCH)


@lru_cache(maxsize=4)
def _load_clip_stats(device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept, because making them on the device each step would wait for all work queued there."""
    return torch.tensor(MEAN).to(device), torch.tensor(STD).to(device)


def compute_features(visual: Any, pixels: Float[Tensor, "n L 1176"], side: int) -> Float[Tensor, "n P hidden"]:
    """What `visual(pixels, grid_thw=[[1, side, side]] * n)` gives, for pictures of side×side patches."""
    n, length, _ = pixels.shape
    weight = visual.patch_embed.proj.weight
    hidden = functional.linear(pixels, weight.view(weight.shape[0], -1))
    heads = visual.blocks[0].attn.num_heads
    cos, sin = _build_rotary_table(side, weight.shape[0] // heads, pixels.device)
    for block in visual.blocks:
        qkv = block.attn.qkv(block.norm1(hidden)).view(n, length, 3, heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = _apply_rotary(query, cos, sin), _apply_rotary(key, cos, sin)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(n, length, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = visual.merger(hidden.reshape(n * length, -1))
    return merged.view(n, length // MERGE**2, -1)


@lru_cache(maxsize=4)
def _build_rotary_table(side: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, [L, width]: a quarter of the angles from a patch's row, a quarter from its column, then again."""
    blocks = side // MERGE
    rows = torch.arange(side).view(blocks, 1, MERGE, 1).expand(blocks, blocks, MERGE, MERGE).reshape(-1)
    columns = torch.arange(side).view(1, blocks, 1, MERGE).expand(blocks, blocks, MERGE, MERGE).reshape(-1)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width // 2, 2).float() / (width // 2))
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1).repeat(1, 2)
    return angles.cos().to(device), angles.sin().to(device)


def _apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    exact = x.float()
    half = exact.shape[-1] // 2
    turned = torch.cat([-exact[..., half:], exact[..., :half]], dim=-1)
    return (exact * cos + turned * sin).to(x.dtype)
