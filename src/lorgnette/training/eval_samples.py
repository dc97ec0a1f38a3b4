"""Answers to a few held-out examples at every evaluation: how the answers change during training.

They go to the log and the trackers; the report shows them in columns, the last column holding the run's final answers.
Four images and 32 tokens cost about as much as one batch of the final answers, so this is on whenever examples are
held out. Their metric is plotted beside the eval loss. It does not select the best step: a metric of four answers is
too noisy. If `train.metric_for_best_model` names a metric, all held-out examples are answered in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lorgnette.inference.loading import LoadedModel
from lorgnette.inference.sampling import SamplingParams
from lorgnette.metrics import registry
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.report import run_log
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import SampleHistory
from lorgnette.types import Example, PredictionRow

NUM_SAMPLES = 4
MAX_NEW_TOKENS = 32
RECORD_KIND = "samples"
"""Kind of the log records: {"kind": "samples", "step": 10, "answers": ["a dog", …]}"""


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers after a step. scores: metric → value over all answers, empty without a metric."""

    rows: tuple[PredictionRow, ...]
    scores: Mapping[str, float]


class SampleLogger:
    """Generates the answers without changing torch's random state."""

    def __init__(
        self,
        model: LoadedModel,
        held_out: Sequence[Example],
        metric: str | None,
        sampling: SamplingParams,
        *,
        selects_best: bool = False,
    ) -> None:
        """metric: None measures nothing; sampling: of full answers; selects_best: the metric selects the best step."""
        self._model, self.metric, self.selects_best = model, metric, selects_best
        self._prompts = group_by_prompt(held_out)[: None if selects_best else NUM_SAMPLES]
        short = replace(sampling, max_new_tokens=min(MAX_NEW_TOKENS, sampling.max_new_tokens), batch_size=NUM_SAMPLES)
        self._sampling = sampling if selects_best else short

    def generate(self) -> Samples:
        """The answers of the adapter as it is now."""
        examples = [prompt.example for prompt in self._prompts]
        # Dropout must draw the same numbers as without evaluation.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):  # type: ignore[no-untyped-call]
            predictions = list(self._model.generate_answers(examples, self._sampling, adapter="tuned"))
        pairs = zip(self._prompts, predictions, strict=True)
        rows = tuple(prompt.build_row(tuned=prediction.text) for prompt, prediction in pairs)
        return Samples(rows[:NUM_SAMPLES], _compute_scores(rows, self.metric))


def samples_over_time(records: Sequence[run_log.Record], rows: Sequence[PredictionRow]) -> list[SampleHistory]:
    """The answers in a log, one history per example. rows: the final answers, the sampled examples first."""
    last_step = _find_last_step(records)
    answers: dict[int, list[str]] = {}
    for record in records:
        if record.get("kind") == RECORD_KIND and record["step"] < last_step:
            answers[record["step"]] = record["answers"]
    steps = sorted(answers)
    answers_of_rows = zip(*(answers[step] for step in steps), strict=True)
    return [
        SampleHistory(row, (*zip(steps, texts, strict=True), (last_step, row.tuned or "")))
        for row, texts in zip(rows, answers_of_rows, strict=False)
    ]


def build_metric_curve(
    records: Sequence[run_log.Record], rows: Sequence[PredictionRow], metric: str | None, *, selects_best: bool = False
) -> list[Curve]:
    """The metric of the samples over the steps, ending with the final answers; empty without a metric."""
    if metric is None:
        return []
    points = dict(run_log.select_series(list(records), "eval", metric))
    final = tuple(replace(row, base=None) for row in rows[: None if selects_best else NUM_SAMPLES])
    if points:
        points |= {float(_find_last_step(records)): value for value in _compute_scores(final, metric).values()}
    return [Curve(f"{metric} of {len(final)} held-out images", sorted(points.items()))]


def _find_last_step(records: Sequence[run_log.Record]) -> int:
    return max((record["step"] for record in records if record.get("kind") in ("train", "eval")), default=0)


def _compute_scores(rows: Sequence[PredictionRow], metric: str | None) -> dict[str, float]:
    scored = [row for row in rows if row.references]
    if metric is None or not scored:
        return {}
    answers, references = [row.tuned or "" for row in scored], [row.references for row in scored]
    tallies = registry.compute_tallies([metric], answers, references)
    return {name: tally.value for name, tally in tallies.items() if tally.value is not None}
