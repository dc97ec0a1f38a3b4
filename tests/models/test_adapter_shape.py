"""Shapes, scale and size of an adapter. (Equality with PEFT's names: lora/test_flat_params.py.)"""

import math

import pytest

from lorgnette.config import TARGET_MODULES, LoraSettings
from lorgnette.models.adapter_shape import AdapterShape, compute_scale
from lorgnette.models.model_config import TextConfig

TEXT = TextConfig(2, 64, 4, 2, 16, 96, 1000, 1e-6, 1e6, (2, 3, 3), tie_word_embeddings=True)


@pytest.mark.parametrize("target_modules", [TARGET_MODULES, ("v_proj", "down_proj"), ("q_proj", "q_proj")])
def test_the_number_of_parameters_is_the_sum_of_the_factors(target_modules: tuple[str, ...]) -> None:
    shape = AdapterShape.from_settings(TEXT, LoraSettings(rank=3, target_modules=target_modules))
    assert shape.num_params == sum(math.prod(size) for size in shape.factor_shapes().values()) > 0
    assert shape.rank == 3


def test_the_factors_fit_their_projections() -> None:
    shapes = AdapterShape.from_settings(TEXT, LoraSettings(rank=3)).factor_shapes()
    weights = TEXT.list_weight_shapes()
    for name, size in shapes.items():
        module = name.removeprefix("base_model.model.").split(".lora_")[0]
        rows, columns = weights[f"{module}.weight"]
        assert size == ((3, columns) if ".lora_A." in name else (rows, 3))


def test_an_empty_adapter_has_no_factors() -> None:
    shape = AdapterShape.empty(TEXT)
    assert shape.num_params == 0
    assert not shape.factor_shapes()


def test_the_scale_is_alpha_over_rank_or_its_root() -> None:
    assert compute_scale(4, 8.0, use_rslora=False) == 2.0
    assert compute_scale(4, 8.0, use_rslora=True) == 4.0
