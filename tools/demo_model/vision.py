"""Qwen2-VL's vision tower on a batch of equally large images: transformers' modules, one attention call per layer.

transformers calls attention once per image, thousands of launches at 512 images a step. Here all images have one
grid, so the batch is a dense [n, L, …] tensor. Same weights, same result (the tests compare it with transformers').

Shapes: n images with sides of S pixels, L = (S/14)² patches each, P = L/4 image tokens each.
"""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from demo_model.checkpoint import MEAN, MERGE, PATCH, STD


def patchify(images: UInt8[Tensor, "n S S 3"]) -> Float[Tensor, "n L 1176"]:
    """Return normalized pixels in Qwen2-VL's order: merge blocks row by row, 2×2 patches in each, the frame twice."""
    n, side = images.shape[:2]
    mean, std = _load_clip_stats(images.device)
    pixels = (images.float() / 255 - mean) / std
    blocks = side // PATCH // MERGE
    patches = pixels.view(n, blocks, MERGE, PATCH, blocks, MERGE, PATCH, 3)
    patches = patches.permute(0, 1, 4, 2, 5, 7, 3, 6)
    frames = patches.unsqueeze(6).expand(*patches.shape[:6], 2, PATCH, PATCH)
    return frames.reshape(n, blocks * blocks * MERGE * MERGE, 3 * 2 * PATCH * PATCH)


@lru_cache(maxsize=4)
def _load_clip_stats(device: torch.device) -> tuple[Tensor, Tensor]:
    """Cached: a copy to the device in every step would wait for all work queued there."""
    return torch.tensor(MEAN).to(device), torch.tensor(STD).to(device)


def compute_features(visual: Any, pixels: Float[Tensor, "n L 1176"], side: int) -> Float[Tensor, "n P hidden"]:
    """Return `visual(pixels, grid_thw=[[1, side, side]] * n)` for images of side×side patches."""
    n, length, _ = pixels.shape
    weight = visual.patch_embed.proj.weight
    hidden = functional.linear(pixels, weight.view(weight.shape[0], -1))
    heads = visual.blocks[0].attn.num_heads
    cos, sin = _build_rotary_table(side, weight.shape[0] // heads, pixels.device)
    for block in visual.blocks:
        qkv = block.attn.qkv(block.norm1(hidden)).view(n, length, 3, heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = _apply_rotary(query, cos, sin), _apply_rotary(key, cos, sin)
        attended = functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + block.attn.proj(attended.transpose(1, 2).reshape(n, length, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    merged: Tensor = visual.merger(hidden.reshape(n * length, -1))
    return merged.view(n, length // MERGE**2, -1)


@lru_cache(maxsize=4)
def _build_rotary_table(side: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin, [L, width]: a quarter of the angles from a patch's row, a quarter from its column, twice."""
    blocks = side // MERGE
    rows = torch.arange(side).view(blocks, 1, MERGE, 1).expand(blocks, blocks, MERGE, MERGE).reshape(-1)
    columns = torch.arange(side).view(1, blocks, 1, MERGE).expand(blocks, blocks, MERGE, MERGE).reshape(-1)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width // 2, 2).float() / (width // 2))
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1).repeat(1, 2)
    return angles.cos().to(device), angles.sin().to(device)


def _apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x_fp32 = x.float()
    half = x_fp32.shape[-1] // 2
    rotated = torch.cat([-x_fp32[..., half:], x_fp32[..., :half]], dim=-1)
    return (x_fp32 * cos + rotated * sin).to(x.dtype)
