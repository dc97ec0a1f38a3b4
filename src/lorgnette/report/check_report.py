"""What `check` found, for a person at a terminal and for scripts; its page is `preflight_page`.

Knows nothing about how it was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from lorgnette.data import Report
from lorgnette.processing.token_stats import Tokens
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
LISTED = 10
"""Warnings of one kind that are told one by one."""
_BAR = 32


@dataclass(frozen=True)
class Parts:
    """How the usable rows are split. why_none: why no row could be held out, over which training does not start."""

    trained: int
    held_out: int
    held_out_pictures: int
    why_none: str = ""

    @classmethod
    def of(cls, trained: Sequence[Example], held: Sequence[Example], why_none: str = "") -> "Parts":
        return cls(len(trained), len(held), len({p.path for row in held for p in row.pictures}), why_none)

    @property
    def advice(self) -> list[str]:
        """On the hold-out as a whole; `train` says it too."""
        if self.why_none:
            return [f"no row can be held out: {self.why_none}"]
        if self.held_out_pictures == 1 and self.held_out > 1:
            return [
                f"the hold-out is one picture with {self.held_out} answers, and its scores are that picture's; "
                "hold out more (data.holdout=50), or name a file (data.test=FILE)"
            ]
        return []


@dataclass(frozen=True)
class Preflight:
    """scripts: of the answers, how many are mostly in each, and the first row. tokens: None where they could not be
    counted. compared: pictures whose looks were compared. unchecked: what was not looked at, and why."""

    title: str
    report: Report
    findings: Sequence[Finding]
    parts: Parts
    scripts: Mapping[str, tuple[int, Example]]
    tokens: Tokens | None
    compared: int
    unchecked: Sequence[str] = ()

    @property
    def stops(self) -> bool:
        """Would training refuse to start over these rows?"""
        refused = bool(self.parts.why_none) or any(finding.stops for finding in self.findings)
        return refused or not self.report.usable

    @property
    def by_kind(self) -> dict[FindingKind, list[Finding]]:
        """Kinds that were found, in TITLES' order; the findings of each in the order of the rows."""
        found: dict[FindingKind, list[Finding]] = {kind: [] for kind in TITLES}
        for finding in self.findings:
            found[finding.kind].append(finding)
        return {kind: listed for kind, listed in found.items() if listed}

    @property
    def verdict(self) -> str:
        stopping = sum(finding.stops for finding in self.findings)
        others = len(self.findings) - stopping
        looks = f"{others} {'finding is' if others == 1 else 'findings are'} worth a look" if others else ""
        if not self.report.rows:
            return "There are no rows."
        if self.stops:
            cause = f"{stopping} of {self.report.rows} rows cannot be used" if stopping else "no row can be held out"
            return f"Training would not start: {'; '.join(filter(None, [cause, looks]))}."
        return f"Nothing keeps a training from starting; {looks}." if looks else "Nothing was found against its rows."

    @property
    def advice(self) -> list[str]:
        return self.parts.advice

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            **self.report.as_dict(),
            "stops": self.stops,
            "verdict": self.verdict,
            "findings": [_finding(each) for listed in self.by_kind.values() for each in listed],
            "parts": asdict(self.parts),
            "advice": self.advice,
            "scripts": {
                name: {"answers": count, "first": {"source": str(row.source), "row": row.row}}
                for name, (count, row) in self.scripts.items()
            },
            "tokens": self.tokens and asdict(self.tokens),
            "compared": self.compared,
            "unchecked": list(self.unchecked),
        }


def _finding(each: Finding) -> dict[str, Any]:
    problem = each.problem
    return {
        "kind": each.kind,
        "stops": each.stops,
        "source": str(problem.source),
        "row": problem.row,
        "what": problem.what,
        "remedy": problem.remedy,
        "pictures": [str(path) for path in each.pictures],
    }


def warnings(found: Preflight) -> Iterator[str]:
    """What stops nothing: findings, the first of each kind, and how many more there are; then the advice."""
    for kind, listed in found.by_kind.items():
        if listed[0].stops:
            continue
        yield from (str(each.problem) for each in islice(listed, LISTED))
        if len(listed) > LISTED:
            title = TITLES[kind]
            yield f"… {title[0].lower()}{title[1:]}: {len(listed) - LISTED} more (--json or --out names all)"
    if not found.parts.why_none:
        yield from found.advice


def facts(found: Preflight) -> Iterator[tuple[str, str]]:
    """(name, value) of what is there."""
    report = found.report
    yield "rows", f"{report.rows}, {report.usable} usable, {len(report.problems)} broken"
    yield "pictures", f"{report.pictures}, used {_many(report.pictures + report.repeats, 'time')}"
    if report.smallest and report.largest:
        yield "sizes", f"{_span(*('×'.join(map(str, size)) for size in (report.smallest, report.largest)))} pixels"
    if report.answers:
        lengths = report.answers
        yield "answers", f"{_span(lengths.shortest, lengths.longest)} characters, {lengths.mean:.0f} on average"
    if found.scripts:
        several = len(found.scripts) > 1
        yield "scripts", ", ".join(_script(name, *each, several) for name, each in found.scripts.items())
    if found.parts.held_out:
        held = f"{found.parts.held_out} held out, on {_many(found.parts.held_out_pictures, 'picture')}"
        yield "parts", f"{found.parts.trained} trained on, {held}"
    if found.compared:
        yield "looks", f"{_many(found.compared, 'picture')} compared"
    if found.unchecked:
        yield "unchecked", "; ".join(found.unchecked)
    if tokens := found.tokens:
        yield "tokens", f"{_span(tokens.shortest, tokens.longest)} an example, {tokens.median:g} in the middle"
        share = (
            f"{_percent(tokens.of_pictures, tokens.total)} pictures, {_percent(tokens.trained, tokens.total)} trained"
        )
        yield "in all", f"{tokens.total:,} tokens, {share}"


def histogram(tokens: Tokens) -> Iterator[str]:
    """A line a bin: its tokens, a bar, how many examples."""
    most = max(count for _, _, count in tokens.bins)
    names = [f"{low}–{high - 1}" if high - low > 1 else f"{low}" for low, high, _ in tokens.bins]
    wide = max(map(len, names))
    for name, (_, _, count) in zip(names, tokens.bins, strict=True):
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        yield f"{name:>{wide}}  {bar} {count}".rstrip() if count else f"{name:>{wide}}"


def _script(name: str, count: int, first: Example, several: bool) -> str:
    return f"{name} {count}" + (f" (first in row {first.row})" if several else "")


def _many(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _span(least: object, most: object) -> str:
    return f"{least}" if least == most else f"{least} to {most}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"
