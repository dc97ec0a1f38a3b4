"""AdamW on clipped gradients, decided on the device: the host does not wait to see whether a step is finite.

A step whose loss or gradient is not finite is not taken, and none is after it: the parameters keep the values they had
before it until the host has read of it, some steps later.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from lorgnette.config import TrainSettings

_NORM_EPS = 1e-6
"""clip_grad_norm_'s, against a norm of 0."""


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019), β 0.9 and 0.999, ε 1e-8: the fused kernel that torch.optim.AdamW calls, which
    also divides by what clipping asks for, and leaves the step out where it is told to.

    It is called directly because torch.optim brings torch.compile's machinery with it: seconds of imports.
    """

    def __init__(self, parameters: Sequence[Tensor], settings: TrainSettings) -> None:
        self._parameters, self._max_grad_norm, self._weight_decay = (
            list(parameters),
            settings.max_grad_norm,
            settings.weight_decay,
        )
        self._exp_avgs, self._exp_avg_sqs = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        device = parameters[0].device
        self._state_steps = [torch.zeros((), device=device) for _ in parameters]
        self._found_inf = torch.zeros((), device=device)
        """1 once a step was not finite."""

    @torch.no_grad()
    def step(self, loss: Tensor, lr: float) -> Float32[Tensor, " 2"]:
        """Update the parameters and clear their gradients. Returns [loss, gradient norm before clipping], still on the
        device."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        norm = torch.nn.utils.get_total_norm(grads)
        torch.maximum(self._found_inf, (~torch.isfinite(loss + norm)).float(), out=self._found_inf)
        torch._foreach_add_(
            self._state_steps, [1 - self._found_inf] * len(self._state_steps)
        )  # a single tensor would be asked for
        torch._fused_adamw_(
            self._parameters, grads, self._exp_avgs, self._exp_avg_sqs, [], self._state_steps,
            lr=lr, beta1=0.9, beta2=0.999, weight_decay=self._weight_decay, eps=1e-8, amsgrad=False, maximize=False,
            grad_scale=((norm + _NORM_EPS) / self._max_grad_norm).clamp_min(1.0), found_inf=self._found_inf,
        )  # fmt: skip
        torch._foreach_zero_(grads)
        return torch.stack([loss, norm])

    def state_dict(self) -> dict[str, Any]:
        """A copy, on the CPU."""
        return {name: [tensor.to("cpu", copy=True) for tensor in mine] for name, mine in self._state_tensors.items()}

    @property
    def _state_tensors(self) -> dict[str, list[Tensor]]:
        return {"mean": self._exp_avgs, "square": self._exp_avg_sqs, "steps": self._state_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError for the state of other parameters."""
        for name, mine in self._state_tensors.items():
            for tensor, saved in zip(mine, state[name], strict=True):
                tensor.copy_(saved)


def warm_up_optimizer(device: torch.device, settings: TrainSettings) -> None:
    """Take a step of nothing: the kernels are loaded then."""
    Optimizer([torch.zeros(1, device=device)], settings).step(torch.zeros((), device=device), 0.0)
