"""The result of `check`, as lines for a terminal and as JSON. Its HTML report is `html/check_page.py`.

Knows nothing about how the data is checked.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorgnette.data import DataReport, format_problems
from lorgnette.data.example_table import iter_references
from lorgnette.data.splits import MIN_AUTO, map_copies
from lorgnette.metrics.labels import LabelFinder, normalize_label
from lorgnette.processing.token_stats import TokenStats
from lorgnette.report.console import Terminal
from lorgnette.report.notebook import build_frame, render_result
from lorgnette.types import Example, Finding, FindingKind

if TYPE_CHECKING:
    import pandas

TITLES: Mapping[FindingKind, str] = {
    "unusable": "Rows that cannot be used",
    "over-budget": "Rows with too many tokens",
    "leak": "Held-out images that are also in training",
    "look-alike-leak": "Held-out images that look like training images",
    "copy": "Same image in several files",
    "look-alike": "Look-alikes",
    "repeated-row": "Duplicate rows",
    "unread-key": "Keys that are not read",
    "blanks": "Blanks around answers",
    "trimmed": "Blanks that were removed",
    "overlong-answer": "Answers longer than predict.max_new_tokens",
    "no-end": "Answers without an end token",
    "text-box": "Boxes in texts, trained as written",
    "control-text": "Control tokens written as text",
    "stray-marker": "<image> or <bbox> in a text without an image or a box",
    "low-contrast": "Images that show almost nothing",
    "odd-shape": "Images with an extreme aspect ratio",
    "tiny": "Tiny images",
}
"""In the order of the report: what stops training, what spoils the held-out scores, other warnings."""
LEAKS: Collection[FindingKind] = ("leak", "look-alike-leak")
"""What spoils the held-out scores."""
MAX_LISTED = 10
"""Lines about one kind of finding that are printed."""
_BAR_WIDTH = 32
_FEW_HELD_OUT = 10
_USUAL_HELD_OUT = 50
_MAX_LABELS = 6
_MIN_ANSWERS, _SAME_FRACTION = 10, 0.9
"""From this number of answers on, a warning appears if this part of them has the same text."""


@dataclass(frozen=True)
class SplitSummary:
    """The split of the usable rows. failure: why no rows can be held out; training then does not start.

    common_answer, common_held_out_answer: the text that most answers have, if nearly all of the data's (all of the held
    out ones) have it. num_answers: in the whole data; num_common: those with the text that more than half of them have,
    if there is one. labels: all, if the answers are labels;
    unseen_labels: those that no held-out row has.
    """

    num_train: int
    num_held_out: int
    num_held_out_images: int
    failure: str = ""
    common_answer: str | None = None
    num_common: int = 0
    num_answers: int = 0
    common_held_out_answer: str | None = None
    is_auto: bool = False
    labels: tuple[str, ...] = ()
    unseen_labels: tuple[str, ...] = ()

    @classmethod
    def from_examples(
        cls, train: Sequence[Example], held_out: Sequence[Example], failure: str = "", *, is_auto: bool = False
    ) -> "SplitSummary":
        """is_auto: data.holdout=auto chose the held-out rows."""
        num_images = len(set(map_copies(image.path for row in held_out for image in row.images).values()))
        num_answers, common, num_common, labels = _summarize_answers([train, held_out])
        is_common = num_answers >= _MIN_ANSWERS and num_common >= _SAME_FRACTION * num_answers
        held_out_answers = set(iter_references(held_out))
        is_same = len(held_out) > 1 and len(held_out_answers) == 1
        seen = set(map(normalize_label, held_out_answers))
        unseen = tuple(label for label in labels if held_out and not is_same and normalize_label(label) not in seen)
        return cls(
            len(train), len(held_out), num_images, failure, common if is_common else None, num_common, num_answers,
            (held_out_answers.pop() or None) if is_same else None, is_auto,
            labels=labels, unseen_labels=unseen,
        )  # fmt: skip

    @property
    def advice(self) -> list[str]:
        """Problems of the split as a whole; `train` prints them too."""
        return [f"no rows can be held out: {self.failure}"] if self.failure else list(self._list_advice())

    def _suggest_more(self) -> str:
        """Hold out more rows, at most half of them; add images if that is not more."""
        more = min(_USUAL_HELD_OUT, (self.num_train + self.num_held_out) // 2)
        return f"hold out more (data.holdout={more})" if more > self.num_held_out else "add images"

    def _list_advice(self) -> Iterator[str]:
        if self.unseen_labels:
            names = ", ".join(map(_shorten, self.unseen_labels[:_MAX_LABELS]))
            problem = (
                f"{len(self.unseen_labels)} of {len(self.labels)} labels are not among the held-out rows ({names})"
            )
            yield f"{problem}, so no score is about them; hold out more, or mix the rows if they are sorted by label"
        if self.is_auto and self.num_train and self.num_held_out < MIN_AUTO:
            count, rows = self.num_train + self.num_held_out, _pluralize(self.num_held_out, "row is", "rows are")
            held_out = f"only {rows} held out of {count}" if self.num_held_out else f"none of {count} rows is held out"
            yield (
                f"{held_out}: too few to show what the model does with other images; add rows, or name some that are "
                "only for the test (data.test=FILE)"
            )
        if self.num_held_out_images == 1 and self.num_held_out > 1:
            problem = f"all {self.num_held_out} held-out rows have the same image, so the scores are about one image"
            yield f"{problem}; {self._suggest_more()}, or name a file (data.test=FILE)"
        if self.common_answer is not None:
            problem = (
                f"{self.num_common} of {self.num_answers} answers are the same text ({_shorten(self.common_answer)})"
            )
            yield f"{problem}, so a model that always gives it scores high without looking; add rows with other answers"
        if self.common_held_out_answer is not None:
            problem = (
                f"all {self.num_held_out} held-out answers are the same text ({_shorten(self.common_held_out_answer)})"
            )
            meaning = "so the scores do not tell a model that looks at the images from one that always gives it"
            yield f"{problem}, {meaning}; hold out more rows, or name a file with other answers (data.test=FILE)"


def _summarize_answers(parts: Sequence[Sequence[Example]]) -> tuple[int, str, int, tuple[str, ...]]:
    """(number of answers, the one that more than half of them have, how many have it, the labels); "" and 0 if none is.

    Holds no text of the others: a text that more than half have is left over when pairs of different texts are struck
    out (Boyer and Moore's majority vote).
    """
    num_answers, candidate, lead, finder = 0, "", 0, LabelFinder()
    for text in chain.from_iterable(map(iter_references, parts)):
        if text:
            num_answers += 1
            finder.add((text,))
            candidate = candidate if lead else text
            lead += 1 if text == candidate else -1
    num_common = sum(text == candidate for text in chain.from_iterable(map(iter_references, parts))) if lead else 0
    return num_answers, *((candidate, num_common) if 2 * num_common > num_answers else ("", 0)), finder.find()


@dataclass(frozen=True)
class CheckReport:
    """scripts: writing system → (answers mostly in it, first row). token_stats: None if tokens cannot be counted.

    num_compared: images compared for look-alikes. skipped_checks: which checks did not run, and why. basis: (name,
    value) of what the data was judged by, such as the model. skips_bad_rows: training leaves broken rows out
    (data.on_bad_row=skip). num_trainable: training rows that can be used; None: all of the split. steps: how many there
    would be; step_advice: a warning about them; setting_advice: warnings about model and settings.
    next_steps: (purpose, command). folders: those that a page leaves out of paths.
    """

    title: str
    data_report: DataReport
    findings: Sequence[Finding]
    split: SplitSummary
    scripts: Mapping[str, tuple[int, Example]]
    token_stats: TokenStats | None
    num_compared: int
    skipped_checks: Sequence[str] = ()
    basis: Sequence[tuple[str, str]] = ()
    skips_bad_rows: bool = False
    num_trainable: int | None = None
    steps: str = ""
    step_advice: str = ""
    setting_advice: Sequence[str] = ()
    next_steps: Sequence[tuple[str, str]] = ()
    folders: Sequence[Path] = ()

    @property
    def advice(self) -> list[str]:
        """Problems of the split as a whole, of the number of steps, and of the settings."""
        step_advice = [self.step_advice] if self.step_advice and not self.is_blocking else []
        return [*self.split.advice, *step_advice, *self.setting_advice]

    @property
    def is_blocking(self) -> bool:
        """True if training refuses to start with this data."""
        if self.split.failure or not self.data_report.num_usable or self.num_trainable == 0:
            return True
        return not self.skips_bad_rows and any(finding.is_blocking for finding in self.findings)

    @property
    def findings_by_kind(self) -> dict[FindingKind, list[Finding]]:
        """The findings of each kind, in the order of TITLES and of the rows."""
        groups = {kind: [finding for finding in self.findings if finding.kind == kind] for kind in TITLES}
        return {kind: group for kind, group in groups.items() if group}

    @property
    def summary(self) -> str:
        """The result in one sentence: whether training can start, why not, and what is in doubt."""
        num_rows, num_broken = self.data_report.num_rows, sum(finding.is_blocking for finding in self.findings)
        num_warnings = len(self.findings) - num_broken + (0 if self.split.failure else len(self.advice))
        notes = [_pluralize(num_warnings, "warning")] if num_warnings else []
        if unchecked := [name for name, colon, _ in (text.partition(":") for text in self.skipped_checks) if colon]:
            notes.append(f"not checked: {', '.join(unchecked)}")
        more = "".join(f"; {note}" for note in notes)
        if not num_rows:
            return "Training would not start: the data has no rows."
        broken = f"{num_broken} of {num_rows} rows"
        if self.is_blocking:
            is_cause = num_broken and not (self.skips_bad_rows and self.split.failure)
            cause = f"{broken} cannot be used" if is_cause else "no rows can be held out"
            if is_cause and self.num_trainable and not self.split.failure:
                more += "; mend these rows, or leave them out: data.on_bad_row=skip"
            return f"Training would not start: {cause}{more}."
        if num_broken:
            return f"Ready to train: {broken} {'is' if num_broken == 1 else 'are'} broken and left out{more}."
        rows = _pluralize(num_rows, "row")
        return f"Ready to train: {f'{rows} can be used{more}' if more else f'no problems found in {rows}'}."

    def to_pandas(self) -> "pandas.DataFrame":
        """A DataFrame with a row for each finding. Raises LorgnetteError if pandas is not installed."""
        return build_frame(self.as_dict()["findings"])

    def _repr_html_(self) -> str:
        rows = [
            {"finding": TITLES[finding.kind], "row": finding.problem.row, "what": finding.problem.message}
            | {"to do": finding.problem.hint}
            for finding in chain.from_iterable(self.findings_by_kind.values())
        ]
        return render_result(title=self.title, lines=[self.summary, *self.advice], rows=rows)

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON types."""
        findings = [
            {"kind": finding.kind, "is_blocking": finding.is_blocking, **asdict(finding.problem)}
            | {"source": str(finding.problem.source), "images": [str(path) for path in finding.images]}
            for finding in chain.from_iterable(self.findings_by_kind.values())
        ]
        scripts = {
            name: {"answers": count, "first": {"source": str(row.source), "row": row.row}}
            for name, (count, row) in self.scripts.items()
        }
        return {
            **self.data_report.as_dict(),
            "is_blocking": self.is_blocking,
            "summary": self.summary,
            "findings": findings,
            "split": asdict(self.split),
            "advice": self.advice,
            "steps": self.steps,
            "scripts": scripts,
            "token_stats": self.token_stats and asdict(self.token_stats),
            "num_compared": self.num_compared,
            "skipped_checks": list(self.skipped_checks),
        }


def print_report(report: CheckReport, source: Path, terminal: Terminal) -> None:
    """Print errors, warnings, facts and the summary of the data in `source`."""
    for line in list_errors(report):
        terminal.print_result(line, style="red")
    for line in list_warnings(report):
        terminal.print_result(line, style="yellow")
    if not report.data_report.num_rows:
        terminal.print_result(f"{source}: the data has no rows; name a file that has some", style="yellow")
    for name, value in list_facts(report):
        terminal.print_result(f"{name:<10} {value}")
    for line in format_histogram(report.token_stats) if report.token_stats else ():
        terminal.print_result(f"{'':<10} {line}")
    terminal.print_result(f"result     {report.summary}")


def list_errors(report: CheckReport) -> Iterator[str]:
    """Everything that stops training."""
    yield from format_problems(finding.problem for finding in report.findings if finding.is_blocking)
    if report.split.failure:
        yield from report.split.advice


def list_warnings(report: CheckReport) -> Iterator[str]:
    """Everything that does not stop training: the first of each kind, then advice about the split."""
    for kind, group in report.findings_by_kind.items():
        if group[0].is_blocking:
            continue
        lines = format_problems((finding.problem for finding in group), MAX_LISTED)
        yield from lines[:MAX_LISTED]
        yield from (f"{line}: {TITLES[kind]} (--json or --out lists all)" for line in lines[MAX_LISTED:])
    if not report.split.failure:
        yield from report.advice


def list_facts(report: CheckReport) -> Iterator[tuple[str, str]]:
    """(name, value) pairs that describe the data."""
    rows, split = report.data_report, report.split
    if report.basis:
        yield "judged by", "; ".join(f"{name} {value}" for name, value in report.basis)
    yield "rows", f"{rows.num_rows}, {rows.num_usable} usable, {len(rows.problems)} broken"
    yield "images", f"{rows.num_images}, used {_pluralize(rows.num_images + rows.num_repeated_uses, 'time')}"
    if rows.num_boxes:
        yield "boxes", f"{rows.num_boxes} in {_pluralize(rows.num_rows_with_boxes, 'row')}"
    if rows.smallest_size and rows.largest_size:
        yield "sizes", f"{_format_range(*(f'{w}×{h}' for w, h in (rows.smallest_size, rows.largest_size)))} pixels"
    yield from _list_answer_facts(report)
    if split.num_held_out:
        images = f" with {_pluralize(split.num_held_out_images, 'image')}" if split.num_held_out_images else ""
        yield "split", f"{split.num_train} for training, {split.num_held_out} held out{images}"
    if report.steps:
        yield "steps", report.steps
    if report.num_compared:
        yield "compared", f"{_pluralize(report.num_compared, 'image')} for look-alikes"
    if report.skipped_checks:
        yield "skipped", "; ".join(report.skipped_checks)
    if tokens := report.token_stats:
        yield "tokens", f"{_format_range(tokens.shortest, tokens.longest)} per example, median {tokens.median:g}"
        images, labels = (f"{count / tokens.num_tokens:.0%}" for count in (tokens.num_image_tokens, tokens.num_labels))
        yield "total", f"{tokens.num_tokens:,} tokens: {images} of images, {labels} with loss"


def _list_answer_facts(report: CheckReport) -> Iterator[tuple[str, str]]:
    if lengths := report.data_report.answer_lengths:
        yield "answers", f"{_format_range(lengths.shortest, lengths.longest)} characters, mean {lengths.mean:.0f}"
    if labels := report.split.labels:
        more = ", …" if len(labels) > _MAX_LABELS else ""
        yield "labels", f"{len(labels)}: {', '.join(map(_shorten, labels[:_MAX_LABELS]))}{more}"
    if scripts := report.scripts:
        firsts = {name: f", first in {row.place}" if len(scripts) > 1 else "" for name, (_, row) in scripts.items()}
        counts = (f"{name} ({count}{firsts[name]})" for name, (count, _) in scripts.items())
        yield "text", f"writing system: {', '.join(counts)}"


def explain_split(split: SplitSummary) -> str:
    """What the held-out rows are for, and what so few of them can show."""
    if split.failure or not split.num_train + split.num_held_out:
        return ""
    if not split.num_held_out:
        return "No rows are held out, so no score will say whether the training helped."
    text = (
        f"{_pluralize(split.num_train, 'row')} for training, {split.num_held_out} held out. The model never trains on "
        "held-out rows; it answers them before and after, so their scores show what it learned."
    )
    if split.num_held_out < _FEW_HELD_OUT:
        share = f"one answer is {100 / split.num_held_out:.0f} % of a score"
        can_hold_out_more = 2 * (split.num_held_out + 1) <= split.num_train + split.num_held_out
        remedy = "hold out more to be sure (data.holdout=N)" if can_hold_out_more else "add images to be sure"
        text += f" With {split.num_held_out}, {share}: {remedy}."
    return text


def format_bin(low: int, high: int) -> str:
    """Name the histogram bin of the lengths low … high−1."""
    return _format_range(low, high - 1, "–")


def format_histogram(tokens: TokenStats) -> Iterator[str]:
    """One line per bin: its lengths, a bar, the number of examples."""
    largest = max(count for _, _, count in tokens.histogram)
    width = max(len(format_bin(low, high)) for low, high, _ in tokens.histogram)
    for low, high, count in tokens.histogram:
        bar = "█" * round(_BAR_WIDTH * count / largest) or "▏"
        yield f"{format_bin(low, high):>{width}}" + (f"  {bar} {count}" if count else "")


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")


def _pluralize(count: int, name: str, plural: str = "") -> str:
    return f"{count} {name}" if count == 1 else f"{count} {plural or f'{name}s'}"


def _format_range(low: object, high: object, separator: str = " to ") -> str:
    return f"{low}" if low == high else f"{low}{separator}{high}"
