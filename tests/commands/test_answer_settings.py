"""Image size and token limit of answers: by default those of the run that trained the adapter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorgnette.commands.answer_settings import select_max_new_tokens, set_answer_size
from lorgnette.config import ProcessorSettings
from lorgnette.errors import UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora.metadata import AdapterMetadata


@pytest.fixture
def spec(tiny: Path, adapter_metadata: AdapterMetadata, terminal: Any) -> ModelSpec:
    """An adapter that was trained at 28×56."""
    metadata = adapter_metadata.model_copy(update={"processor": ProcessorSettings(image_size=(28, 56))})
    base = ModelSpec.from_names(str(tiny), None, terminal)
    processor = replace(base.processor, settings=metadata.processor)
    return replace(base, metadata=metadata, processor=processor)


def set_native(spec: ModelSpec) -> ModelSpec:
    assert spec.metadata is not None
    return replace(spec, metadata=spec.metadata.model_copy(update={"predict_image_size": "native"}))


def test_the_default_is_the_size_with_which_the_run_answers(spec: ModelSpec) -> None:
    assert set_answer_size(spec, None) is spec
    native = set_answer_size(set_native(spec), None)
    limits = spec.checkpoint.family.native_image_tokens
    assert (native.processor.settings.image_size, native.processor.settings.image_tokens) == (None, limits)
    assert native.processor.image_processor.compute_size(560, 280) == (280, 560)  # its own size
    assert native.processor.tokenizer is spec.processor.tokenizer  # read once
    plain = replace(spec, metadata=None)
    assert set_answer_size(plain, None) is plain


@pytest.mark.parametrize(("text", "size"), [("84", (84, 84)), ("84x112", (84, 112)), ("84,112", (84, 112))])
def test_a_size_in_pixels_is_used(text: str, size: tuple[int, int], spec: ModelSpec) -> None:
    for choice in (spec, set_native(spec)):
        sized = set_answer_size(choice, text)
        assert sized.processor.image_processor.size == sized.processor.settings.image_size == size


def test_the_size_of_training_can_be_asked_for(spec: ModelSpec) -> None:
    assert set_answer_size(set_native(spec), "train").processor is spec.processor


@pytest.mark.parametrize("text", ["big", "0", "1x2x3", "-28"])
def test_another_text_is_an_error(text: str, spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=rf"not an image size · --image-size {text} · write native, train, or height"):
        set_answer_size(spec, text)


def test_compared_models_have_one_token_limit(spec: ModelSpec) -> None:
    assert spec.metadata is not None
    formulas = replace(spec, metadata=spec.metadata.model_copy(update={"predict_max_new_tokens": 512}))
    assert select_max_new_tokens(None, [spec, formulas, None]) == 512
    assert select_max_new_tokens(None, [replace(spec, metadata=None)]) == 128
    assert select_max_new_tokens(7, [formulas]) == 7
