"""A fixed handful of the held-out pictures, answered whenever the eval loss is taken: how the words change on the way.

The answers go to the log and the trackers; the page shows them side by side, the last column being the run's own final
answers. Four pictures and 32 tokens cost about as much as one batch of the final answers, so this is always on where
something is held out. Their metric is drawn beside the eval loss, which decides which step is the best one: a metric
of four answers is too noisy to choose by. Where a metric is to choose (`train.metric_for_best_model`), all that is held out is
answered, in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import LoadedModel
from lorgnette.metrics import registry
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.report import run_log
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import SampleHistory
from lorgnette.report.predictions import PredictionRow
from lorgnette.types import Example

NUM_SAMPLES = 4
MAX_NEW_TOKENS = 32
RECORD_KIND = "frame"
"""Of its records in the log: {"kind": "frame", "step": 10, "answers": ["a dog", …]}"""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the handful was answered after a step; scores: metric → value of all that was asked, empty where nothing is
    measured."""

    rows: tuple[PredictionRow, ...]
    scores: Mapping[str, float]

    @property
    def record(self) -> dict[str, Any]:
        return {"kind": RECORD_KIND, "answers": [row.tuned for row in self.rows]}


class SampleLogger:
    """Asks the model that is being trained, and leaves its random numbers alone."""

    def __init__(
        self,
        opened: LoadedModel,
        held_out: Sequence[Example],
        metric: str | None,
        whole: SamplingParams,
        *,
        selects_best: bool = False,
    ) -> None:
        """metric: None measures nothing; whole: how answers are given in full; judges: the metric chooses the best
        step."""
        self._opened, self.metric, self.selects_best = opened, metric, selects_best
        self._asked = group_by_prompt(held_out)[: None if selects_best else NUM_SAMPLES]
        short = replace(whole, max_new_tokens=min(MAX_NEW_TOKENS, whole.max_new_tokens), batch_size=NUM_SAMPLES)
        self._sampling = whole if selects_best else short

    def generate(self) -> Samples:
        """The answers now."""
        examples = [question.example for question in self._asked]
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):  # type: ignore[no-untyped-call]
            given = list(self._opened.generate_answers(examples, self._sampling, adapter="tuned"))
        rows = tuple(
            PredictionRow(one.example.id, one.image_paths, one.text, one.references, tuned=prediction.text)
            for one, prediction in zip(self._asked, given, strict=True)
        )
        return Samples(rows[:NUM_SAMPLES], _compute_scores(rows, self.metric))


def samples_over_time(records: Sequence[run_log.Record], rows: Sequence[PredictionRow]) -> list[SampleHistory]:
    """The frames of a log, picture by picture. rows: the final answers, the handful first; they are the last column."""
    kept: dict[int, list[str]] = {}
    for record in records:
        if record.get("kind") == RECORD_KIND and record["step"] < _find_last_step(records):
            kept[record["step"]] = record["answers"]
    if not kept:
        return []
    return [
        SampleHistory(
            row,
            (
                *((step, texts[place]) for step, texts in sorted(kept.items())),
                (_find_last_step(records), row.tuned or ""),
            ),
        )
        for place, row in enumerate(rows[: len(next(iter(kept.values())))])
    ]


def build_metric_curve(
    records: Sequence[run_log.Record], rows: Sequence[PredictionRow], metric: str | None, *, selects_best: bool = False
) -> list[Curve]:
    """The metric of what was asked over the training; none where nothing is measured."""
    if metric is None:
        return []
    points = dict(run_log.select_series(list(records), "eval", metric))
    final = tuple(replace(row, base=None) for row in rows[: None if selects_best else NUM_SAMPLES])
    if points:
        points |= {float(_find_last_step(records)): value for value in _compute_scores(final, metric).values()}
    return [Curve(f"{metric} of {len(final)} held-out pictures", sorted(points.items()))]


def _find_last_step(records: Sequence[run_log.Record]) -> int:
    """The last step of the run."""
    return max((record["step"] for record in records if record.get("kind") in ("train", "eval")), default=0)


def _compute_scores(rows: Sequence[PredictionRow], metric: str | None) -> dict[str, float]:
    judged = [row for row in rows if row.references]
    if metric is None or not judged:
        return {}
    tallies = registry.compute_tallies(
        [metric], [row.tuned or "" for row in judged], [row.references for row in judged]
    )
    return {name: tally.value for name, tally in tallies.items() if tally.value is not None}
