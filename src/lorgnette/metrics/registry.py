"""The metrics by name, groups of them, and the selection of one. docs/metrics.md gives their sources."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lorgnette.config import Settings
from lorgnette.data.splits import map_copies
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics.bleu import bleu
from lorgnette.metrics.bootstrap import Difference, compare_tallies, compute_intervals
from lorgnette.metrics.box_answers import KnownBoxes, list_boxes, pair_boxes
from lorgnette.metrics.box_iou import average_precision, box_accuracy, box_iou
from lorgnette.metrics.cider import cider_d
from lorgnette.metrics.edit_distance import anls, edit_distance, exact_match
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.metrics.json_fields import compare_objects
from lorgnette.metrics.labels import classify
from lorgnette.metrics.rouge import rouge_l
from lorgnette.metrics.score import Score, Tally
from lorgnette.metrics.token_f1 import token_f1
from lorgnette.metrics.tokenizers import normalize_whitespace, tokenize_latex, tokenize_words
from lorgnette.types import Example


@dataclass(frozen=True, slots=True)
class Metric:
    """A function of tokenized hypotheses and references.

    output_index: the index of its tally, if the function returns several.
    """

    description: str
    compute: Callable[[Sequence[Any], Sequence[Sequence[Any]]], Tally | tuple[Tally, ...]]
    tokenize: Callable[[str], Any]
    better: Literal["higher", "lower"] = "higher"
    output_index: int = 0

    @property
    def sign(self) -> int:
        """1 if a higher value is better, else -1."""
        return 1 if self.better == "higher" else -1


_MATCH = "share of answers that equal a reference, ignoring white space"
_LABEL_MATCH = "share of answers that are the right label, ignoring letter case, white space and a full stop at the end"
_FIELDS = "share of fields that are right, of those in the reference or the answer"
_LATEX_MATCH = "share of formulas that equal a reference, token by token"
METRICS: dict[str, Metric] = {
    "BLEU-1": Metric("share of words found in a reference, with a penalty for short answers", bleu, tokenize_words),
    "BLEU-2": Metric("the same for words and pairs of words", bleu, tokenize_words, output_index=1),
    "BLEU-3": Metric("the same for up to three words in a row", bleu, tokenize_words, output_index=2),
    "BLEU-4": Metric("the same for up to four words in a row", bleu, tokenize_words, output_index=3),
    "ROUGE-L": Metric("longest common subsequence of words with a reference", rouge_l, tokenize_words),
    "CIDEr-D": Metric("similarity in the words that distinguish the images, 0 to 10", cider_d, tokenize_words),
    "exact-match": Metric(_MATCH, exact_match, normalize_whitespace),
    "edit-distance": Metric("characters to change, per character", edit_distance, normalize_whitespace, "lower"),
    "ANLS": Metric("similarity in characters, 0 if less than half is right", anls, normalize_whitespace),
    "token-F1": Metric("words shared with the reference, in any order", token_f1, normalize_whitespace),
    "accuracy": Metric(_LABEL_MATCH, classify, str),
    "macro-F1": Metric("F1 of each label, the mean over the labels", classify, str, output_index=1),
    "json-field-accuracy": Metric(_FIELDS, compare_objects, str),
    "json-exact-match": Metric("share of answers in which every field is right", compare_objects, str, output_index=1),
    "json-valid": Metric("share of answers that are a JSON object", compare_objects, str, output_index=2),
    "box-IoU": Metric("overlap of the boxes", box_iou, list_boxes),
    "box-accuracy": Metric("share of boxes with an overlap of one half or more", box_accuracy, list_boxes),
    "box-AP": Metric("average precision of boxes, by COCO's definition", average_precision, list_boxes),
    "box-AP50": Metric(
        "the same where an overlap of one half is enough", average_precision, list_boxes, output_index=1
    ),
    "box-AP75": Metric("the same for an overlap of 0.75", average_precision, list_boxes, output_index=2),
    "latex-exact-match": Metric(_LATEX_MATCH, exact_match, tokenize_latex),
    "latex-edit-distance": Metric("tokens to change, per token", edit_distance, tokenize_latex, "lower"),
    "latex-BLEU": Metric("BLEU-4 of LaTeX tokens", bleu, tokenize_latex, output_index=3),
}
CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")
LATEX_METRICS = ("latex-exact-match", "latex-edit-distance", "latex-BLEU")
LABEL_METRICS = ("accuracy", "macro-F1")
BOX_METRICS = ("box-IoU", "box-accuracy", "box-AP", "box-AP50", "box-AP75")
JSON_METRICS = ("json-field-accuracy", "json-exact-match", "json-valid")
AUTO = "auto"
"""Stands for metrics that suit the references, until answer_kind.choose_metrics replaces it."""
METRIC_GROUPS: Mapping[str, tuple[str, ...]] = {
    AUTO: (AUTO,),
    "caption": CAPTION_METRICS,
    "label": LABEL_METRICS,
    "json": JSON_METRICS,
    "box": BOX_METRICS,
    "latex": LATEX_METRICS,
    "demo": ("exact-match", *CAPTION_METRICS),
    "none": (),
}
"""Names for several metrics. After the demo's training, `demo` is its table of facts (metrics/report.py)."""
SAMPLE_METRICS = ("ROUGE-L", "latex-edit-distance")
"""The most informative metrics for a few answers, best first."""


