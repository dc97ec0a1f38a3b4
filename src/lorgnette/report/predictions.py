"""What the model said before and after, one row an example, as trackers, the page and predictions.jsonl show it.

Knows nothing about models; a row holds texts and the places of its pictures.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import write_text
from lorgnette.report.thumbnail import UnreadableImageError, load_thumbnail


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """base is the untuned model's answer, tuned the adapter's; None where that model was not asked. references: every
    answer that the data has to this prompt on these pictures."""

    id: str
    images: tuple[Path, ...]
    prompt: str
    references: tuple[str, ...]
    base: str | None = None
    tuned: str | None = None

    @property
    def caption(self) -> str:
        """What a tracker shows under the picture, a line each; the answer first, for trackers cut captions short."""
        given = [("reference", text) for text in self.references]
        parts = [("after", self.tuned), *given, ("before", self.base)]
        return "\n".join(f"{name}: {text}" for name, text in parts if text is not None)


def load_thumbnails(rows: Sequence[PredictionRow], max_side: int) -> Iterator[tuple[Image.Image, str]]:
    """Each picture with its row's caption. One that cannot be read is passed over: its row's texts are shown anyway."""
    for row in rows:
        for path in row.images:
            with contextlib.suppress(UnreadableImageError):
                yield load_thumbnail(path, max_side), row.caption


def write_predictions(path: Path, rows: Sequence[PredictionRow]) -> None:
    """One JSON object a line; pictures as the texts of their paths."""
    lines = (
        {
            "id": row.id,
            "pictures": [str(picture) for picture in row.images],
            "prompt": row.prompt,
            "references": list(row.references),
            "base": row.base,
            "tuned": row.tuned,
        }
        for row in rows
    )
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_predictions(path: Path) -> list[PredictionRow]:
    """Raises LorgnetteError for a file that cannot be read, and names the line that is no prediction."""
    try:
        # Not splitlines(): it also breaks at U+2028 and the like, which JSON leaves bare inside a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LorgnetteError(
            f"predictions cannot be read: {error}", where=str(path), hint="it must be JSON lines in UTF-8"
        ) from error
    return [_parse_row(line, f"{path}, line {count}") for count, line in enumerate(lines, start=1) if line.strip()]


def _parse_row(line: str, where: str) -> PredictionRow:
    try:
        value: dict[str, Any] = json.loads(line)
        return PredictionRow(
            id=_check_text(value["id"]),
            images=tuple(map(Path, _check_texts(value["pictures"]))),
            prompt=_check_text(value["prompt"]),
            references=_check_texts(value["references"]),
            base=None if value["base"] is None else _check_text(value["base"]),
            tuned=None if value["tuned"] is None else _check_text(value["tuned"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise LorgnetteError(
            f"not a prediction ({type(error).__name__}: {error})", where=where, hint="run `lorgnette predict` again"
        ) from error


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{json.dumps(value)[:60]} is no text")
    return value


def _check_texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{json.dumps(value)[:60]} is no list of texts")
    return tuple(map(_check_text, value))
