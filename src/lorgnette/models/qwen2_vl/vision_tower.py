"""Qwen2-VL's vision tower, forward only: images of any size packed into one row of patches.

    N patches of all images, E embedding width, H heads of width D, merge² patches per feature

    patches [N, 3·2·14²] ─ matmul ─▶ x [N, E] ─ depth × ( x += proj(attention(norm1 x)) ; x += fc2(fc1(norm2 x)) )
                                               ─ norm ─ [N/merge², E·merge²] ─ mlp ─▶ features [P, out]

Attention stays inside an image. The biases of proj and fc2 are never added to x, so that these products can accumulate
into x directly: they are constants, and the norms add them as one row (kernels/layer_norm.py).

x has the dtype of the weights, but float32 beside float16: in the last block of Qwen2.5-VL-3B it grows beyond float16's
largest number, 65504.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32
from torch import Tensor
from torch.nn.functional import gelu, linear

from lorgnette.device import copy_to_device, has_flash_attention, join_arrays, split_array
from lorgnette.kernels.gelu import quick_gelu_
from lorgnette.kernels.layer_norm import layer_norm
from lorgnette.kernels.rotary_vision import apply_rotary_vision_
from lorgnette.kernels.varlen_attention import split_into_tiles, varlen_attention
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.model_config import VISION_ROPE_THETA, VisionConfig
from lorgnette.models.registry import parse_configs
from lorgnette.models.weight_loader import load_weights_into
from lorgnette.types import ImageGrid

NORM_EPS = 1e-6  # a constant in transformers, not in config.json
MLP_PADDING = 64
"""Tiles of matrix products are so deep; with a width of 3420, rows do not even begin at multiples of 16 bytes."""
_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class ImageSpans:
    """Number of patches of each packed image, or part of one; their cumulative sums and tiles on the device."""

    lengths: tuple[int, ...]
    cu_seqlens: Int32[Tensor, " B"]
    tiles: Int32[Tensor, "n 3"]

    @classmethod
    def from_lengths(cls, lengths: tuple[int, ...], device: torch.device) -> "ImageSpans":
        cu_seqlens, tiles = np.array(list(accumulate(lengths, initial=0)), np.int32), split_into_tiles(lengths)
        on_device = copy_to_device(join_arrays([cu_seqlens, tiles.ravel()]), device)
        sums, flat_tiles = split_array(on_device, [len(cu_seqlens), tiles.size])
        return cls(lengths, sums, flat_tiles.view(-1, 3))


class VisionTower:
    """Patches to image features, with frozen weights. Other families' towers are subclasses."""

    MLP_INPUTS: ClassVar[tuple[str, ...]] = ("mlp.fc1",)
    """The checkpoint's layers before the activation."""
    MLP_INPUT, MLP_OUTPUT = "mlp.fc1", "mlp.fc2"
    """The one layer that they become here, and the layer behind the activation."""
    MERGER_PARTS: ClassVar = ("ln_q", "mlp.0", "mlp.2")
    """Norm, first and second linear layer."""

    def __init__(self, config: VisionConfig, weights: Mapping[str, Tensor]) -> None:
        """weights: the first that `allocate_weights` returns."""
        self.config, self._weights = config, weights
        patch = self._get_weight("patch_embed.proj.weight")
        self.device, self.dtype = patch.device, patch.dtype
        self._patch_weight = patch.flatten(1)
        # The sums of the biases left out before each norm of each block, and before the merger's.
        names = [f"blocks.{i}.{name}.bias" for i in range(config.depth) for name in ("attn.proj", self.MLP_OUTPUT)]
        biases = [self._get_weight(name).float() for name in names]
        patch_bias = weights.get("model.visual.patch_embed.proj.bias")
        first = torch.zeros_like(biases[0]) if patch_bias is None else patch_bias.float()
        self._deferred_biases = list(accumulate(biases, initial=first))
        self._rotary_table = self._compute_rotary_table(64)

    @classmethod
    def from_checkpoint(cls, checkpoint: BaseCheckpoint, device: torch.device, dtype: torch.dtype) -> "VisionTower":
        """Raises LorgnetteError if the checkpoint is broken or not supported."""
        _, config = parse_configs(checkpoint.load_hf_config())
        weights, views = cls.allocate_weights(config, device, dtype)
        load_weights_into(checkpoint, views)
        return cls(config, weights)

    @classmethod
    def allocate_weights(
        cls, config: VisionConfig, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(the tower's weights, views of them by the names and shapes of `config.list_weight_shapes()`). All are 0.

        The MLP's width is padded to a multiple of MLP_PADDING. The padding is 0 before and after the activation. The
        linear layers before the activation are stored as one.
        """
        weights, views = dict[str, Tensor](), dict[str, Tensor]()

        def allocate(name: str, *shape: int) -> Tensor:
            weights[name] = torch.zeros(shape, dtype=dtype, device=device)
            return weights[name]

        F, E, num_inputs = config.intermediate_size, config.embed_dim, len(cls.MLP_INPUTS)
        padded = -(-F // MLP_PADDING) * MLP_PADDING
        for block in (f"model.visual.blocks.{i}" for i in range(config.depth)):
            for kind, shape in (("weight", (num_inputs * padded, E)), ("bias", (num_inputs * padded,))):
                layer = allocate(f"{block}.{cls.MLP_INPUT}.{kind}", *shape)
                for name, rows in zip(cls.MLP_INPUTS, torch.split(layer, padded), strict=True):
                    views[f"{block}.{name}.{kind}"] = rows[:F]
            output = f"{block}.{cls.MLP_OUTPUT}.weight"
            views[output] = allocate(output, E, padded)[:, :F]
        views |= {n: allocate(n, *shape) for n, shape in config.list_weight_shapes().items() if n not in views}
        return weights, views

    @torch.no_grad()
    def __call__(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "P C"]:
        """Features of the images, in the order of their patches. The host does not wait for the device."""
        spans, positions = self._build_spans(grids), copy_to_device(self._list_positions(grids), self.device)
        longest = max(max(grid.h, grid.w) for grid in grids)
        if longest > len(self._rotary_table[0]):
            self._rotary_table = self._compute_rotary_table(2 * longest)
        x = self._embed_patches(grids, patches.to(self.dtype))
        if self.dtype == torch.float16:
            x = x.float()
        levels = []
        # Products accumulate into the residual stream; each norm adds the biases left out before it.
        for i in range(self.config.depth):
            self._add_attention(x, f"blocks.{i}", self._deferred_biases[2 * i], spans[i], positions)
            self._add_mlp(x, f"blocks.{i}", self._deferred_biases[2 * i + 1])
            if i in self.config.deepstack_blocks:
                levels.append(self._compute_level(x, i))
        features = self._merge(x, "merger", self._deferred_biases[-1])
        return torch.cat([features, *levels], 1) if levels else features

    def _embed_patches(self, grids: Sequence[ImageGrid], patches: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        """The residual stream before the first block, without the bias."""
        return patches @ self._patch_weight.T

    def _add_attention(
        self, x: Float[Tensor, "N E"], block: str, bias: Tensor, spans: ImageSpans, positions: Int32[Tensor, "N 2"]
    ) -> None:
        """x += proj(attention(norm1 x)), without proj's bias. bias: the deferred one. Frees its memory on return."""
        qkv = self._apply_linear(self._apply_norm(x, f"{block}.norm1", bias), f"{block}.attn.qkv")
        heads = qkv.view(len(x), 3, self.config.num_heads, self.config.head_dim)
        apply_rotary_vision_(heads, positions, *self._rotary_table)
        attended = attend_within_images(heads, spans).flatten(1)
        add_product(x, attended, self._get_weight(f"{block}.attn.proj.weight"))

    def _add_mlp(self, x: Float[Tensor, "N E"], block: str, bias: Tensor) -> None:
        """x += fc2(quick_gelu(fc1(norm2 x))), without fc2's bias. bias: the deferred one."""
        hidden = self._apply_linear(self._apply_norm(x, f"{block}.norm2", bias), f"{block}.mlp.fc1")
        quick_gelu_(hidden)
        add_product(x, hidden, self._get_weight(f"{block}.mlp.fc2.weight"))

    def _merge(self, x: Float[Tensor, "_ _"], merger: str, bias: Tensor) -> Float[Tensor, "P C"]:
        """merge² neighboring patches, adjacent in their order, become one feature. bias: the deferred one."""
        norm, first, second = (f"{merger}.{part}" for part in self.MERGER_PARTS)
        merged = self._apply_norm(x, norm, bias).view(-1, self.config.embed_dim * self.config.merge_size**2)
        return self._apply_linear(gelu(self._apply_linear(merged, first)), second)

    def _compute_level(self, x: Float[Tensor, "N E"], block: int) -> Float[Tensor, "P C"]:
        """The features of deepstack after a block. The norm of these mergers is over the merged patches."""
        merge, number = self.config.merge_size**2, self.config.deepstack_blocks.index(block)
        bias = self._deferred_biases[2 * block + 2].repeat(merge)
        return self._merge(x.view(-1, merge * x.shape[1]), f"deepstack_merger_list.{number}", bias)

    def _get_weight(self, name: str) -> Tensor:
        return self._weights[f"model.visual.{name}"]

    def _apply_linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self._get_weight(f"{name}.weight"), self._get_weight(f"{name}.bias"))

    def _apply_norm(self, x: Tensor, name: str, deferred_bias: Tensor) -> Tensor:
        weight, bias = self._get_weight(f"{name}.weight"), self._get_weight(f"{name}.bias")
        return layer_norm(x, deferred_bias, weight, bias, NORM_EPS)

    def _build_spans(self, grids: Sequence[ImageGrid]) -> list[ImageSpans]:
        """What attends to itself alone in each block: frames of images."""
        lengths = tuple(grid.h * grid.w for grid in grids for _ in range(grid.t))
        return [ImageSpans.from_lengths(lengths, self.device)] * self.config.depth

    def _list_positions(self, grids: Sequence[ImageGrid]) -> Int32[np.ndarray, "N 2"]:
        """(row, column) of every patch, in the order of the residual stream."""
        merge = self.config.merge_size
        positions = [compute_patch_positions(grid.h, grid.w, merge) for grid in grids for _ in range(grid.t)]
        return np.concatenate(positions)

    def _compute_rotary_table(self, length: int) -> tuple[Float32[Tensor, "L F"], Float32[Tensor, "L F"]]:
        """Cosine and sine by position and frequency."""
        half = self.config.head_dim // 2
        inv_freq = 1.0 / VISION_ROPE_THETA ** (torch.arange(0, half, 2).float() / half)
        angles = torch.arange(length).float()[:, None] * inv_freq
        return angles.cos().to(self.device), angles.sin().to(self.device)


def add_product(x: Float[Tensor, "N E"], inputs: Float[Tensor, "N I"], weight: Float[Tensor, "E I"]) -> None:
    """x += inputs · weightᵀ, in place. x: of their dtype, or float32: then nothing is rounded but x."""
    if x.dtype == inputs.dtype:
        x.addmm_(inputs, weight.T)
    elif x.is_cuda:
        torch.addmm(x, inputs, weight.T, out_dtype=torch.float32, out=x)
    else:
        x.addmm_(inputs.float(), weight.T.float())


def attend_within_images(qkv: Float[Tensor, "N 3 H D"], spans: ImageSpans) -> Float[Tensor, "N H D"]:
    """softmax(q·kᵀ/√D)·v inside every span; in half precision on a GPU of before 8.0 with torch's memory-efficient
    kernels."""
    if qkv.is_cuda and qkv.dtype in _HALF and qkv.shape[-1] % 8 == 0 and not has_flash_attention(qkv.device):
        (q, k, v), longest, scale = qkv.unbind(1), max(spans.lengths), qkv.shape[-1] ** -0.5
        packed: Tensor = torch.ops.aten._efficient_attention_forward(
            q[None], k[None], v[None], None, spans.cu_seqlens, spans.cu_seqlens, longest, longest, 0.0, 0, scale=scale
        )[0]
        return packed[0]
    return varlen_attention(qkv, spans.lengths, spans.tiles)


@lru_cache(maxsize=1024)
def compute_patch_positions(h: int, w: int, merge: int) -> Int32[np.ndarray, "N 2"]:
    """(row, column) of an image's patches in their order: block after block of merge × merge."""
    rows, columns = np.indices((h, w), dtype=np.int32)
    blocks = np.stack([rows, columns], -1).reshape(h // merge, merge, w // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)