def compute_scores(names: Iterable[str], hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> list[Score]:
    """The metrics of one answer per example, in the order of the names."""
    return build_scores(compute_tallies(names, hypotheses, references))


def build_scores(tallies: Mapping[str, Tally]) -> list[Score]:
    """Tallies as values with intervals, all from the same resampled sets."""
    defined = {name: tally for name, tally in tallies.items() if tally.value is not None}
    intervals: dict[str, tuple[float, float] | None] = {}
    if defined and all(len(tally.counts) > 1 for tally in defined.values()):
        intervals = dict(zip(defined, compute_intervals(list(defined.values())), strict=True))
    return [
        Score(name, None, (), None, tally.note or "no examples")
        if tally.value is None
        else Score(name, tally.value, tuple(tally.per_example.tolist()), intervals.get(name), tally.note)
        for name, tally in tallies.items()
    ]


def compare_answers(
    names: Iterable[str],
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[Sequence[str]],
    boxes: tuple[Sequence[KnownBoxes], Sequence[KnownBoxes]] = ((), ()),
) -> list[Difference]:
    """The second system's answers minus the first's, to the same prompts. boxes: of both, as in `compute_tallies`."""
    names, pairs = list(names), zip((first, second), boxes, strict=True)
    before, after = (compute_tallies(names, answers, references, boxes=known) for answers, known in pairs)
    return [compare_tallies(name, before[name], after[name]) for name in before]


def compute_tallies(
    names: Iterable[str],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    images: Sequence[tuple[Path, ...]] = (),
    boxes: Sequence[KnownBoxes] = (),
) -> dict[str, Tally]:
    """The tally of each metric. Texts are tokenized once per tokenizer, and each function runs once. Raises
    LorgnetteError for an example without references.

    images: of each example. Examples about the same images, or copies of them, are resampled together, since they are
    not independent. () if the tallies are not resampled. boxes: those that are known in pixels, of each example; () if
    none are: boxes are then read from the texts as written.
    """
    metrics = {name: get_metric(name) for name in names}
    for i, texts in enumerate(references):
        if not texts:
            raise LorgnetteError("no reference", where=f"example {i + 1}", hint="remove it, or add a reference")
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} answers to {len(references)} examples")
    inputs = {
        tokenize: (list(map(tokenize, hypotheses)), [list(map(tokenize, texts)) for texts in references])
        for tokenize in {metric.tokenize for metric in metrics.values()} - {list_boxes}
    }
    note = None
    if uses_boxes(metrics):
        inputs[list_boxes], note = _pair_all_boxes(hypotheses, references, boxes)
    computations = {(metric.compute, metric.tokenize) for metric in metrics.values()}
    outputs = {(compute, tokenize): compute(*inputs[tokenize]) for compute, tokenize in computations}
    tallies = {}
    for name, metric in metrics.items():
        output = outputs[metric.compute, metric.tokenize]
        tally = output if isinstance(output, Tally) else output[metric.output_index]
        notes = [each for each in (tally.note, note if metric.tokenize is list_boxes else None) if each]
        tallies[name] = replace(tally, note="; ".join(notes) or None)
    groups = number_images(images)
    if len(set(groups)) < len(groups):
        tallies = {name: tally.group(groups) for name, tally in tallies.items()}
    return tallies


