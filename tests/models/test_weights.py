"""Names and shapes of every family's weights are those of its files and of transformers' modules."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD
from lorgnette.models.registry import FAMILIES, find_unsupported_feature, parse_sizes
from lorgnette.models.weight_loader import index_tensors

NUM_PARAMS = {
    "Qwen2-VL-2B-Instruct": 2_208_985_600, "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen2.5-VL-32B-Instruct": 33_452_718_336, "Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen3-VL-30B-A3B-Instruct": 31_070_754_032, "Qwen3.5-4B": 4_539_265_536, "Qwen3.5-35B-A3B": 35_107_181_936,
}  # fmt: skip
"""Of transformers' modules at their true sizes, on the meta device."""


@pytest.mark.parametrize("name", FAMILIES)
def test_weight_shapes_are_those_of_the_files_and_modules(name: str, tiny_family: Callable[[str], Path]) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny_family(name))
    hf_config = checkpoint.load_hf_config()
    text, vision = parse_sizes(hf_config)
    listed = text.list_weight_shapes() | vision.list_weight_shapes()
    class_name = FAMILIES[name].class_name
    config = getattr(transformers, class_name.replace("ForConditionalGeneration", "Config"))
    with torch.device("meta"):
        model = getattr(transformers, class_name)(config.from_pretrained(checkpoint.folder))
    assert listed == {name: tuple(p.shape) for name, p in model.named_parameters()}
    if find_unsupported_feature(hf_config) is None:  # experts are in another layout in files
        shapes = {name: entry.shape for name, entry in index_tensors(checkpoint).items()}
        tied = {LM_HEAD: shapes[EMBEDDING]} if text.tie_word_embeddings else {}
        assert listed | tied == shapes


def test_released_models_have_as_many_parameters_as_their_modules() -> None:
    configs = {name: size.config for family in FAMILIES.values() for size in family.sizes for name in size.names}
    for name, count in NUM_PARAMS.items():
        text, vision = parse_sizes(configs[f"Qwen/{name}"])
        assert sum(map(math.prod, (text.list_weight_shapes() | vision.list_weight_shapes()).values())) == count
