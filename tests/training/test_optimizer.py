"""The optimizer equals torch's AdamW and GradScaler on clipped gradients, and skips steps that are not finite."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lorgnette.config import TrainSettings
from lorgnette.training import optimizer as optimizer_module
from lorgnette.training.optimizer import MIN_LOSS_SCALE, Optimizer

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
            self._has_own_scaling = True

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


# In float16: the loss scale.


def build_scaled(parameters: list[Tensor], scale: float = 2.0**16) -> tuple[Optimizer, Tensor]:
    loss_scale = torch.tensor(scale)
    return Optimizer(parameters, SETTINGS, loss_scale), loss_scale


def set_scaled_gradients(parameters: list[Tensor], step: int, scale: Tensor, *, overflow: float | None = None) -> None:
    """The gradients of `set_gradients` times the scale, and perhaps one that overflowed."""
    set_gradients(parameters, step)
    for parameter in parameters:
        parameter.grad *= scale
    if overflow is not None:
        parameters[1].grad[3] = overflow


def test_the_loss_scale_is_that_of_torchs_grad_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_module, "_GROWTH_INTERVAL", 4)
    ours, theirs = draw_parameters(), draw_parameters()
    optimizer, scale = build_scaled(ours)
    adamw = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=4)
    scaler.scale(LOSS)  # it allocates its scale at the first use
    scales = []
    for step in range(30):
        overflow = {0: math.inf, 1: math.nan, 9: -math.inf, 20: math.inf}.get(step)
        set_scaled_gradients(ours, step, scale, overflow=overflow)
        set_scaled_gradients(theirs, step, torch.tensor(scaler.get_scale()), overflow=overflow)
        scaler.unscale_(adamw)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        scaler.step(adamw)
        scaler.update()
        result = optimizer.step(LOSS, 0.01)
        assert result[1].isfinite() == (overflow is None)
        torch.testing.assert_close(result, torch.stack([LOSS, norm, scale]), equal_nan=True)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
        assert scale.item() == scaler.get_scale()
        scales.append(scale.item())
    assert scales[:3] == [2.0**15, 2.0**14, 2.0**14]
    assert max(scales) > 2.0**15 > min(scales), "it rises and falls"


def test_a_scale_changes_no_step() -> None:
    """The scaled gradients differ by a power of two, so every bit is the same."""
    plain, scaled = draw_parameters(), draw_parameters()
    optimizer, (scaled_optimizer, scale) = Optimizer(plain, SETTINGS), build_scaled(scaled)
    for step in range(6):
        set_gradients(plain, step)
        set_scaled_gradients(scaled, step, scale)
        assert torch.equal(optimizer.step(LOSS, 0.01), scaled_optimizer.step(LOSS, 0.01)[:2])
    assert all(map(torch.equal, plain, scaled))
    set_gradients(plain, 6)
    set_scaled_gradients(scaled, 6, scale / 2)  # negative control
    optimizer.step(LOSS, 0.01), scaled_optimizer.step(LOSS, 0.01)
    assert not any(map(torch.equal, plain, scaled))


def test_only_the_step_that_overflowed_is_skipped() -> None:
    parameters = draw_parameters()
    optimizer, scale = build_scaled(parameters)
    before = [parameter.detach().clone() for parameter in parameters]
    set_scaled_gradients(parameters, 0, scale, overflow=math.nan)
    assert optimizer.step(LOSS, 0.01)[2] == scale == 2.0**15
    assert all(map(torch.equal, parameters, before))
    assert not any(tensor.any() for tensor in optimizer.state_dict()["exp_avg"])
    set_scaled_gradients(parameters, 1, scale)
    assert optimizer.step(LOSS, 0.01).isfinite().all()
    assert not any(map(torch.equal, parameters, before))
    assert {steps.item() for steps in optimizer.state_dict()["step"]} == {1.0}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_step_is_taken_after_one_that_no_smaller_scale_would_mend(where: str) -> None:
    parameters = draw_parameters()
    optimizer, scale = build_scaled(parameters, MIN_LOSS_SCALE if where == "gradient" else 2.0**16)
    before = [parameter.detach().clone() for parameter in parameters]
    set_scaled_gradients(parameters, 0, scale, overflow=math.inf if where == "gradient" else None)
    result = optimizer.step(torch.tensor(math.nan) if where == "loss" else LOSS, 0.01)
    assert not result[:2].isfinite().all()
    assert (result[2] < MIN_LOSS_SCALE) == (where == "gradient")
    set_scaled_gradients(parameters, 1, scale)
    optimizer.step(LOSS, 0.01)
    assert all(map(torch.equal, parameters, before))


def test_the_loss_scale_is_part_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_module, "_GROWTH_INTERVAL", 3)
    parameters = draw_parameters()
    optimizer, scale = build_scaled(parameters)
    for step in range(3):
        set_scaled_gradients(parameters, step, scale, overflow=math.inf if step == 0 else None)
        optimizer.step(LOSS, 0.01)
    copies = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    resumed, resumed_scale = build_scaled(copies)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed_scale == scale == 2.0**15
    for step in range(3, 6):
        for these, its_scale, its_optimizer in ((parameters, scale, optimizer), (copies, resumed_scale, resumed)):
            set_scaled_gradients(these, step, its_scale)
            its_optimizer.step(LOSS, 0.01)
        assert resumed_scale == scale == 2.0**16, "it grows after as many steps as without the stop"
    assert all(map(torch.equal, parameters, copies))
    # A run that another GPU began in bfloat16 goes on in float16, and the other way round.
    resumed.load_state_dict(Optimizer(parameters, SETTINGS).state_dict())
    assert resumed_scale == 2.0**16
    Optimizer(parameters, SETTINGS).load_state_dict(optimizer.state_dict())