def uses_boxes(names: Iterable[str]) -> bool:
    """Whether one of the metrics is of boxes."""
    return any(METRICS[name].tokenize is list_boxes for name in names if name in METRICS)


def _pair_all_boxes(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], known: Sequence[KnownBoxes]
) -> tuple[tuple[list[Any], list[list[Any]]], str | None]:
    """(the answers' boxes, the references'), and a note if some of the answers that have boxes in pixels of the file to
    be compared with have none themselves."""
    known = known or [((), ())] * len(hypotheses)
    pairs = [pair_boxes(*each) for each in zip(hypotheses, references, known, strict=True)]
    num_written = sum(any(boxes) and not in_pixels for (_, boxes), (*_, in_pixels) in zip(known, pairs, strict=True))
    note = f"the boxes of {num_written} of {len(pairs)} answers are compared as written" if num_written else None
    return ([answer for answer, _, _ in pairs], [others for _, others, _ in pairs]), note


def number_images(images: Sequence[tuple[Path, ...]]) -> list[int]:
    """The same number (0, 1, …) for examples about the same images or copies of them; without images one of its own."""
    same = map_copies(path for paths in images for path in paths)
    keys = [tuple(same[path] for path in paths) or i for i, paths in enumerate(images)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [numbers[key] for key in keys]


def get_metric(name: str, where: str = "", other_names: Iterable[str] = ()) -> Metric:
    """Raises UsageError for an unknown name. where: the setting. other_names: its other values."""
    if name not in METRICS:
        others = "".join(f"{other}, " for other in other_names)
        hint = f"{others}{'or ' if others else ''}one of {', '.join(METRICS)}; in Python also your own (docs/python.md)"
        raise UsageError("no such metric", where=f"{where}{name}", hint=hint)
    return METRICS[name]


def expand_metric_names(names: Iterable[str], where: str = "predict.metrics=") -> tuple[str, ...]:
    """The named metrics, each once, with groups replaced by their members; `auto` stays. where: the setting or option,
    for the UsageError about an unknown name."""
    members: dict[str, None] = {}
    for name in names:
        if name not in METRIC_GROUPS:
            get_metric(name, where, METRIC_GROUPS)
        members |= dict.fromkeys(METRIC_GROUPS.get(name, (name,)))
    return tuple(members)


def select_sample_metric(names: Iterable[str]) -> str | None:
    """The most informative of the named metrics for a few answers; None without metrics."""
    metrics = expand_metric_names(names)
    return next((name for name in SAMPLE_METRICS if name in metrics), metrics[0] if metrics else None)


def get_best_model_metric(settings: Settings) -> str | None:
    """The metric that selects the best checkpoint; None for the eval loss. Raises UsageError for an unknown name."""
    name = settings.train.metric_for_best_model
    if name == "loss":
        return None
    get_metric(name, "train.metric_for_best_model=", ["loss"])
    return name


def check_best_model_metric(settings: Settings, held_out: Sequence[Example]) -> None:
    """Raise UsageError if the metric that selects the best checkpoint is undefined for the held-out examples."""
    name = get_best_model_metric(settings)
    if name is None:
        return
    references = [prompt.references for prompt in group_by_prompt(held_out) if prompt.references]
    if compute_tallies([name], [texts[0] for texts in references], references)[name].value is None:
        raise build_undefined_metric_error(name)


def build_undefined_metric_error(name: str) -> UsageError:
    """The error for a metric that cannot select a checkpoint."""
    return UsageError(
        "the metric is undefined for the held-out examples",
        where=f"train.metric_for_best_model={name}",
        hint="hold out more rows (data.holdout=N), or choose another metric",
    )


def select_tracked_metric(settings: Settings) -> str | None:
    """The metric tracked during training: the one that selects the best checkpoint, else the sample metric."""
    return get_best_model_metric(settings) or select_sample_metric(settings.predict.metrics)
