"""The HTML report of `check`: the summary, the findings of each kind with their images, and charts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorgnette.report.check_report import TITLES, CheckReport, format_bin, list_facts
from lorgnette.report.html.inline_images import inline_images
from lorgnette.report.html.templates import write_page

MAX_CARDS = 12
"""Findings of one kind that are shown with their images."""
MAX_LISTED = 200
"""Findings of one kind that are listed; the others are counted."""
_MAX_IMAGE_BYTES = 24_000


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
    """The findings of each kind. cards: (finding, its images) of the first ones; more: the ones after."""
    shown = [finding for group in report.findings_by_kind.values() for finding in group[:MAX_CARDS]]
    images = inline_images((path for finding in shown for path in finding.images), max_bytes=_MAX_IMAGE_BYTES)
    groups: list[dict[str, Any]] = []
    for kind, group in report.findings_by_kind.items():
        cards = [(finding, [images[path] for path in finding.images]) for finding in group[:MAX_CARDS]]
        more = [str(finding.problem) for finding in group[MAX_CARDS:MAX_LISTED]]
        counts = {"title": TITLES[kind], "is_blocking": group[0].is_blocking, "count": len(group)}
        groups.append({**counts, "cards": cards, "more": more})
    return groups


def _build_bars(counts: Sequence[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """(name, count, percent of the largest count)."""
    largest = max((count for _, count in counts), default=1)
    return [(name, count, round(100 * count / largest, 1)) for name, count in counts]
