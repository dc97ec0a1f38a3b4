"""Names and shapes of every family's weights are those of its files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.family import EMBEDDING, LM_HEAD
from lorgnette.models.registry import FAMILIES, find_unsupported_feature, parse_configs
from lorgnette.models.weight_loader import index_tensors


@pytest.mark.parametrize("name", FAMILIES)
def test_weight_shapes_are_those_of_the_files(name: str, tiny_family: Callable[[str], Path]) -> None:
    checkpoint = BaseCheckpoint.from_folder(tiny_family(name))
    hf_config = checkpoint.load_hf_config()
    if find_unsupported_feature(hf_config) is None:
        text, vision = parse_configs(hf_config)
        shapes = {name: entry.shape for name, entry in index_tensors(checkpoint).items()}
        tied = {LM_HEAD: shapes[EMBEDDING]} if text.tie_word_embeddings else {}
        assert text.list_weight_shapes() | vision.list_weight_shapes() | tied == shapes
