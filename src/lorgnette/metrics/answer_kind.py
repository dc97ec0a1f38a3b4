"""What the references of a data set are: labels, JSON objects or other texts. Chooses the metrics for `auto`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorgnette.metrics.json_fields import parse_object
from lorgnette.metrics.labels import find_labels
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


def choose_metrics(names: Sequence[str], references: Sequence[Sequence[str]]) -> MetricChoice:
    """Replace `auto` among the names by the metrics that suit these references, those of each prompt.

    JSON objects: every reference is one. Labels: as labels.find_labels says. All others are texts, as captions are.
    """
    if AUTO not in names:
        return MetricChoice(tuple(names))
    choice = _choose(references)
    return replace(choice, names=tuple(choice.names[0] if name == AUTO else name for name in names))


def _choose(references: Sequence[Sequence[str]]) -> MetricChoice:
    references = [texts for texts in references if texts]
    num_objects = sum(all(parse_object(text) is not None for text in texts) for texts in references)
    if references and num_objects == len(references):
        return MetricChoice(("json",), "the answers are JSON objects")
    if labels := find_labels(references):
        shown = ", ".join(labels[:NUM_SHOWN_LABELS]) + (", …" if len(labels) > NUM_SHOWN_LABELS else "")
        return MetricChoice(("label",), f"the answers are one of {len(labels)} labels ({shown})", labels)
    is_nearly_json = 2 * num_objects >= len(references) > 0
    broken = f"; {len(references) - num_objects} of {len(references)} are no JSON object" if is_nearly_json else ""
    return MetricChoice(("caption",), f"the answers are texts{broken}")
