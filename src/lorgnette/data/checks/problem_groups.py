"""Counts like problems, so that one fault of thirty rows is one line. Used wherever problems are listed."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lorgnette.types import Problem

_NUMBER = re.compile(r"\d+")
_MAX_RANGES = 12
"""Ranges of rows that are written out."""


def group_problems(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Problems with the same fact and remedy together, in the order of the first of each; numbers may differ."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((_NUMBER.sub("0", problem.fact), problem.hint), []).append(problem)
    return list(groups.values())


def format_group(group: Sequence[Problem]) -> str:
    """One line: a problem with its row, or several rows with their number, all of them, and what the first is about."""
    first = group[0]
    num_rows = len({(problem.source, problem.row) for problem in group})
    if num_rows == 1:
        return str(first)
    rows = (
        f"{num_rows} rows" if all(problem.fact == first.fact for problem in group) else f"{num_rows} rows such as this"
    )
    about = f"; first: {first.where}" if first.where else ""
    return f"{rows}: {first.fact}; {first.hint} ({format_rows(group, str)}{about})"


def format_problems(problems: Iterable[Problem], max_lines: int | None = None) -> list[str]:
    """One line for each kind of problem. max_lines: the problems after so many lines are counted in one more."""
    groups = group_problems(problems)
    lines = [format_group(group) for group in groups[:max_lines]]
    rest = sum(len(group) for group in groups[len(lines) :])
    return [*lines, f"… and {rest} more"] if rest else lines


def format_rows(group: Sequence[Problem], name: Callable[[Path], str] = lambda source: source.name) -> str:
    """The rows of a group: `a.csv, row 2`, or `a.csv, rows 2–31, 40`. name: how a source is called."""
    sources = dict.fromkeys(problem.source for problem in group)
    texts = []
    for source in sources:
        places = {problem.row: problem.place for problem in group if problem.source == source}
        ranges = ", ".join(_shorten(_list_ranges(sorted(places))))
        texts.append(f"{name(source)}, {f'rows {ranges}' if len(places) > 1 else next(iter(places.values()))}")
    return "; ".join(texts)


def _list_ranges(rows: Sequence[int]) -> Iterator[str]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield f"{rows[start]}" if end == start + 1 else f"{rows[start]}–{rows[end - 1]}"
            start = end


def _shorten(ranges: Iterable[str]) -> list[str]:
    texts = list(ranges)
    return [*texts[:_MAX_RANGES], "…"] if len(texts) > _MAX_RANGES else texts
