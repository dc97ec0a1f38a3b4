"""Adds the adapter's part to the product of a half-precision layer before the sum is rounded.

PEFT adds B·A·x to the output of the base layer, which is already rounded to bf16. A part below half a unit in the last
place of the output is lost there, and the first steps of a training are made of such parts. Here the base layer gives
the fp32 sums of its product, PEFT adds to them, and a hook rounds the result once. The seams are public: a subclass of
nn.Linear in the place of `base_layer`, and a forward hook. No parameter changes its name, dtype or gradient.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import PeftModel


class FrozenLinear(nn.Linear):
    """A linear layer that trains nothing and may leave its output in fp32: the sums of its product, not rounded."""

    is_unrounded = False

    @property
    def compute_dtype(self) -> torch.dtype:
        """That of the product's factors, and of a rounded output."""
        return self.weight.dtype


class UnroundedLinear(FrozenLinear):
    """A half-precision linear layer with fp32 output.

    x: [..., in] in any dtype, rounded to the weights' dtype. The output is [..., out].
    """

    is_unrounded = True

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "UnroundedLinear":
        """A layer with the same parameters, not copies."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _UnroundedProduct.apply(x.to(self.weight.dtype), self.weight)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias


def multiply_in_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """x·Wᵀ in fp32 from half-precision x, [..., in], and W, [out, in]."""
    rows = x.reshape(-1, x.shape[-1])
    if x.is_cuda:
        y = torch.mm(rows, weight.t(), out_dtype=torch.float32)
    else:  # no CPU kernel has another output dtype
        with torch.autocast("cpu", enabled=False):
            y = rows.float() @ weight.float().t()
    return y.reshape(*x.shape[:-1], -1)


class _UnroundedProduct(torch.autograd.Function):
    """x·Wᵀ in fp32 from half-precision x and W. W gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return multiply_in_fp32(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        # The hook's rounding gave this gradient values of the weights' dtype: nothing is lost.
        return gradients[0].to(weight.dtype) @ weight, None


def add_before_rounding(model: "PeftModel") -> None:
    """Make every LoRA layer on a half-precision linear layer round once, after the adapter's part is added."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        base = module.base_layer if isinstance(module, LoraLayer) else None
        if type(base) is nn.Linear and base.weight.dtype != torch.float32:
            module.base_layer = UnroundedLinear.from_linear(base)
        elif isinstance(base, FrozenLinear) and base.compute_dtype != torch.float32:
            base.is_unrounded = True
        else:
            continue
        module.register_forward_hook(_round_output)


def _round_output(module: Any, args: object, output: Tensor) -> Tensor:
    return output.to(module.base_layer.compute_dtype)
