"""What a result looks like in a notebook, and as a table for pandas.

    Table         a list of dicts        run.scores, run.log
    Answers       a list of answers      predict, model.predict, run.predictions
    InlinePage    a page of its own in a frame: works where a link to a file does not (Colab, Kaggle)

Imports pandas only when it is asked for.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorgnette.errors import LorgnetteError
from lorgnette.report.draw_boxes import format_box
from lorgnette.report.html.inline_images import inline_images
from lorgnette.report.html.templates import render
from lorgnette.types import PredictionRow

if TYPE_CHECKING:
    import pandas

MAX_ROWS, MAX_CARDS = 60, 12
"""Shown at once; a line says how many more there are."""
THUMBNAIL_BYTES = 24_000
_NOISE = 1e-9
"""A smaller number is what rounding leaves of 0."""
HEADINGS = {"low": "95 % interval from", "high": "to", "p_value": "p"}
"""Column → its heading, if it has another."""
Row = Mapping[str, Any]


class Table(list[dict[str, Any]]):
    """The rows of a table, in order."""

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame. Raises LorgnetteError if pandas is not installed."""
        return build_frame(self)

    def _repr_html_(self) -> str:
        return render_result(rows=self)


class Answers(list[PredictionRow]):
    """Answers with their images, in the order of the questions."""

    def __init__(self, rows: Iterable[PredictionRow] = (), *, keeps: object = None) -> None:
        """keeps: what must live as long as the answers, such as a folder with their images."""
        super().__init__(rows)
        self._keeps = keeps

    @property
    def texts(self) -> list[str]:
        """The answers alone: the fine-tuned model's, or the base model's if there is no other."""
        return [row.answer for row in self]

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row for each answer. Raises LorgnetteError if pandas is not installed."""
        return build_frame(self.to_rows())

    def to_rows(self) -> list[dict[str, Any]]:
        """A dict for each answer; `before` and `after` if both models answered, else `answer`. boxes: of the last of
        these, in pixels of the file, if some answer has any."""
        has_boxes = any(row.answer_boxes for row in self)
        has_both = any(row.base is not None and row.tuned is not None for row in self)
        return [
            {
                "id": row.id,
                "images": [str(path) for path in row.images],
                "prompt": row.prompt,
                "references": list(row.references),
                **({"before": row.base, "after": row.tuned} if has_both else {"answer": row.answer}),
                **({"boxes": [format_box(box) for box in row.answer_boxes]} if has_boxes else {}),
            }
            for row in self
        ]

    def _repr_html_(self) -> str:
        return render_result(answers=self)


class InlinePage:
    """A page of lorgnette inside a notebook."""

    def __init__(self, path: Path, height: int = 720) -> None:
        self.path, self.height = path, height

    def _repr_html_(self) -> str:
        source = html.escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{source}" width="100%" height="{self.height}" style="border: 0"></iframe>'


def render_result(
    *,
    title: str = "",
    lines: Iterable[str] = (),
    rows: Sequence[Row] = (),
    answers: Sequence[PredictionRow] = (),
    link: Path | None = None,
) -> str:
    """HTML for a notebook: a title, sentences, a table, answers beside their images, a link to a page."""
    shown = answers[:MAX_CARDS]
    images = inline_images((path for row in shown for path in row.images), THUMBNAIL_BYTES)
    return render(
        "notebook.html.j2",
        title=title,
        lines=list(lines),
        rows=[{name: _format_cell(value, name) for name, value in row.items()} for row in rows[:MAX_ROWS]],
        columns=[(name, HEADINGS.get(name, name)) for name in _list_columns(rows)],
        cards=[{"images": [images[path] for path in row.images], "texts": _list_texts(row)} for row in shown],
        num_more=max(0, len(answers) - MAX_CARDS) + max(0, len(rows) - MAX_ROWS),
        link="" if link is None else str(link),
    )


def build_frame(rows: Iterable[Row]) -> "pandas.DataFrame":
    """The rows as a DataFrame. Raises LorgnetteError if pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise LorgnetteError("pandas is not installed", where="to_pandas", hint="pip install pandas") from error
    rows = list(rows)
    return pandas.DataFrame(rows, columns=_list_columns(rows))


def _list_columns(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _format_cell(value: Any, name: str = "") -> str | None:
    if isinstance(value, float) and name == "p_value":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if isinstance(value, float):
        return "0" if abs(value) < _NOISE else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return None if value is None else str(value)


def _list_texts(row: PredictionRow) -> list[tuple[str, str]]:
    """(label, text) of a card."""
    has_both = row.base is not None and row.tuned is not None
    answers = [("before", row.shown_base), ("after", row.shown_tuned)]
    if not has_both:
        answers = [("answer", row.shown_tuned if row.tuned is not None else row.shown_base)]
    texts = [("prompt", row.prompt), *(("reference", text) for text in row.references), *answers]
    return [(name, text) for name, text in texts if text]
