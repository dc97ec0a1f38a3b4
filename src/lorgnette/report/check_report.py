"""What `check` found, for a person at a terminal and for scripts; its page is `preflight_page`.

Knows nothing about how it was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from lorgnette.data import DataReport
from lorgnette.processing.token_stats import TokenStats
from lorgnette.types import Example, Finding, FindingKind

TITLES: Mapping[FindingKind, str] = {
    "unusable": "Rows that cannot be used",
    "over-budget": "Rows with too many tokens",
    "leak": "Pictures held out and trained on",
    "look-alike-leak": "Held-out pictures that look like trained ones",
    "copy": "One picture in several files",
    "look-alike": "Pictures that look alike",
    "repeated-row": "Rows that say the same",
    "overlong-answer": "Answers longer than predictions may be",
    "no-end": "Answers without an end token",
    "control-text": "Control tokens written out in texts",
    "stray-marker": "Markers where no picture stands",
    "odd-shape": "Pictures of an odd shape",
    "tiny": "Tiny pictures",
}
"""In the order in which they are told: what stops a training, what spoils a test, what is worth a look."""
MAX_LISTED = 10
"""Warnings of one kind that are told one by one."""
_BAR_WIDTH = 32


@dataclass(frozen=True)
class SplitSummary:
    """How the usable rows are split. why_none: why no row could be held out, over which training does not start."""

    num_train: int
    num_held_out: int
    num_held_out_images: int
    failure: str = ""

    @classmethod
    def from_examples(cls, trained: Sequence[Example], held: Sequence[Example], why_none: str = "") -> "SplitSummary":
        return cls(len(trained), len(held), len({p.path for row in held for p in row.images}), why_none)

    @property
    def advice(self) -> list[str]:
        """On the hold-out as a whole; `train` says it too."""
        if self.failure:
            return [f"no row can be held out: {self.failure}"]
        if self.num_held_out_images == 1 and self.num_held_out > 1:
            return [
                f"the hold-out is one picture with {self.num_held_out} answers, and its scores are that picture's; "
                "hold out more (data.holdout=50), or name a file (data.test=FILE)"
            ]
        return []


@dataclass(frozen=True)
class CheckReport:
    """scripts: of the answers, how many are mostly in each, and the first row. tokens: None where they could not be
    counted. compared: pictures whose looks were compared. unchecked: what was not looked at, and why."""

    title: str
    data_report: DataReport
    findings: Sequence[Finding]
    split: SplitSummary
    scripts: Mapping[str, tuple[int, Example]]
    token_stats: TokenStats | None
    num_compared: int
    skipped_checks: Sequence[str] = ()

    @property
    def is_blocking(self) -> bool:
        """Would training refuse to start over these rows?"""
        refused = bool(self.split.failure) or any(finding.is_blocking for finding in self.findings)
        return refused or not self.data_report.num_usable

    @property
    def findings_by_kind(self) -> dict[FindingKind, list[Finding]]:
        """Kinds that were found, in TITLES' order; the findings of each in the order of the rows."""
        found: dict[FindingKind, list[Finding]] = {kind: [] for kind in TITLES}
        for finding in self.findings:
            found[finding.kind].append(finding)
        return {kind: listed for kind, listed in found.items() if listed}

    @property
    def verdict(self) -> str:
        stopping = sum(finding.is_blocking for finding in self.findings)
        others = len(self.findings) - stopping
        looks = f"{others} {'finding is' if others == 1 else 'findings are'} worth a look" if others else ""
        if not self.data_report.num_rows:
            return "There are no rows."
        if self.is_blocking:
            cause = (
                f"{stopping} of {self.data_report.num_rows} rows cannot be used"
                if stopping
                else "no row can be held out"
            )
            return f"Training would not start: {'; '.join(filter(None, [cause, looks]))}."
        return f"Nothing keeps a training from starting; {looks}." if looks else "Nothing was found against its rows."

    @property
    def advice(self) -> list[str]:
        return self.split.advice

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **self.data_report.as_dict(),
            "stops": self.is_blocking,
            "verdict": self.verdict,
            "findings": [_finding_as_dict(each) for listed in self.findings_by_kind.values() for each in listed],
            "parts": asdict(self.split),
            "advice": self.advice,
            "scripts": {
                name: {"answers": count, "first": {"source": str(row.source), "row": row.row}}
                for name, (count, row) in self.scripts.items()
            },
            "tokens": self.token_stats and asdict(self.token_stats),
            "compared": self.num_compared,
            "unchecked": list(self.skipped_checks),
        }


