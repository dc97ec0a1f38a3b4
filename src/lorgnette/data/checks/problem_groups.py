"""Counts like problems, so that one fault of thirty rows is one line. Used wherever problems are listed."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lorgnette.types import Problem

_NUMBER = re.compile(r"\d+")
MAX_PLACES, _MAX_RANGES = 3, 12
"""Places and ranges of rows that a line names."""


def group_problems(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Problems with the same fact and remedy together, in the order of the first of each; numbers may differ."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((_NUMBER.sub("0", problem.fact), problem.hint), []).append(problem)
    return list(groups.values())


def format_group(group: Sequence[Problem], max_places: int | None = MAX_PLACES) -> str:
    """One line: a problem with its row, or the number of rows, which they are, and what the first ones are about.

    max_places: how many places (images) are named; None: all.
    """
    first = group[0]
    num_rows = len({(problem.source, problem.row) for problem in group})
    if num_rows == 1:
        return str(first)
    rows = (
        f"{num_rows} rows" if all(problem.fact == first.fact for problem in group) else f"{num_rows} rows such as this"
    )
    max_ranges = None if max_places is None else _MAX_RANGES
    places = format_places(group, max_places)
    about = f"{format_rows(group, str, max_ranges)}{': ' if places else ''}{places}"
    return f"{rows}: {first.fact}; {first.hint} ({about})"


def format_problems(
    problems: Iterable[Problem], max_lines: int | None = None, max_places: int | None = MAX_PLACES
) -> list[str]:
    """One line for each kind of problem. max_lines: one more line counts the problems that are left out.
    max_places: as in `format_group`."""
    groups = group_problems(problems)
    lines = [format_group(group, max_places) for group in groups[:max_lines]]
    rest = sum(len(group) for group in groups[len(lines) :])
    return [*lines, f"… and {rest} more"] if rest else lines


def format_rows(
    group: Sequence[Problem],
    name: Callable[[Path], str] = lambda source: source.name,
    max_ranges: int | None = _MAX_RANGES,
) -> str:
    """The rows of a group: `a.csv, row 2`, or `a.csv, rows 2–31, 40`. name: how a source is called."""
    sources = dict.fromkeys(problem.source for problem in group)
    texts = []
    for source in sources:
        places = {problem.row: problem.place for problem in group if problem.source == source}
        ranges = ", ".join(_shorten(_list_ranges(sorted(places)), max_ranges))
        texts.append(f"{name(source)}, {f'rows {ranges}' if len(places) > 1 else next(iter(places.values()))}")
    return "; ".join(texts)


def format_places(group: Iterable[Problem], max_places: int | None = _MAX_RANGES) -> str:
    """What the problems are about, such as the paths of images; "" if it is the rows themselves."""
    return ", ".join(_shorten(dict.fromkeys(problem.where for problem in group if problem.where), max_places))


def _list_ranges(rows: Sequence[int]) -> Iterator[str]:
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or rows[end] != rows[end - 1] + 1:
            yield f"{rows[start]}" if end == start + 1 else f"{rows[start]}–{rows[end - 1]}"
            start = end


def _shorten(texts: Iterable[str], max_texts: int | None) -> list[str]:
    texts = list(texts)
    return texts if max_texts is None or len(texts) <= max_texts else [*texts[:max_texts], "…"]
