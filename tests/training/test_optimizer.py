"""The optimizer equals torch's AdamW on clipped gradients, and skips steps that are not finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TrainSettings
from lorgnette.training.optimizer import Optimizer

SETTINGS = TrainSettings(weight_decay=0.1, max_grad_norm=1.0)
LOSS = torch.tensor(2.0)


def draw_parameters() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 3, requires_grad=True), torch.randn(17, requires_grad=True)]


def set_gradients(parameters: list[Tensor], step: int) -> None:
    """Draw the gradients of a step: some are clipped (norms from 0.04 to 9), some are not."""
    torch.manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * [0.01, 0.1, 2.0][step % 3]


@pytest.fixture(params=["cpu", "mps"])
def device_type(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """mps: on a CPU, with a kernel that reads neither grad_scale nor found_inf, as torch's for MPS."""
    if request.param == "mps":
        kernel, build = torch._fused_adamw_, Optimizer.__init__

        def ignore_two(*tensors: object, grad_scale: Tensor, found_inf: Tensor, **rest: object) -> None:
            kernel(*tensors, **rest)

        def build_for_mps(self: Optimizer, *arguments: Any) -> None:
            build(self, *arguments)
            self._scales_itself = True

        monkeypatch.setattr(torch, "_fused_adamw_", ignore_two)
        monkeypatch.setattr(Optimizer, "__init__", build_for_mps)
    return str(request.param)


@pytest.mark.usefixtures("device_type")
def test_it_equals_torchs_adamw_on_clipped_gradients() -> None:
    ours, theirs = draw_parameters(), draw_parameters()
    optimizer, adamw = (
        Optimizer(ours, SETTINGS),
        torch.optim.AdamW(theirs, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
    )
    for step in range(20):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        adamw.param_groups[0]["lr"] = lr = 0.01 / (step + 1)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        adamw.step()
        torch.testing.assert_close(optimizer.step(LOSS, lr), torch.stack([LOSS, norm]))
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        assert not any(parameter.grad.any() for parameter in ours)


def test_it_continues_from_its_state() -> None:
    first = draw_parameters()
    optimizer = Optimizer(first, SETTINGS)
    for step in range(10):
        if step == 5:
            second = [parameter.detach().clone().requires_grad_() for parameter in first]
            resumed = Optimizer(second, SETTINGS)
            resumed.load_state_dict(optimizer.state_dict())
        set_gradients(first, step)
        optimizer.step(LOSS, 0.01)
        if step >= 5:
            set_gradients(second, step)
            resumed.step(LOSS, 0.01)
            assert all(map(torch.equal, first, second))
    before = optimizer.state_dict()
    set_gradients(first, 0)
    optimizer.step(LOSS, 0.01)
    for name, after in optimizer.state_dict().items():
        assert not any(map(torch.equal, before[name], after)), "a copy does not change"
    with pytest.raises(ValueError, match=r"exp_avg has the shape \[5, 3\] instead of \[2, 2\]"):
        Optimizer([torch.zeros(2, 2), torch.zeros(3)], SETTINGS).load_state_dict(optimizer.state_dict())
    broadcast = Optimizer([torch.zeros(1, 3), torch.zeros(1)], SETTINGS).state_dict()
    with pytest.raises(ValueError, match=r"exp_avg has the shape \[1, 3\] instead of \[5, 3\]"):
        optimizer.load_state_dict(broadcast)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.usefixtures("device_type")
def test_no_step_is_taken_after_one_that_is_not_finite(where: str, value: float) -> None:
    parameters = draw_parameters()
    optimizer = Optimizer(parameters, SETTINGS)
    set_gradients(parameters, 0)
    optimizer.step(LOSS, 0.01)
    before = [parameter.detach().clone() for parameter in parameters]
    set_gradients(parameters, 1)
    if where == "gradient":
        parameters[1].grad[3] = value
    result = optimizer.step(torch.tensor(value) if where == "loss" else LOSS, 0.01)
    assert not result.isfinite().all()
    assert all(map(torch.equal, parameters, before))
    set_gradients(parameters, 2)
    assert optimizer.step(LOSS, 0.01).isfinite().all()
    assert all(map(torch.equal, parameters, before))
    assert {steps.item() for steps in optimizer.state_dict()["step"]} == {1.0}