def _finding_as_dict(each: Finding) -> dict[str, Any]:
    problem = each.problem
    return {
        "kind": each.kind,
        "stops": each.is_blocking,
        "source": str(problem.source),
        "row": problem.row,
        "what": problem.message,
        "remedy": problem.hint,
        "pictures": [str(path) for path in each.images],
    }


def list_warnings(found: CheckReport) -> Iterator[str]:
    """What stops nothing: findings, the first of each kind, and how many more there are; then the advice."""
    for kind, listed in found.findings_by_kind.items():
        if listed[0].is_blocking:
            continue
        yield from (str(each.problem) for each in islice(listed, MAX_LISTED))
        if len(listed) > MAX_LISTED:
            title = TITLES[kind]
            yield f"… {title[0].lower()}{title[1:]}: {len(listed) - MAX_LISTED} more (--json or --out names all)"
    if not found.split.failure:
        yield from found.advice


def list_facts(found: CheckReport) -> Iterator[tuple[str, str]]:
    """(name, value) of what is there."""
    report = found.data_report
    yield "rows", f"{report.num_rows}, {report.num_usable} usable, {len(report.problems)} broken"
    yield "pictures", f"{report.num_images}, used {_pluralize(report.num_images + report.num_repeated_uses, 'time')}"
    if report.smallest_size and report.largest_size:
        yield (
            "sizes",
            f"{_format_range(*('×'.join(map(str, size)) for size in (report.smallest_size, report.largest_size)))} pixels",
        )
    if report.answer_lengths:
        lengths = report.answer_lengths
        yield "answers", f"{_format_range(lengths.shortest, lengths.longest)} characters, {lengths.mean:.0f} on average"
    if found.scripts:
        several = len(found.scripts) > 1
        yield "scripts", ", ".join(_format_script(name, *each, several) for name, each in found.scripts.items())
    if found.split.num_held_out:
        held = f"{found.split.num_held_out} held out, on {_pluralize(found.split.num_held_out_images, 'picture')}"
        yield "parts", f"{found.split.num_train} trained on, {held}"
    if found.num_compared:
        yield "looks", f"{_pluralize(found.num_compared, 'picture')} compared"
    if found.skipped_checks:
        yield "unchecked", "; ".join(found.skipped_checks)
    if tokens := found.token_stats:
        yield "tokens", f"{_format_range(tokens.shortest, tokens.longest)} an example, {tokens.median:g} in the middle"
        share = f"{_format_percent(tokens.num_image_tokens, tokens.num_tokens)} pictures, {_format_percent(tokens.num_labels, tokens.num_tokens)} trained"
        yield "in all", f"{tokens.num_tokens:,} tokens, {share}"


def format_histogram(tokens: TokenStats) -> Iterator[str]:
    """A line a bin: its tokens, a bar, how many examples."""
    most = max(count for _, _, count in tokens.histogram)
    names = [f"{low}–{high - 1}" if high - low > 1 else f"{low}" for low, high, _ in tokens.histogram]
    wide = max(map(len, names))
    for name, (_, _, count) in zip(names, tokens.histogram, strict=True):
        bar = "█" * round(_BAR_WIDTH * count / most) or ("▏" if count else "")
        yield f"{name:>{wide}}  {bar} {count}".rstrip() if count else f"{name:>{wide}}"


def _format_script(name: str, count: int, first: Example, several: bool) -> str:
    return f"{name} {count}" + (f" (first in row {first.row})" if several else "")


def _pluralize(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _format_range(least: object, most: object) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def _format_percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"
