"""What the references of a data set are: boxes, labels, JSON objects or other texts. Chooses the metrics for `auto`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

from lorgnette.data.box_notation import find_boxes
from lorgnette.metrics.json_fields import parse_object
from lorgnette.metrics.labels import LabelFinder
from lorgnette.metrics.registry import AUTO, expand_metric_names

NUM_SHOWN_LABELS = 6


@dataclass(frozen=True, slots=True)
class MetricChoice:
    """The metrics, as groups and names. reason: why these, in words; empty if they were named. labels: all of them, if
    the answers are labels."""

    names: tuple[str, ...]
    reason: str = ""
    labels: tuple[str, ...] = ()

    def describe(self, option: str) -> str:
        """A line for the terminal. option: how other metrics are named."""
        return f"{', '.join(expand_metric_names(self.names))}, because {self.reason}; {option}NAMES takes others"


def choose_metrics(
    names: Sequence[str], references: Iterable[Sequence[str]], has_boxes: Iterable[bool] = ()
) -> MetricChoice:
    """Replace `auto` among the names by the metrics that suit these references, those of each prompt.

    Boxes: at least half of the prompts have a reference with one. JSON objects: every reference is one. Labels: as
    labels.find_labels says. All others are texts, as captions are. has_boxes: of each prompt, whether its references
    are known to have boxes; a text may have some in a notation of its own.
    """
    if AUTO not in names:
        return MetricChoice(tuple(names))
    choice = _choose(references, has_boxes)
    return replace(choice, names=tuple(choice.names[0] if name == AUTO else name for name in names))


def _choose(references: Iterable[Sequence[str]], has_boxes: Iterable[bool]) -> MetricChoice:
    num_prompts = num_with_boxes = num_objects = 0
    finder = LabelFinder()
    for texts, is_known in zip(references, chain(has_boxes, repeat(False)), strict=False):
        if texts:
            num_prompts += 1
            num_with_boxes += is_known or any(map(_has_box, texts))
            num_objects += all(parse_object(text) is not None for text in texts)
            finder.add(texts)
    if 2 * num_with_boxes >= num_prompts > 0:
        are_all = num_with_boxes == num_prompts
        which = "the answers" if are_all else f"{num_with_boxes} of {num_prompts} answers"
        return MetricChoice(("box",), f"{which} have boxes")
    if num_objects == num_prompts > 0:
        return MetricChoice(("json",), "the answers are JSON objects")
    if labels := finder.find():
        shown = ", ".join(labels[:NUM_SHOWN_LABELS]) + (", …" if len(labels) > NUM_SHOWN_LABELS else "")
        return MetricChoice(("label",), f"the answers are one of {len(labels)} labels ({shown})", labels)
    is_nearly_json = 2 * num_objects >= num_prompts > 0
    broken = f"; {num_prompts - num_objects} of {num_prompts} are no JSON object" if is_nearly_json else ""
    return MetricChoice(("caption",), f"the answers are texts{broken}")


def _has_box(text: str) -> bool:
    """Whether it has one in a notation that nothing else has: numbers in brackets alone may be anything."""
    return any(len(found.box.corners) == 4 for found in find_boxes(text))
