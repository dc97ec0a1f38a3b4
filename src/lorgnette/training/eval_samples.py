"""A fixed handful of the held-out pictures, answered whenever the eval loss is taken: how the words change on the way.

The answers go to the log and the trackers; the page shows them side by side, the last column being the run's own final
answers. Four pictures and 32 tokens cost about as much as one batch of the final answers, so this is always on where
something is held out. Their metric is drawn beside the eval loss, which decides which step is the best one: a metric
of four answers is too noisy to choose by. Where a metric is to choose (`train.best`), all that is held out is
answered, in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Opened
from lorgnette.metrics import registry
from lorgnette.metrics.eval_prompts import questions
from lorgnette.report import run_log
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import Strip
from lorgnette.report.predictions import PredictionRow
from lorgnette.types import Example

PICTURES = 4
TOKENS = 32
KIND = "frame"
"""Of its records in the log: {"kind": "frame", "step": 10, "answers": ["a dog", …]}"""


@dataclass(frozen=True, slots=True)
class Frame:
    """What the handful was answered after a step; scores: metric → value of all that was asked, empty where nothing is
    measured."""

    rows: tuple[PredictionRow, ...]
    scores: Mapping[str, float]

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": KIND, "answers": [row.tuned for row in self.rows]}


class Filmstrip:
    """Asks the model that is being trained, and leaves its random numbers alone."""

    def __init__(
        self, opened: Opened, held_out: Sequence[Example], metric: str | None, whole: Sampling, *, judges: bool = False
    ) -> None:
        """metric: None measures nothing; whole: how answers are given in full; judges: the metric chooses the best
        step."""
        self._opened, self.metric, self.judges = opened, metric, judges
        self._asked = questions(held_out)[: None if judges else PICTURES]
        short = replace(whole, max_new_tokens=min(TOKENS, whole.max_new_tokens), batch_size=PICTURES)
        self._sampling = whole if judges else short

    def frame(self) -> Frame:
        """The answers now."""
        examples = [question.example for question in self._asked]
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):  # type: ignore[no-untyped-call]
            given = list(self._opened.answers(examples, self._sampling, adapter="tuned"))
        rows = tuple(
            PredictionRow(one.example.id, one.pictures, one.prompt, one.references, tuned=prediction.text)
            for one, prediction in zip(self._asked, given, strict=True)
        )
        return Frame(rows[:PICTURES], _scores(rows, self.metric))


def strips(records: Sequence[run_log.Record], rows: Sequence[PredictionRow]) -> list[Strip]:
    """The frames of a log, picture by picture. rows: the final answers, the handful first; they are the last column."""
    kept: dict[int, list[str]] = {}
    for record in records:
        if record.get("kind") == KIND and record["step"] < _last(records):
            kept[record["step"]] = record["answers"]
    if not kept:
        return []
    return [
        Strip(row, (*((step, texts[place]) for step, texts in sorted(kept.items())), (_last(records), row.tuned or "")))
        for place, row in enumerate(rows[: len(next(iter(kept.values())))])
    ]


def curve(
    records: Sequence[run_log.Record], rows: Sequence[PredictionRow], metric: str | None, *, judges: bool = False
) -> list[Curve]:
    """The metric of what was asked over the training; none where nothing is measured."""
    if metric is None:
        return []
    points = dict(run_log.series(list(records), "eval", metric))
    final = tuple(replace(row, base=None) for row in rows[: None if judges else PICTURES])
    if points:
        points |= {float(_last(records)): value for value in _scores(final, metric).values()}
    return [Curve(f"{metric} of {len(final)} held-out pictures", sorted(points.items()))]


def _last(records: Sequence[run_log.Record]) -> int:
    """The last step of the run."""
    return max((record["step"] for record in records if record.get("kind") in ("train", "eval")), default=0)


def _scores(rows: Sequence[PredictionRow], metric: str | None) -> dict[str, float]:
    judged = [row for row in rows if row.references]
    if metric is None or not judged:
        return {}
    tallies = registry.tally([metric], [row.tuned or "" for row in judged], [row.references for row in judged])
    return {name: tally.value for name, tally in tallies.items() if tally.value is not None}
