"""The optimizer is torch's AdamW on clipped gradients, and takes no step that is not finite."""

import math

import pytest
import torch
from torch import Tensor

from lorgnette.config import TrainSettings
from lorgnette.training.optimizer import Optimizer

TRAIN = TrainSettings(weight_decay=0.1, max_grad_norm=1.0)
LOSS = torch.tensor(2.0)


def drawn() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 3, requires_grad=True), torch.randn(17, requires_grad=True)]


def put(parameters: list[Tensor], step: int) -> None:
    """The gradients of a step: some are clipped (norms from 0.04 to 9), some are not."""
    torch.manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * [0.01, 0.1, 2.0][step % 3]


def test_it_is_torchs_adamw_on_clipped_gradients() -> None:
    mine, theirs = drawn(), drawn()
    optimizer, adamw = Optimizer(mine, TRAIN), torch.optim.AdamW(theirs, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    for step in range(20):
        put(mine, step)
        put(theirs, step)
        adamw.param_groups[0]["lr"] = lr = 0.01 / (step + 1)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        adamw.step()
        torch.testing.assert_close(optimizer.step(LOSS, lr), torch.stack([LOSS, norm]))
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
        assert not any(parameter.grad.any() for parameter in mine)


def test_it_goes_on_from_its_state() -> None:
    first = drawn()
    optimizer = Optimizer(first, TRAIN)
    for step in range(10):
        if step == 5:
            second = [parameter.detach().clone().requires_grad_() for parameter in first]
            resumed = Optimizer(second, TRAIN)
            resumed.load_state_dict(optimizer.state_dict())
        put(first, step)
        optimizer.step(LOSS, 0.01)
        if step >= 5:
            put(second, step)
            resumed.step(LOSS, 0.01)
            assert all(map(torch.equal, first, second))
    before = optimizer.state_dict()
    put(first, 0)
    optimizer.step(LOSS, 0.01)
    for name, after in optimizer.state_dict().items():
        assert not any(map(torch.equal, before[name], after)), "a copy stays what it was"
    with pytest.raises(RuntimeError):
        Optimizer([torch.zeros(2, 2), torch.zeros(3)], TRAIN).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_the_last(where: str, value: float) -> None:
    parameters = drawn()
    optimizer = Optimizer(parameters, TRAIN)
    put(parameters, 0)
    optimizer.step(LOSS, 0.01)
    before = [parameter.detach().clone() for parameter in parameters]
    put(parameters, 1)
    if where == "gradient":
        parameters[1].grad[3] = value
    said = optimizer.step(torch.tensor(value) if where == "loss" else LOSS, 0.01)
    assert not said.isfinite().all()
    assert all(map(torch.equal, parameters, before))
    put(parameters, 2)
    assert optimizer.step(LOSS, 0.01).isfinite().all()
    assert all(map(torch.equal, parameters, before))
    assert {steps.item() for steps in optimizer.state_dict()["steps"]} == {1.0}
