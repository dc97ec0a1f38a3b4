"""Linear layers of the reference engine that hold NF4 weights, through bitsandbytes' own functions.

bitsandbytes' layer is replaced: without gradients it multiplies with other kernels, of other precision on some CPUs.
Here every product is torch's with the dequantized matrix, which is gone afterwards; the backward pass dequantizes
again.
"""

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as multiply

from lorgnette.engine.unrounded_linear import FrozenLinear, multiply_in_fp32
from lorgnette.errors import LorgnetteError
from lorgnette.kernels import NF4_BLOCK_SIZE, NF4_NESTED_BLOCK_SIZE
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.quantization import require_bitsandbytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Nf4Linear(FrozenLinear):
    """A frozen linear layer; `weight` is bitsandbytes' Params4bit.

    x: [..., in], rounded to the dtype of the dequantized weight. The output is [..., out] in that dtype, or in fp32,
    the sums of the product, if `is_unrounded`.
    """

    @classmethod
    def from_linear(cls, linear: Any, dtype: torch.dtype) -> "Nf4Linear":
        """A layer with the parameters of bitsandbytes' Linear4bit, not copies. dtype: of the dequantized weight."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer._state.dtype = dtype
        return layer.train(linear.training)

    @property
    def compute_dtype(self) -> torch.dtype:
        dtype: torch.dtype = self._state.dtype
        return dtype

    @property
    def _state(self) -> Any:
        """bitsandbytes' QuantState: everything of the weight but its bytes."""
        weight: Any = self.weight
        return weight.quant_state

    def dequantize(self) -> Tensor:
        """The weight, [out, in].

        bitsandbytes is given the values as one row. Of a matrix it takes wrong scales on a CPU with AVX-512, at least
        up to version 0.50, where a block of values goes on in the next row.
        """
        from bitsandbytes.functional import dequantize_4bit

        state = copy(self._state)
        state.shape = torch.Size((1, self.out_features * self.in_features))
        weight: Tensor = dequantize_4bit(self.weight.data, state)
        return weight.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x.to(self.compute_dtype), self)  # type: ignore[no-untyped-call]
        return y


class _Product(torch.autograd.Function):
    """x·Wᵀ + bias. Neither W nor the bias gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer, weight = layer, layer.dequantize()
        if not layer.is_unrounded:
            return multiply(x, weight, layer.bias)
        y = multiply_in_fp32(x, weight)
        return y if layer.bias is None else y + layer.bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.dequantize()
        return gradients[0].to(weight.dtype) @ weight, None


def build_loading_options(checkpoint: BaseCheckpoint, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers' from_pretrained needs for a checkpoint with quantization.

    Raises UsageError if bitsandbytes is not installed.
    """
    require_bitsandbytes()
    from transformers import AutoConfig, BitsAndBytesConfig

    quantization = checkpoint.quantization
    assert quantization is not None
    bitsandbytes_config = BitsAndBytesConfig(**checkpoint.build_bitsandbytes_options(), bnb_4bit_compute_dtype=dtype)
    options: dict[str, Any] = {"device_map": {"": device}}
    if not quantization.is_stored:
        return options | {"quantization_config": bitsandbytes_config}
    # The file's own list may have names from before transformers 4.52, or leave out too little.
    config = AutoConfig.from_pretrained(checkpoint.folder)
    config.quantization_config = bitsandbytes_config.to_dict()
    return options | {"config": config}


def replace_quantized_linears(model: "PreTrainedModel", dtype: torch.dtype, folder: Path) -> None:
    """Put Nf4Linear in the place of every one of bitsandbytes' layers, and all other weights in `dtype`.

    transformers leaves those in the dtype of the file if it has NF4 weights. Raises LorgnetteError for an NF4 weight
    whose parts do not fit together: bitsandbytes would read memory beyond them.
    """
    from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            if misfit := _find_misfit(module):
                message = f"weights cannot be loaded: {name}.weight has {misfit}"
                raise LorgnetteError(message, where=str(folder), hint=DOWNLOAD_AGAIN)
            model.set_submodule(name, Nf4Linear.from_linear(module, dtype))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def set_compute_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """The dtype of the products of its NF4 layers."""
    for layer in module.modules():
        if isinstance(layer, Nf4Linear):
            layer._state.dtype = dtype


def _find_misfit(linear: Any) -> str | None:
    """What does not fit together in the weight of bitsandbytes' layer, or None."""
    state, size = linear.weight.quant_state, linear.in_features * linear.out_features
    num_blocks = -(-size // NF4_BLOCK_SIZE)
    dtypes = {"its bytes": (linear.weight, torch.uint8), "absmax": (state.absmax, torch.float32)}
    sizes = {"its bytes": (linear.weight, -(-size // 2)), "absmax": (state.absmax, num_blocks)}
    if state.nested:
        dtypes |= {"absmax": (state.absmax, torch.uint8), "nested_absmax": (state.state2.absmax, torch.float32)}
        sizes["nested_absmax"] = state.state2.absmax, -(-num_blocks // NF4_NESTED_BLOCK_SIZE)
        sizes["nested_quant_map"] = state.state2.code, NF4_NESTED_BLOCK_SIZE
    blocks = (state.blocksize, state.state2.blocksize if state.nested else NF4_NESTED_BLOCK_SIZE)
    if state.quant_type != "nf4" or blocks != (NF4_BLOCK_SIZE, NF4_NESTED_BLOCK_SIZE):
        return f"the type {state.quant_type} in blocks of {blocks[0]} and {blocks[1]}"
    if tuple(state.shape or ()) != (linear.out_features, linear.in_features):
        return f"the shape {list(state.shape or ())}, not {[linear.out_features, linear.in_features]}"
    if state.nested and not state.offset.isfinite().all():
        return "an offset that is not finite"
    wrong = [name for name, (part, expected) in sizes.items() if part.numel() != expected]
    wrong += [name for name, (part, dtype) in dtypes.items() if part.dtype != dtype]
    return f"{wrong[0]} of another size or dtype" if wrong else None
