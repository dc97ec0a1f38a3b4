"""The loss scale of a training in float16: gradients are multiplied by it, so that small ones do not become zero.

It is a scalar on the device. The engine multiplies by it, also in captured graphs; the optimizer divides by it and
changes it in place (training/optimizer.py).
"""

import torch
from jaxtyping import Float32
from torch import Tensor

INITIAL_LOSS_SCALE = 2.0**16
"""That of torch.amp.GradScaler."""


def allocate_loss_scale(dtype: torch.dtype, device: torch.device) -> Float32[Tensor, ""] | None:
    """The scale at the start of a training; None for a dtype whose smallest numbers are as small as float32's."""
    return torch.full((), INITIAL_LOSS_SCALE, device=device) if dtype == torch.float16 else None
