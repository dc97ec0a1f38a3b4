"""The image size and the token limit with which `predict`, `evaluate` and `compare` ask a model.

Their defaults are those with which the run that trained the adapter answered its held-out examples: answers of one
adapter are alike wherever they come from.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from lorgnette.config import PredictSettings, ProcessorSettings
from lorgnette.errors import UsageError
from lorgnette.inference.loading import ModelSpec
from lorgnette.processing.image_processor import ImageProcessor


def set_answer_size(spec: ModelSpec, image_size: str | None) -> ModelSpec:
    """The model with the image size of its answers.

    image_size: "train", the size of training; "native", each image's own size within the base model's limits; or height
    and width in pixels. None: as the adapter's run (predict.image_size). Raises UsageError for another text.
    """
    choice = image_size or (spec.metadata.predict_image_size if spec.metadata else "train")
    if choice == "train":
        return spec
    update: dict[str, Any] = {"image_size": None, "image_tokens": spec.checkpoint.family.native_image_tokens}
    if choice != "native":
        update = {"image_size": _parse_image_size(choice)}
    settings = spec.processor.settings.model_copy(update=update)
    image_processor = ImageProcessor.from_folder(spec.checkpoint.folder, settings)
    return replace(spec, processor=replace(spec.processor, settings=settings, image_processor=image_processor))


def select_max_new_tokens(given: int | None, specs: Sequence[ModelSpec | None]) -> int:
    """The token limit of all answers. Without a given one it is the largest of the adapters' runs, so that models that
    are compared have the same."""
    limits = [spec.metadata.predict_max_new_tokens for spec in specs if spec and spec.metadata]
    return max(limits, default=PredictSettings().max_new_tokens) if given is None else given


def _parse_image_size(text: str) -> tuple[int, int] | None:
    try:
        return ProcessorSettings.model_validate({"image_size": text}).image_size
    except ValidationError:
        hint = "write native, train, or height and width in pixels, such as 280x420"
        raise UsageError("not an image size", where=f"--image-size {text}", hint=hint) from None
