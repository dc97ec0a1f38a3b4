"""The HTML report of `check`: the verdict, what to do next, the findings with their images, facts and charts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorgnette.data import format_group, format_places, format_rows, group_problems
from lorgnette.report.check_report import LEAKS, TITLES, CheckReport, explain_split, format_bin, list_facts
from lorgnette.report.html.inline_images import InlineImage, inline_images
from lorgnette.report.html.page import SIGNS
from lorgnette.report.html.templates import write_page
from lorgnette.report.manifest import describe_making
from lorgnette.report.verdict import Verdict, VerdictKind
from lorgnette.types import Finding, FindingKind, Problem

MAX_CARDS = 12
"""Findings of one kind that are shown with their images."""
MAX_LISTED = 200
"""Findings of one kind that are listed; the others are counted."""
MAX_GROUP_IMAGES = 6
"""Images of a card about several rows."""
_MAX_IMAGE_BYTES = 24_000
_SHOWN_APART = ("judged by", "steps")
_STARTS = {"more": MAX_CARDS, "unlisted": MAX_LISTED}
"""Where the entries begin that are listed after the cards, and those that are only counted."""
_Entry = tuple[list[Problem], tuple[Path, ...]]
"""The like problems of several rows, or one with its images."""


def write_check_page(path: Path, report: CheckReport) -> None:
    histogram = report.token_stats.histogram if report.token_stats else ()
    verdict = _build_verdict(report)
    write_page(
        path,
        "check_page.html.j2",
        folders=report.folders,
        title=report.title,
        summary="",
        verdict=verdict,
        sign=SIGNS[verdict.kind],
        parts=_build_parts(report),
        next_steps=report.next_steps,
        basis=[*((name.capitalize(), value) for name, value in report.basis), ("Made", describe_making())],
        steps=report.steps,
        split_text=explain_split(report.split),
        advice=report.advice,
        is_advice_blocking=bool(report.split.failure),
        facts=[(name.capitalize(), value) for name, value in list_facts(report) if name not in _SHOWN_APART],
        tokens=_build_bars([(format_bin(low, high), count) for low, high, count in histogram]),
        scripts=_build_bars([(name, count) for name, (count, _) in report.scripts.items()]),
        data={},
    )


def _build_verdict(report: CheckReport) -> Verdict:
    """The summary as a headline and the rest."""
    headline, _, evidence = report.summary.partition(": ")
    kind: VerdictKind = "harm" if report.is_blocking else "worked"
    return Verdict(kind, f"{headline}.", f"{evidence[:1].upper()}{evidence[1:]}")


def _build_parts(report: CheckReport) -> list[dict[str, Any]]:
    """The findings in three parts: what stops training or is left out, what spoils the scores, and the others."""
    stops = "Left out of training" if report.skips_bad_rows else "What stops training"
    parts: list[dict[str, Any]] = [
        {"id": "stops", "title": stops, "is_blocking": not report.skips_bad_rows, "groups": []},
        {"id": "leaks", "title": "What spoils the held-out scores", "is_blocking": False, "groups": []},
        {"id": "others", "title": "What to look at", "is_blocking": False, "groups": []},
    ]
    for kind, group in _group_findings(report).items():
        part = 0 if report.findings_by_kind[kind][0].is_blocking else 1 if kind in LEAKS else 2
        parts[part]["groups"].append(group)
    return [part for part in parts if part["groups"]]


def _group_findings(report: CheckReport) -> dict[FindingKind, dict[str, Any]]:
    """The findings of each kind. cards: the first entries with their images; more: lines about those after."""
    entries = {kind: _list_entries(group) for kind, group in report.findings_by_kind.items()}
    shown = [path for group in entries.values() for _, paths in group[:MAX_CARDS] for path in paths]
    damaged = {path for finding in report.findings if finding.is_blocking for path in finding.images}
    images = inline_images(shown, max_bytes=_MAX_IMAGE_BYTES, damaged=damaged)
    groups: dict[FindingKind, dict[str, Any]] = {}
    for kind, findings in report.findings_by_kind.items():
        group = entries[kind]
        counts: dict[str, Any] = {"title": TITLES[kind], "count": len(findings)}
        counts |= {f"num_{name}": _count_rows(group[start:]) for name, start in _STARTS.items()}
        cards = [_build_card(entry, images) for entry in group[:MAX_CARDS]]
        if findings[0].is_blocking:  # the text says why there is no image
            cards = [{**card, "images": [image for image in card["images"] if image.source]} for card in cards]
        more = [format_group(problems) for problems, _ in group[MAX_CARDS:MAX_LISTED]]
        groups[kind] = {**counts, "cards": cards, "more": more}
    return groups


def _list_entries(findings: Sequence[Finding]) -> list[_Entry]:
    """One for each finding that names its image, which has to be looked at; one for like findings of other kinds."""
    if any(path.name in finding.problem.fact for finding in findings for path in finding.images):
        return [([finding.problem], finding.images) for finding in findings]
    images = {finding.problem: finding.images for finding in findings}
    return [
        (group, tuple(dict.fromkeys(path for problem in group for path in images[problem]))[:MAX_GROUP_IMAGES])
        for group in group_problems(finding.problem for finding in findings)
    ]


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
