"""In half precision a LoRA layer rounds once: what PEFT loses below half a unit of the base's output is kept."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from lorgnette.config import LoraSettings
from lorgnette.engine.peft_engine import add_adapter, get_adapter_state
from lorgnette.engine.unrounded_linear import UnroundedLinear, add_before_rounding
from lorgnette.models.registry import FAMILIES

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


def build_model(device: str, dtype: torch.dtype = torch.bfloat16, *, use_dora: bool = False) -> Any:
    """One linear layer with a bias and an adapter whose part is about 2⁻¹⁰ of the output."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 256)).to(device, dtype)
    config = LoraConfig(r=4, target_modules=["0"], lora_alpha=4, use_dora=use_dora)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=3e-4)
    return model.eval()


def compute_parts(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The base's output and the adapter's part in float64, from the layer's own parameters."""
    layer = model.get_base_model()[0]
    base = x.double() @ layer.base_layer.weight.double().t() + layer.base_layer.bias.double()
    factors = [factor["default"].weight.double().t() for factor in (layer.lora_A, layer.lora_B)]
    return base, x.double() @ factors[0] @ factors[1]


def measure_kept_share(model: Any, x: Tensor) -> float:
    """How much of the adapter's part is in the output: 1 is all of it, 0 is nothing."""
    base, part = compute_parts(model, x)
    change = model(x).double() - base
    return ((change * part).sum() / part.square().sum()).item()


@pytest.mark.parametrize("device", DEVICES)
def test_a_small_part_is_kept(device: str) -> None:
    plain, x = build_model(device), torch.randn(512, 64, device=device).bfloat16()
    ours = copy.deepcopy(plain)
    add_before_rounding(ours)
    with torch.autocast(device, torch.bfloat16), torch.no_grad():
        assert ours(x).dtype == plain(x).dtype == torch.bfloat16
        assert abs(measure_kept_share(ours, x) - 1) < 0.05
        assert measure_kept_share(plain, x) < 0.8  # the control: PEFT's own layer


@pytest.mark.parametrize("device", DEVICES)
def test_the_sum_is_rounded_once(device: str) -> None:
    model, x = build_model(device), torch.randn(32, 64, device=device).bfloat16()
    add_before_rounding(model)
    with torch.no_grad():
        base, part = compute_parts(model, x)
        unit = torch.exp2(torch.floor(torch.log2((base + part).abs())) - 7)  # of the last place, with 8 bits
        assert ((model(x).double() - (base + part)).abs() <= 0.51 * unit).all()


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_plain_layer(device: str) -> None:
    gradients = []
    for seam in (add_before_rounding, lambda model: None):
        model = build_model(device)
        seam(model)
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).bfloat16().to(device).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            (model(x).float() * torch.linspace(-1, 1, 256, device=device)).sum().backward()
        layer = model.get_base_model()[0]
        gradients.append([x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad])
        assert layer.base_layer.weight.grad is None
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=2**-7, atol=1e-5)


def test_without_its_adapter_the_layer_is_the_base() -> None:
    model, x = build_model("cpu"), torch.randn(32, 64).bfloat16()
    expected = model.get_base_model()[0].base_layer(x)
    add_before_rounding(model)
    with model.disable_adapter(), torch.no_grad():
        output = model(x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=2**-7, atol=1e-5)


def test_dora_works_on_it() -> None:
    plain, x = build_model("cpu", use_dora=True), torch.randn(32, 64).bfloat16()
    ours = copy.deepcopy(plain)
    add_before_rounding(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=2**-6, atol=1e-4)


def test_parameters_keep_names_and_storage(load_tiny_model: Callable[[], Any]) -> None:
    base = load_tiny_model().to(torch.bfloat16)
    pointers = {parameter.data_ptr() for parameter in base.parameters()}
    model = add_adapter(base, FAMILIES["qwen2_vl"], LoraSettings(rank=4), seed=0)
    assert sum(isinstance(module, UnroundedLinear) for module in model.modules()) == 2 * 7
    assert pointers <= {parameter.data_ptr() for parameter in model.parameters()}
    plain = add_adapter(load_tiny_model(), FAMILIES["qwen2_vl"], LoraSettings(rank=4), seed=0)
    assert not any(isinstance(module, UnroundedLinear) for module in plain.modules())
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert get_adapter_state(model).keys() == get_adapter_state(plain).keys()
