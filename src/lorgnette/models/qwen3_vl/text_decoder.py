"""Qwen3-VL's text decoder in the fast engine: that of Qwen2-VL, with a norm of every head of q and k."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lorgnette.kernels.qk_norm_rotary import norm_and_rotate, norm_and_rotate_backward
from lorgnette.models.qwen2_vl import text_decoder as qwen2_vl
from lorgnette.models.qwen2_vl.text_decoder import CosSin, Decoder

__all__ = ["Decoder", "DecoderLayer"]


@dataclass(slots=True)
class DecoderLayer(qwen2_vl.DecoderLayer):
    """One layer's frozen weights with the adapter's factors.

    head_norms: of the query heads and of the key heads. `LayerActivations.qkv` is the projection's output, because the
    norm's backward pass needs it; the heads that attention reads are normed and rotated again.
    """

    head_norms: Float[Tensor, "2 D"]

    @property
    def norms(self) -> dict[str, Tensor]:
        q_norm, k_norm = self.head_norms
        outer = super(DecoderLayer, self).norms  # a class with slots has no plain super()
        return outer | {"self_attn.q_norm": q_norm, "self_attn.k_norm": k_norm}

    def rotate_heads(self, qkv: Float[Tensor, "T _"], cos_sin: CosSin, *, save: bool) -> Float[Tensor, "T _"]:
        out = torch.empty_like(qkv) if save else qkv
        norm_and_rotate(qkv, self.head_norms, self.config.rms_norm_eps, *cos_sin, self.num_heads, out)
        return out

    def recompute_heads(self, qkv: Float[Tensor, "T _"], cos_sin: CosSin) -> Float[Tensor, "T _"]:
        return self.rotate_heads(qkv, cos_sin, save=True)

    def rotate_heads_backward(self, dqkv: Float[Tensor, "T _"], qkv: Float[Tensor, "T _"], cos_sin: CosSin) -> None:
        norm_and_rotate_backward(dqkv, qkv, self.head_norms, self.config.rms_norm_eps, *cos_sin, self.num_heads)
