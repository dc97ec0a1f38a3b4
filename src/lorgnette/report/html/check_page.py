"""The page of `check`: the verdict, what is there, and every kind of finding with pictures to look at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorgnette.io.atomic import write_text
from lorgnette.report.check_report import TITLES, Preflight, facts
from lorgnette.report.html.inline_images import Shown, embedded
from lorgnette.report.html.templates import rendered
from lorgnette.types import Finding

SHOWN = 12
"""Findings of one kind that show their pictures."""
TOLD = 200
"""Findings of one kind that are told at all; the others are counted."""
_BYTES = 24_000
"""Of one picture."""


@dataclass(frozen=True, slots=True)
class _Kind:
    title: str
    stops: bool
    count: int
    cards: Sequence[tuple[str, str, tuple[Shown, ...]]]
    """(where, what and what to do, pictures) of the first."""
    told: Sequence[str]
    """The ones after them."""


@dataclass(frozen=True, slots=True)
class _Bar:
    name: str
    count: int
    percent: float
    """Of the longest."""


def write_preflight(path: Path, found: Preflight) -> None:
    tokens = found.tokens.bins if found.tokens else ()
    html = rendered(
        "check_page.html.j2",
        title=found.title,
        summary=found.verdict,
        kinds=list(_kinds(found)),
        advice=found.advice,
        refused=bool(found.parts.why_none),
        facts=[(name.capitalize(), value) for name, value in facts(found)],
        tokens=_bars([(f"{low}–{high - 1}" if high - low > 1 else str(low), count) for low, high, count in tokens]),
        scripts=_bars([(name, count) for name, (count, _) in found.scripts.items()]),
        data={},
    )
    write_text(path, html)


def _kinds(found: Preflight) -> Iterator[_Kind]:
    first = [each for listed in found.by_kind.values() for each in listed[:SHOWN]]
    shown = embedded((picture for each in first for picture in each.pictures), most=_BYTES)
    for kind, listed in found.by_kind.items():
        cards = [_card(each, shown) for each in listed[:SHOWN]]
        told = [str(each.problem) for each in listed[SHOWN:TOLD]]
        yield _Kind(TITLES[kind], listed[0].stops, len(listed), cards, told)


def _card(each: Finding, shown: Mapping[Path, Shown]) -> tuple[str, str, tuple[Shown, ...]]:
    problem, pictures = each.problem, tuple(shown[path] for path in each.pictures)
    return f"{problem.source.name}, row {problem.row}", f"{problem.what}; {problem.remedy}", pictures


def _bars(counts: Sequence[tuple[str, int]]) -> list[_Bar]:
    most = max((count for _, count in counts), default=1)
    return [_Bar(name, count, round(100 * count / most, 1)) for name, count in counts]
