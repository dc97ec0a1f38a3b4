"""A data set's loading script → the data addresses written in it, read as text. The script is never executed.

Addresses count where they are literals, or names, sums and f-strings of literals, as loading scripts write them.
"""

import ast
from collections.abc import Iterator

from lorgnette.errors import LorgnetteError

DATA_SUFFIXES = (
    ".csv",
    ".tsv",
    ".jsonl",
    ".json",
    ".csv.zip",
    ".tsv.zip",
    ".jsonl.zip",
    ".json.zip",
    ".parquet",
    ".tar",
)


def find_data_urls(text: str, *, where: str) -> dict[str, list[str]]:
    """Addresses of data files by the name they have in the script ("" for none). Raises where there are none."""
    try:
        tree = ast.parse(text)
        known = _collect_constants(tree)
        found: dict[str, list[str]] = {}
        for name, url in _iter_urls(tree, known):
            if url not in [each for urls in found.values() for each in urls]:
                found.setdefault(name, []).append(url)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise LorgnetteError(
            f"the loading script cannot be read: {type(error).__name__}", where=where, hint="take another data set"
        ) from error
    if not found:
        raise LorgnetteError(
            "the data set is only a loading script, and no data address can be read from it (scripts are not executed)",
            where=where,
            hint="download its files yourself, or take a data set that holds CSV, JSONL or parquet files",
        )
    return found


def _collect_constants(tree: ast.Module) -> dict[str, str]:
    """Text that names stand for, module level and in classes, in the order written."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if (
            isinstance(node, ast.Assign)
            and isinstance(target, ast.Name)
            and (value := _evaluate_text(node.value, known)) is not None
        ):
            known[target.id] = value
    return known


def _iter_urls(tree: ast.Module, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(key, address) of every dictionary, then whatever other addresses stand in the script."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                name = _evaluate_text(key, known) if key is not None else ""
                for element in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
                    if _is_data_url(url := _evaluate_text(element, known)):
                        yield name or "", str(url)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.BinOp | ast.JoinedStr) and _is_data_url(
            url := _evaluate_text(node, known)
        ):
            yield "", str(url)


def _is_data_url(url: str | None) -> bool:
    return url is not None and url.startswith(("http://", "https://")) and url.lower().endswith(DATA_SUFFIXES)


def _evaluate_text(node: ast.expr | None, known: dict[str, str]) -> str | None:
    """The text an expression stands for, where that can be seen without running anything."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _evaluate_text(node.left, known), _evaluate_text(node.right, known)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr):
        parts = [
            _evaluate_text(value.value if isinstance(value, ast.FormattedValue) else value, known)
            for value in node.values
        ]
        return None if None in parts else "".join(str(part) for part in parts)
    return None
