"""AdamW with gradient clipping, decided on the device: the host does not wait to learn whether a step is finite.

A step whose loss or gradient is not finite is skipped, and so is every later one: the parameters keep their values
until the host reads the loss, some steps later, and stops the run.

In float16 a gradient may overflow. Such a step is skipped alone, and the loss scale changes as torch.amp.GradScaler
changes it: half of it after a skipped step, twice as much after 2000 steps without one (Micikevicius et al. 2018).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from lorgnette.config import TrainSettings
from lorgnette.device import copy_to_host
from lorgnette.engine.loss_scale import allocate_loss_scale

MIN_LOSS_SCALE = 1.0
"""Where the scale would become smaller, it is not to blame for a gradient that is not finite."""
_LOSS_SCALE = "loss_scale"
_GROWTH_FACTOR, _BACKOFF_FACTOR, _GROWTH_INTERVAL = 2.0, 0.5, 2000
_NORM_EPS = 1e-6
"""Guards the division by a norm of 0, as in torch's clip_grad_norm_."""


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with β 0.9 and 0.999, ε 1e-8.

    Calls the fused kernel of torch.optim.AdamW, which also divides by the clipping factor and skips the step if
    found_inf is 1. The kernel is called directly because torch.optim imports torch.compile: seconds of imports.
    """

    def __init__(
        self, parameters: Sequence[Tensor], settings: TrainSettings, loss_scale: Float32[Tensor, ""] | None = None
    ) -> None:
        """loss_scale: the engine's. The gradients are divided by it, and it changes in place."""
        self._parameters = list(parameters)
        self._max_grad_norm, self._weight_decay = settings.max_grad_norm, settings.weight_decay
        self._exp_avgs, self._exp_avg_sqs = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        device = parameters[0].device
        self._state_steps = [torch.zeros((), device=device) for _ in parameters]
        self._state = {"exp_avg": self._exp_avgs, "exp_avg_sq": self._exp_avg_sqs, "step": self._state_steps}
        self._loss_scale, self._growth_tracker = loss_scale, torch.zeros((), dtype=torch.int32, device=device)
        if loss_scale is not None:
            self._state[_LOSS_SCALE] = [loss_scale, self._growth_tracker]
        self._found_inf = torch.zeros((), device=device)
        """1 from the first step after which no other is taken."""
        self._has_own_scaling = device.type == "mps"
        """torch's kernel for MPS reads neither grad_scale nor found_inf."""

    @torch.no_grad()
    def step(self, loss: Tensor, learning_rate: float) -> Float32[Tensor, " n"]:
        """Update the parameters and clear their gradients.

        Returns [loss, gradient norm before clipping] on the device, and behind them the new loss scale if there is one.
        """
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        norm = torch.nn.utils.get_total_norm(grads)
        if self._loss_scale is not None:
            norm = norm / self._loss_scale
        found_inf = self._find_inf(loss, norm)
        # A list, not one tensor: torch would read a single tensor's value on the host.
        torch._foreach_add_(self._state_steps, [1 - found_inf] * len(self._state_steps))
        grad_scale = ((norm + _NORM_EPS) / self._max_grad_norm).clamp_min(1.0)
        if self._loss_scale is not None:
            grad_scale = grad_scale * self._loss_scale
        if self._has_own_scaling:
            torch._foreach_div_(grads, grad_scale)
        if not (self._has_own_scaling and found_inf):
            torch._fused_adamw_(
                self._parameters, grads, self._exp_avgs, self._exp_avg_sqs, [], self._state_steps,
                lr=learning_rate, beta1=0.9, beta2=0.999, weight_decay=self._weight_decay, eps=1e-8, amsgrad=False,
                maximize=False, grad_scale=grad_scale, found_inf=found_inf,
            )  # fmt: skip
        torch._foreach_zero_(grads)
        if self._loss_scale is None:
            return torch.stack([loss, norm])
        factors = _GROWTH_FACTOR, _BACKOFF_FACTOR, _GROWTH_INTERVAL
        torch._amp_update_scale_(self._loss_scale, self._growth_tracker, found_inf, *factors)
        return torch.stack([loss, norm, self._loss_scale])

    def _find_inf(self, loss: Tensor, norm: Tensor) -> Tensor:
        """1 if this step must not change the parameters, else 0."""
        if self._loss_scale is None:
            return torch.maximum(self._found_inf, (~torch.isfinite(loss + norm)).float(), out=self._found_inf)
        has_overflow = ~torch.isfinite(norm)
        has_failed = ~torch.isfinite(loss) | (has_overflow & (self._loss_scale <= MIN_LOSS_SCALE))
        torch.maximum(self._found_inf, has_failed.float(), out=self._found_inf)
        return torch.maximum(self._found_inf, has_overflow.float())

    def state_dict(self) -> dict[str, Any]:
        """A copy on the CPU."""
        return {name: list(map(copy_to_host, tensors)) for name, tensors in self._state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AttributeError, KeyError, TypeError or ValueError for the state of other parameters."""
        for name, tensors in self._state.items():
            if name == _LOSS_SCALE and name not in state:
                continue  # the checkpoint is of another dtype, from another GPU: the scale begins anew
            for tensor, saved in zip(tensors, state[name], strict=True):
                if saved.shape != tensor.shape:  # copy_ would broadcast
                    raise ValueError(f"{name} has the shape {list(saved.shape)} instead of {list(tensor.shape)}")
                tensor.copy_(saved)


def warm_up_optimizer(device: torch.device, dtype: torch.dtype, settings: TrainSettings) -> None:
    """Load the optimizer's kernels by a step on a parameter of zero."""
    loss_scale = allocate_loss_scale(dtype, device)
    Optimizer([torch.zeros(1, device=device)], settings, loss_scale).step(torch.zeros((), device=device), 0.0)
