"""The HTML report of `check`: the summary, the findings of each kind with their images, and charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorgnette.data import format_group, format_places, format_rows, group_problems
from lorgnette.report.check_report import TITLES, CheckReport, format_bin, list_facts
from lorgnette.report.html.inline_images import InlineImage, inline_images
from lorgnette.report.html.templates import write_page
from lorgnette.types import Finding, Problem

MAX_CARDS = 12
"""Findings of one kind that are shown with their images."""
MAX_LISTED = 200
"""Findings of one kind that are listed; the others are counted."""
_MAX_IMAGE_BYTES = 24_000
_STARTS = {"more": MAX_CARDS, "unlisted": MAX_LISTED}
"""Where the entries begin that are listed after the cards, and those that are only counted."""
_Entry = tuple[list[Problem], tuple[Path, ...]]
"""The like problems of several rows, or one with its images."""


def write_check_page(path: Path, report: CheckReport) -> None:
    histogram = report.token_stats.histogram if report.token_stats else ()
    write_page(
        path,
        "check_page.html.j2",
        title=report.title,
        summary=report.summary,
        groups=_group_findings(report),
        advice=report.split.advice,
        is_advice_blocking=bool(report.split.failure),
        facts=[(name.capitalize(), value) for name, value in list_facts(report)],
        tokens=_build_bars([(format_bin(low, high), count) for low, high, count in histogram]),
        scripts=_build_bars([(name, count) for name, (count, _) in report.scripts.items()]),
        data={},
    )


def _group_findings(report: CheckReport) -> list[dict[str, Any]]:
    """The findings of each kind. cards: the first entries with their images; more: lines about those after."""
    entries = {kind: _list_entries(group) for kind, group in report.findings_by_kind.items()}
    shown = [path for group in entries.values() for _, paths in group[:MAX_CARDS] for path in paths]
    images = inline_images(shown, max_bytes=_MAX_IMAGE_BYTES)
    groups: list[dict[str, Any]] = []
    for kind, findings in report.findings_by_kind.items():
        group = entries[kind]
        counts = {"title": TITLES[kind], "is_blocking": findings[0].is_blocking, "count": len(findings)}
        counts |= {f"num_{name}": _count_rows(group[start:]) for name, start in _STARTS.items()}
        cards = [_build_card(entry, images) for entry in group[:MAX_CARDS]]
        more = [format_group(problems) for problems, _ in group[MAX_CARDS:MAX_LISTED]]
        groups.append({**counts, "cards": cards, "more": more})
    return groups


def _list_entries(findings: Sequence[Finding]) -> list[_Entry]:
    """One for each finding with images; one for like findings without."""
    if any(finding.images for finding in findings):
        return [([finding.problem], finding.images) for finding in findings]
    return [(group, ()) for group in group_problems(finding.problem for finding in findings)]


def _count_rows(entries: Sequence[_Entry]) -> int:
    return sum(len(problems) for problems, _ in entries)


def _build_card(entry: _Entry, images: Mapping[Path, InlineImage]) -> dict[str, Any]:
    """place: its rows; text: what is wrong and what to do."""
    problems, paths = entry
    first = problems[0]
    places = format_places(problems)
    text = f"{first.fact}{f' ({places})' if places else ''}; {first.hint}"
    return {"place": format_rows(problems), "text": text, "images": [images[path] for path in paths]}


def _build_bars(counts: Sequence[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """(name, count, percent of the largest count)."""
    largest = max((count for _, count in counts), default=1)
    return [(name, count, round(100 * count / largest, 1)) for name, count in counts]
