"""TensorBoard as a tracker: event files, without project or experiment. Knows nothing about training."""

import contextlib
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorgnette.io.shell import quote_word
from lorgnette.report.thumbnail import UnreadableImageError, load_thumbnail
from lorgnette.types import PredictionRow

IMAGE_SIDE = 448


class TensorboardTracker:
    """Keeps its files under folder/tensorboard."""

    def __init__(self, _project: str, _experiment: str, folder: Path, _warn: Callable[[str], None]) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None

    @property
    def address(self) -> str | None:
        return f"tensorboard --logdir {quote_word(self._folder)}" if self._writer else None

    def start(self, settings: Mapping[str, object]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder))
        # Indented text is code in Markdown: line breaks and stars stay.
        text = json.dumps(settings, ensure_ascii=False, indent=2, default=str)
        self._writer.add_text("settings", textwrap.indent(text, "    "), 0)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_predictions(self, rows: Sequence[PredictionRow], step: int) -> None:
        """Log each image and its texts under Prediction/<id>; only the texts if an image cannot be read."""
        import numpy as np

        for row in rows:
            for i, path in enumerate(row.images):
                name = f"Prediction/{row.id}" + (f"/{i + 1}" if i else "")
                with contextlib.suppress(UnreadableImageError):
                    pixels = np.asarray(load_thumbnail(path, IMAGE_SIDE))
                    self._writer.add_image(name, pixels, step, dataformats="HWC")
            self._writer.add_text(f"Prediction/{row.id}", textwrap.indent(row.caption, "    "), step)

    def finish(self) -> None:
        if self._writer:
            self._writer.close()
