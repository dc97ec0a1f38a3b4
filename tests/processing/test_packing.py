"""Packing loses or moves no example, label or image, however a step is split."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.models.qwen2_vl.positions import compute_position_ids
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid

IMAGE = 1_000_000
GRIDS = [ImageGrid(Image(Path(f"{i}.png")), 1, 2 * rows, 4, 2) for i, rows in enumerate((1, 2, 3))]


def build_encoded(number: int, *runs: int | str | ImageGrid) -> Encoded:
    """build_encoded(0, 3, GRIDS[0], "ab"): three tokens of text, an image, two labels."""
    tokens: list[int] = []
    labels: list[int] = []
    starts, grids = [], []
    for run in runs:
        if isinstance(run, ImageGrid):
            starts.append(len(tokens))
            grids.append(run)
            new = [IMAGE] * run.num_tokens
        else:
            new = [1000 * number + len(tokens) + i for i in range(run if isinstance(run, int) else len(run))]
        tokens += new
        labels += new if isinstance(run, str) else [IGNORE_INDEX] * len(new)
    example = Example(str(number), (), Path("x.json"), number)
    return Encoded(
        example,
        np.array(tokens, np.int32),
        np.array(labels, np.int32),
        compute_position_ids(len(tokens), starts, grids),
        tuple(grids),
        tuple(starts),
    )


PROMPT = st.lists(st.integers(0, 4) | st.sampled_from(GRIDS), max_size=4)
ANSWER = st.integers(1, 4).map(lambda count: "a" * count)
STEPS = st.lists(st.tuples(PROMPT, st.lists(st.tuples(ANSWER, PROMPT), min_size=1, max_size=3)), min_size=1, max_size=6)


@given(step=STEPS, max_tokens=st.integers(1, 120))
def test_packing_loses_and_moves_nothing(
    step: list[tuple[list[object], list[tuple[str, list[object]]]]], max_tokens: int
) -> None:
    examples = [
        build_encoded(i, 1, *begin, *(run for answer, more in turns for run in (answer, *more)))  # type: ignore[arg-type]
        for i, (begin, turns) in enumerate(step)
    ]
    batches = split_into_microbatches(examples, max_tokens)
    assert [e for batch in batches for e in batch.examples] == [e.example for e in examples]
    assert all(len(batch.input_ids) <= max_tokens or len(batch.examples) == 1 for batch in batches)
    expected = np.concatenate([e.labels[e.labels != IGNORE_INDEX] for e in examples])
    np.testing.assert_array_equal(np.concatenate([batch.targets for batch in batches]), expected)
    assert sum(float(batch.label_weights.sum(dtype=np.float64)) for batch in batches) == pytest.approx(1, abs=1e-6)
    left = iter(examples)
    for batch in batches:
        assert len(batch.label_weights) == len(batch.targets) == len(batch.label_indices)
        assert (
            batch.visible_until[-1] == len(batch.input_ids) == batch.position_ids.shape[1] == len(batch.visible_until)
        )
        borders = [0, *np.unique(batch.visible_until).tolist()]
        np.testing.assert_array_equal(batch.visible_until, np.repeat(borders[1:], np.diff(borders)))
        assert len(set(batch.grids)) == len(batch.grids)
        ends = np.cumsum([grid.num_tokens for grid in batch.grids])
        images: list[tuple[int, int]] = []
        for (start, end), encoded in zip(pairwise(borders), left, strict=False):
            length = end - start
            np.testing.assert_array_equal(batch.input_ids[start:end], encoded.input_ids[:length])
            np.testing.assert_array_equal(batch.position_ids[:, start:end], encoded.position_ids[:, :length])
            own = (batch.label_indices >= start) & (batch.label_indices < end)
            rows = np.flatnonzero(encoded.labels != IGNORE_INDEX)
            np.testing.assert_array_equal(batch.label_indices[own], start + rows - 1)  # the row before predicts
            np.testing.assert_array_equal(batch.targets[own], encoded.input_ids[rows])
            assert length == rows[-1]
            for at, grid in zip(encoded.image_starts, encoded.grids, strict=True):
                if at < length:
                    first = int(ends[batch.grids.index(grid)]) - grid.num_tokens
                    images += [(start + at + i, first + i) for i in range(grid.num_tokens)]
        assert list(zip(batch.image_token_indices.tolist(), batch.feature_indices.tolist(), strict=True)) == images
        assert np.flatnonzero(batch.input_ids == IMAGE).tolist() == batch.image_token_indices.tolist()


def test_an_image_used_twice_is_stored_once() -> None:
    batch = pack([build_encoded(0, 1, GRIDS[1], GRIDS[1], "a"), build_encoded(1, GRIDS[1], GRIDS[0], "b")], 2)
    assert batch.grids == (GRIDS[1], GRIDS[0])
    assert batch.feature_indices.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]


def test_only_images_behind_the_last_answer_are_left_out() -> None:
    batch = pack([build_encoded(0, 2, "a", GRIDS[0], "b", 1, GRIDS[2], 3)], 2)
    assert batch.grids == (GRIDS[0],)
    assert len(batch.input_ids) == 2 + 1 + GRIDS[0].num_tokens
    assert pack([build_encoded(0, 2, "a", GRIDS[2])], 1).grids == ()


def test_text_without_images_is_packed() -> None:
    batch = pack([build_encoded(0, 3, "abc"), build_encoded(1, 1, "a")], 4)
    assert (batch.image_token_indices.size, batch.feature_indices.size, batch.grids) == (0, 0, ())
    assert batch.visible_until.tolist() == [5, 5, 5, 5, 5, 6]
    assert batch.label_indices.tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("prefix_sharing", [False, True])
def test_all_arrays_are_int32_or_float32(prefix_sharing: bool) -> None:
    batch = pack(
        [build_encoded(0, 1, GRIDS[0], "a"), build_encoded(0, 1, GRIDS[0], "ab")], 1, prefix_sharing=prefix_sharing
    )
    arrays = [
        batch.input_ids,
        batch.position_ids,
        batch.visible_until,
        batch.image_token_indices,
        batch.feature_indices,
        batch.label_indices,
    ]
    assert {array.dtype for array in [*arrays, batch.targets]} == {np.dtype(np.int32)}
    assert batch.label_weights.dtype == np.float32


def test_a_microbatch_is_as_full_as_possible() -> None:
    examples = [build_encoded(i, 9, "a") for i in range(7)]
    assert [len(batch.examples) for batch in split_into_microbatches(examples, 30)] == [3, 3, 1]
    assert [len(batch.examples) for batch in split_into_microbatches(examples, 5)] == [1] * 7
    assert all(a.examples != b.examples for a, b in pairwise(split_into_microbatches(examples, 30)))
