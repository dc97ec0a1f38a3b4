"""Answers to a few held-out examples at every evaluation: how the answers change during training.

They go to the log and the trackers; the report shows them in columns. All of a run's samples have the same token limit,
the last step's too, so that they and their metric can be compared from step to step; the full answers come after the
training. The limit is 32 tokens, or what the longest reference of these examples needs: a list of boxes that is cut off
could not be scored. Each token of the longest answer takes some milliseconds at every evaluation, so the examples are
the first whose references need at most 128 tokens, or those with the shortest. Four images and 32 tokens cost about as
much as one batch of the full answers, so this is on whenever examples are held out. Their metric is plotted beside the
eval loss. It does not select the best step: a metric of four answers is too noisy. If `train.metric_for_best_model`
names a metric, all held-out examples are answered in full.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from lorgnette.distributed import World
from lorgnette.engine.base import Shards, run_on_main_rank
from lorgnette.inference.answers import share_answers
from lorgnette.inference.loading import LoadedModel
from lorgnette.inference.sampling import SamplingParams
from lorgnette.metrics import registry
from lorgnette.metrics.box_answers import list_known_boxes
from lorgnette.metrics.eval_prompts import EvalPrompt, group_by_prompt
from lorgnette.planning.limits import SAMPLE_TOKENS
from lorgnette.processing.processor import Processor
from lorgnette.report import run_log
from lorgnette.report.html.charts import Curve
from lorgnette.report.html.page import SampleHistory
from lorgnette.types import Example, Prediction, PredictionRow, mark_cut

NUM_SAMPLES = 4
_MANY_TOKENS, _NUM_CANDIDATES = 128, 64
"""A longer reference is taken only if too few of the first _NUM_CANDIDATES prompts have shorter ones."""
RECORD_KIND = "samples"
"""Kind of the log records: {"kind": "samples", "step": 10, "places": [0, …], "answers": ["a dog", …], …}, with the
places of the answered prompts among those held out."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Answers after a step. scores: metric → value over all answers, empty without a metric. max_new_tokens: the limit
    of each answer. places: of the rows among the held-out prompts."""

    rows: tuple[PredictionRow, ...]
    scores: Mapping[str, float]
    max_new_tokens: int = SAMPLE_TOKENS
    places: tuple[int, ...] = ()

    def to_record(self, step: int) -> run_log.Record:
        """For the log."""
        answers, cuts = [row.tuned for row in self.rows], [row.tuned_is_cut for row in self.rows]
        record = {"answers": answers, "cut": cuts, "max_new_tokens": self.max_new_tokens}
        return {"kind": RECORD_KIND, "step": step, "places": list(self.places), **record}


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
        world: World = World(),
        shards: Shards | None = None,
    ) -> None:
        """metric: None measures nothing; sampling: of full answers; selects_best: the metric selects the best step.

        shards: of the model, if its layers are cut over the ranks: then the first alone generates, and all take part.
        """
        self._model, self.metric, self.selects_best = model, metric, selects_best
        self._world, self._shards = world, shards
        prompts = group_by_prompt(held_out)
        lengths = _count_longest_answers(prompts[:_NUM_CANDIDATES], held_out, model.processor)
        by_length = sorted(range(len(lengths)), key=lambda i: max(lengths[i], _MANY_TOKENS))
        chosen = range(len(prompts)) if selects_best else sorted(by_length[:NUM_SAMPLES])
        self._prompts, self._places = [prompts[i] for i in chosen], tuple(chosen)[:NUM_SAMPLES]
        longest = max((lengths[i] for i in by_length[:NUM_SAMPLES]), default=0)
        limit = min(max(SAMPLE_TOKENS, longest), sampling.max_new_tokens)
        short = replace(sampling, max_new_tokens=limit, batch_size=NUM_SAMPLES)
        self._sampling = sampling if selects_best else short

    def generate(self) -> Samples:
        """The answers of the adapter as it is now. Every rank of the world calls this; the first alone gets them.

        The ranks share full answers. A few short ones take as long as one, and stay with the first rank.
        """
        if self.selects_best and self._shards is None:
            predictions = self._answer(self._world)
        else:
            predictions = run_on_main_rank(self._world, self._shards, partial(self._answer, World())) or []
        if not self._world.is_main:
            return Samples((), {}, self._sampling.max_new_tokens)
        pairs = zip(self._prompts, predictions, strict=True)
        rows = tuple(prompt.build_row(tuned=prediction) for prompt, prediction in pairs)
        scores, limit = _compute_scores(rows, self.metric), self._sampling.max_new_tokens
        return Samples(rows[:NUM_SAMPLES], scores, limit, self._places)

    def _answer(self, world: World) -> list[Prediction]:
        generate = partial(self._model.generate_answers, sampling=self._sampling, adapter="tuned")
        examples = [prompt.example for prompt in self._prompts]
        # Dropout must draw the same numbers as without evaluation.
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):  # type: ignore[no-untyped-call]
            return list(share_answers(generate, examples, self._model.processor, world))


def samples_over_time(records: Sequence[run_log.Record], rows: Sequence[PredictionRow]) -> list[SampleHistory]:
    """The answers in a log, one history per prompt. rows: of all held-out prompts, in order."""
    histories: dict[int, dict[int, str]] = {}
    for record in records:
        if record.get("kind") == RECORD_KIND:
            answers = record["answers"]
            cuts = record.get("cut") or [False] * len(answers)
            places = record.get("places") or range(len(answers))
            for place, text, is_cut in zip(places, answers, cuts, strict=True):
                histories.setdefault(place, {})[record["step"]] = mark_cut(text, is_cut=is_cut)
    return [
        SampleHistory(rows[place], tuple(sorted(answers.items())))
        for place, answers in sorted(histories.items())
        if place < len(rows)
    ]


def build_metric_curve(
    records: Sequence[run_log.Record], rows: Sequence[PredictionRow], metric: str | None, *, selects_best: bool = False
) -> list[Curve]:
    """The metric of the samples over the steps; empty without a metric. rows: of all held-out prompts."""
    if metric is None:
        return []
    points = dict(run_log.select_series(list(records), "eval", metric))
    num_samples = len(rows[: None if selects_best else NUM_SAMPLES])
    limit = find_sample_limit(records)
    cut = f", answers cut at {limit} tokens" if limit else ""
    return [Curve(f"{metric} of {num_samples} held-out images{cut}", sorted(points.items()))]


def find_sample_limit(records: Sequence[run_log.Record]) -> int | None:
    """The token limit of the samples in a log, if it cut one."""
    samples = [record for record in records if record.get("kind") == RECORD_KIND]
    return max((record["max_new_tokens"] for record in samples if any(record.get("cut") or ())), default=None)


def _count_longest_answers(
    prompts: Sequence[EvalPrompt], held_out: Sequence[Example], processor: Processor
) -> list[int]:
    """Tokens of each prompt's longest reference, with the end token."""
    numbers = {prompt.example.without_answer().turns: i for i, prompt in enumerate(prompts)}
    lengths = [0] * len(prompts)
    for example in held_out:
        number = numbers.get(example.without_answer().turns)
        if number is not None:
            lengths[number] = max(lengths[number], processor.count_answer_tokens(example) + 1)
    return lengths


def _compute_scores(rows: Sequence[PredictionRow], metric: str | None) -> dict[str, float]:
    scored = [row for row in rows if row.references]
    if metric is None or not scored:
        return {}
    answers, references = [row.tuned or "" for row in scored], [row.references for row in scored]
    _, boxes = list_known_boxes(scored)
    tallies = registry.compute_tallies([metric], answers, references, boxes=boxes)
    return {name: tally.value for name, tally in tallies.items() if tally.value is not None}
