"""Which questions are about images that a run was trained on, byte for byte: by the hashes in its manifest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_json
from lorgnette.report.manifest import hash_image

Question = Sequence[Path]
"""The images of a question."""


@dataclass(frozen=True)
class TrainingOverlap:
    """flags: whether each question's images were trained on; None: unknown. is_tuned: False for a model that was not
    trained here. notes: warnings."""

    flags: tuple[bool, ...] | None
    is_tuned: bool = True
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """For a table."""
        if not self.is_tuned:
            return "–"
        return "unknown" if self.flags is None else f"{sum(self.flags)} of {len(self.flags)} questions"


def find_training_overlap(name: str, manifest: Path | None, questions: Sequence[Question]) -> TrainingOverlap:
    """Compare the questions with the training of `name`. manifest: of its run; None if that is not known."""
    try:
        trained = _require_trained_images(manifest)
        hashes = {path: hash_image(path) for path in dict.fromkeys(path for images in questions for path in images)}
    except (LorgnetteError, OSError) as error:
        reason = error.message if isinstance(error, LorgnetteError) else str(error)
        return TrainingOverlap(None, notes=(f"{name} may have been trained on some of these questions: {reason}",))
    flags = tuple(any(hashes[path] in trained for path in images) for images in questions)
    notes = []
    if any(flags):
        count = f"{name} was trained on the images of {sum(flags)} of {len(flags)} questions"
        notes.append(f"{count}: on these its scores, intervals and p-values do not show how it does on new images")
    if num_texts := sum(not images for images in questions):
        count = f"{num_texts} {'question' if num_texts == 1 else 'questions'} without images"
        notes.append(f"{name} may have been trained on {count}: images alone are compared")
    return TrainingOverlap(flags, notes=tuple(notes))


def read_examples_hash(manifest: Path) -> str | None:
    """The hash of a run's examples, held out ones included; None if the manifest has none."""
    try:
        return str(parse_json(manifest.read_bytes())["sha256"]["examples"])
    except (OSError, LorgnetteError, KeyError, TypeError):
        return None


def read_trained_images(manifest: Path | None) -> frozenset[str] | None:
    """The hashes of the images that a run's adapter was trained on, also in runs that it continues; None: unknown.

    The images of the training part come first in a manifest.
    """
    try:
        content = parse_json(manifest.read_bytes()) if manifest else {}
        images = list(content["images"].values())[: content["num_training_images"]]
        earlier = content["adapter"]["images"] if content.get("adapter") else []
        return frozenset([*images, *earlier])
    except (OSError, LorgnetteError, KeyError, TypeError, AttributeError):
        return None


def _require_trained_images(manifest: Path | None) -> frozenset[str]:
    if manifest is None:
        raise LorgnetteError("the run that trained it is not here")
    if (trained := read_trained_images(manifest)) is None:
        raise LorgnetteError("the manifest of its run does not say what it was trained on")
    return trained
