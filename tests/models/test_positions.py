"""The positions of every family are those of transformers' get_rope_index, over odd shapes and several images."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import build_config

from lorgnette.models.registry import FAMILIES, import_positions
from lorgnette.types import Image, ImageGrid

IMAGE = Image(Path("x.png"))
CONTROL_IDS = {
    name: number
    for number, name in enumerate(
        ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_end|>", "<|endoftext|>"), 90
    )
}
EDGES = st.tuples(st.integers(1, 9), st.integers(1, 9))
LAYOUTS = st.tuples(st.lists(st.tuples(st.integers(0, 5), EDGES), max_size=4), st.integers(0, 5))


@cache
def build_model(model_type: str) -> Any:
    """transformers' model of this family, without memory for its weights."""
    name = FAMILIES[model_type].class_name
    config = build_config(model_type, CONTROL_IDS, 100, is_tied=False)
    with torch.device("meta"):
        return getattr(transformers, name)(
            getattr(transformers, name.replace("ForConditionalGeneration", "Config"))(**config)
        )


@pytest.mark.parametrize("model_type", FAMILIES)
@given(layout=LAYOUTS)
def test_positions_equal_get_rope_index(model_type: str, layout: tuple[list[tuple[int, tuple[int, int]]], int]) -> None:
    """Images stand between markers. Negative control: with rows and columns exchanged they differ."""
    images, tail = layout
    ids, starts, grids = [1], [], []
    for text, (rows, columns) in images:
        ids += [2] * text + [CONTROL_IDS["<|vision_start|>"]]
        starts.append(len(ids))
        ids += [CONTROL_IDS["<|image_pad|>"]] * rows * columns + [CONTROL_IDS["<|vision_end|>"]]
        grids.append(ImageGrid(IMAGE, 1, 2 * rows, 2 * columns, 2))
    ids += [3] * tail
    tokens = torch.tensor([ids])
    grid_thw = torch.tensor([[1, grid.h, grid.w] for grid in grids]) if grids else None
    types = (tokens == CONTROL_IDS["<|image_pad|>"]).int()
    theirs, _ = build_model(model_type).model.get_rope_index(tokens, types, image_grid_thw=grid_thw)
    compute_position_ids = import_positions(model_type).compute_position_ids
    np.testing.assert_array_equal(compute_position_ids(len(ids), starts, grids), theirs[:, 0])
    exchanged = [ImageGrid(IMAGE, 1, grid.w, grid.h, 2) for grid in grids]
    if exchanged != grids:
        assert not np.array_equal(compute_position_ids(len(ids), starts, exchanged), theirs[:, 0])
