"""The page of `check`: the verdict, what is there, and every kind of finding with pictures to look at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.io.atomic import write_text
from lorgnette.report.check_report import TITLES, CheckReport, list_facts
from lorgnette.report.html.inline_images import InlineImage, inline_images
from lorgnette.report.html.templates import render_template
from lorgnette.types import Finding

MAX_CARDS = 12
"""Findings of one kind that show their pictures."""
MAX_LISTED = 200
"""Findings of one kind that are told at all; the others are counted."""
_MAX_IMAGE_BYTES = 24_000
"""Of one picture."""


@dataclass(frozen=True, slots=True)
class _FindingGroup:
    title: str
    is_blocking: bool
    count: int
    cards: Sequence[tuple[str, str, tuple[InlineImage, ...]]]
    """(where, what and what to do, pictures) of the first."""
    more: Sequence[str]
    """The ones after them."""


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    count: int
    percent: float
    """Of the longest."""


def write_check_page(path: Path, found: CheckReport) -> None:
    tokens = found.token_stats.histogram if found.token_stats else ()
    html = render_template(
        "check_page.html.j2",
        title=found.title,
        summary=found.verdict,
        kinds=list(_group_findings(found)),
        advice=found.advice,
        refused=bool(found.split.failure),
        facts=[(name.capitalize(), value) for name, value in list_facts(found)],
        tokens=_build_bars(
            [(f"{low}–{high - 1}" if high - low > 1 else str(low), count) for low, high, count in tokens]
        ),
        scripts=_build_bars([(name, count) for name, (count, _) in found.scripts.items()]),
        data={},
    )
    write_text(path, html)


def _group_findings(found: CheckReport) -> Iterator[_FindingGroup]:
    first = [each for listed in found.findings_by_kind.values() for each in listed[:MAX_CARDS]]
    shown = inline_images((picture for each in first for picture in each.images), max_bytes=_MAX_IMAGE_BYTES)
    for kind, listed in found.findings_by_kind.items():
        cards = [_build_card(each, shown) for each in listed[:MAX_CARDS]]
        told = [str(each.problem) for each in listed[MAX_CARDS:MAX_LISTED]]
        yield _FindingGroup(TITLES[kind], listed[0].is_blocking, len(listed), cards, told)


def _build_card(each: Finding, shown: Mapping[Path, InlineImage]) -> tuple[str, str, tuple[InlineImage, ...]]:
    problem, pictures = each.problem, tuple(shown[path] for path in each.images)
    return f"{problem.source.name}, row {problem.row}", f"{problem.message}; {problem.hint}", pictures


def _build_bars(counts: Sequence[tuple[str, int]]) -> list[_Bar]:
    most = max((count for _, count in counts), default=1)
    return [_Bar(name, count, round(100 * count / most, 1)) for name, count in counts]
