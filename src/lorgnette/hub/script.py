"""A data set's loading script → the URLs of data files in it, read as text. The script is never executed.

Recognized are literals, and names, sums and f-strings of literals, as loading scripts write them.
"""

import ast
from collections.abc import Iterator

from lorgnette.errors import LorgnetteError

DATA_SUFFIXES = (
    ".csv", ".tsv", ".jsonl", ".json", ".csv.zip", ".tsv.zip", ".jsonl.zip", ".json.zip", ".parquet", ".tar",
)  # fmt: skip
_TEXT_NODES = (ast.Constant, ast.BinOp, ast.JoinedStr)


def find_data_urls(text: str, *, where: str) -> dict[str, list[str]]:
    """URLs of data files by their key in a dictionary of the script ("": none). Raises LorgnetteError for no URL."""
    try:
        tree = ast.parse(text)
        # The texts that names are assigned, in modules and classes, in the order written.
        known: dict[str, str] = {}
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Assign)):
            target, value = node.targets[0], _evaluate_text(node.value, known)
            if isinstance(target, ast.Name) and value is not None:
                known[target.id] = value
        by_key: dict[str, list[str]] = {}
        for key, url in _iter_urls(tree, known):
            if url not in [known_url for urls in by_key.values() for known_url in urls]:
                by_key.setdefault(key, []).append(url)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        message = f"the loading script cannot be read: {type(error).__name__}"
        raise LorgnetteError(message, where=where, hint="take another data set") from error
    if not by_key:
        message = "the data set is only a loading script, and has no readable URL of data (scripts are not executed)"
        hint = "download its files yourself, or take a data set with CSV, JSONL or parquet files"
        raise LorgnetteError(message, where=where, hint=hint)
    return by_key


def _iter_urls(tree: ast.Module, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(key, URL) of every dictionary, then all other URLs in the script."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                text = _evaluate_text(key, known) if key is not None else ""
                for element in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
                    if _is_data_url(url := _evaluate_text(element, known)):
                        yield text or "", str(url)
    for node in ast.walk(tree):
        if isinstance(node, _TEXT_NODES) and _is_data_url(url := _evaluate_text(node, known)):
            yield "", str(url)


def _is_data_url(url: str | None) -> bool:
    return url is not None and url.startswith(("http://", "https://")) and url.lower().endswith(DATA_SUFFIXES)


def _evaluate_text(node: ast.expr | None, known: dict[str, str]) -> str | None:
    """The text of an expression, if it is known without running anything."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _evaluate_text(node.left, known), _evaluate_text(node.right, known)
        return None if left is None or right is None else left + right
    if isinstance(node, ast.JoinedStr):
        values = [value.value if isinstance(value, ast.FormattedValue) else value for value in node.values]
        parts = [_evaluate_text(value, known) for value in values]
        return None if None in parts else "".join(str(part) for part in parts)
    return None
