"""Sizes equal to transformers' `smart_resize`, patches of the right shape, broken configs named."""

import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.processing.image_processor import ImageProcessor

EDGE = st.integers(1, 6000)


def load_processor(tiny: Path, **settings: object) -> ImageProcessor:
    return ImageProcessor.from_folder(tiny, ProcessorSettings.model_validate(settings))


@given(width=EDGE, height=EDGE, budget=st.tuples(st.integers(1, 3000), st.integers(1, 3000)).map(sorted))
def test_an_image_that_keeps_its_shape_is_smart_resized(tiny: Path, width: int, height: int, budget: list[int]) -> None:
    assume(max(width, height) / min(width, height) <= 200)  # transformers refuses longer ones
    processor = load_processor(tiny, image_size=None, image_tokens=budget)
    min_pixels, max_pixels = (tokens * 28 * 28 for tokens in budget)
    assert processor.compute_size(width, height) == smart_resize(height, width, 28, min_pixels, max_pixels)


@given(width=EDGE, height=EDGE)
def test_every_image_has_at_least_one_token(tiny: Path, width: int, height: int) -> None:
    rows, columns = load_processor(tiny, image_size=None).compute_size(width, height)
    assert min(rows, columns) >= 28
    assert rows % 28 == columns % 28 == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((280, 280), (280, 280)),
        ((56, 280), (56, 280)),
        ((1, 1), (28, 28)),
        ((41, 43), (28, 56)),
        ((100, 30), (112, 28)),
    ],
)
def test_a_fixed_size_is_rounded_to_whole_tokens(tiny: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    processor = load_processor(tiny, image_size=size)
    assert {processor.compute_size(*given) for given in ((5, 900), (640, 480), (1, 1))} == {expected}


def test_patches_are_rows_of_three_channels_in_two_frames(tiny: Path) -> None:
    processor = load_processor(tiny, image_size=(56, 84))
    assert processor.token_side == 28
    pixels = processor.resize(PIL.Image.new("RGB", (300, 20), (255, 0, 127)))
    assert pixels.shape == (56, 84, 3)
    patches = processor.patchify(pixels)
    assert patches.shape == (4 * 6, 3 * 2 * 14 * 14)
    assert patches.dtype == np.float32
    for row in patches.reshape(24, 3, -1):  # one color: every patch has its three normalized values
        np.testing.assert_allclose(
            row,
            ((np.array([1, 0, 127 / 255]) - processor.image_mean) / processor.image_std)[:, None].repeat(392, 1),
            rtol=1e-5,
        )


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"patch_size": "wide"}', '{"patch_size": null}'])
def test_a_broken_config_is_named(tiny: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(content)
    with pytest.raises(LorgnetteError, match=r"preprocessor_config\.json cannot be read: ") as caught:
        load_processor(tmp_path)
    assert caught.value.where == str(path)
    assert caught.value.hint


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"preprocessor_config\.json is missing") as caught:
        load_processor(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert caught.value.hint


def test_the_checkpoints_config_is_used(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0, 0, 0]}))
    processor = load_processor(folder, image_size=None, image_tokens=(2, 9))
    assert (processor.token_side, processor.image_mean, processor.min_pixels, processor.max_pixels) == (
        28,
        (0.0, 0.0, 0.0),
        2 * 28 * 28,
        9 * 28 * 28,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch_size", 10**9), ("patch_size", 14.0), ("patch_size", True), ("patch_size", -14), ("merge_size", 0),
        ("temporal_patch_size", None), ("image_mean", [0.5, 0.5]), ("image_mean", [0.5, 0.5, 2]), ("image_mean", "abc"),
        ("image_std", [0.5, 0.5, 0]), ("image_std", [True, 0.5, 0.5]), ("image_std", None),
    ],
)  # fmt: skip
def test_an_absurd_constant_is_named(tiny: Path, tmp_path: Path, name: str, value: object) -> None:
    config = json.loads((tiny / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(LorgnetteError, match=f"preprocessor_config.json cannot be read: {name} is "):
        ImageProcessor.from_folder(tmp_path, ProcessorSettings())


@pytest.mark.parametrize(("name", "value"), [("patch_size", 16), ("spatial_merge_size", 1), ("temporal_patch_size", 1)])
def test_patches_of_another_model_are_refused(tiny: Path, tmp_path: Path, name: str, value: int) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LorgnetteError, match=rf"_size is \d+, in config\.json {value}"):
        ImageProcessor.from_folder(folder, ProcessorSettings())
