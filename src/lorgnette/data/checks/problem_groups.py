"""Counts equal problems, so that one fault of thirty rows is one line. Used wherever problems are listed."""

from collections.abc import Iterable, Sequence

from lorgnette.types import Problem


def group_problems(problems: Iterable[Problem]) -> list[list[Problem]]:
    """Problems with the same fact and remedy together, in the order of the first of each."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.fact, problem.hint), []).append(problem)
    return list(groups.values())


def format_group(group: Sequence[Problem]) -> str:
    """One line: a problem with its row, or several rows with their number and the first of them."""
    first = group[0]
    num_rows = len({(problem.source, problem.row) for problem in group})
    if num_rows == 1:
        return str(first)
    where = f": {first.where}" if first.where else ""
    return f"{num_rows} rows: {first.fact}; {first.hint} (first: {first.source}, {first.place}{where})"


def format_problems(problems: Iterable[Problem], max_lines: int | None = None) -> list[str]:
    """One line for each kind of problem. max_lines: the problems after so many lines are counted in one more."""
    groups = group_problems(problems)
    lines = [format_group(group) for group in groups[:max_lines]]
    rest = sum(len(group) for group in groups[len(lines) :])
    return [*lines, f"… and {rest} more"] if rest else lines
