"""The table "Where is …" of docs/architecture.md: each file exists and defines the name."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorgnette"
ROW = re.compile(r"^\| ([^|]+) \| `([\w/]+\.py)` \| `([\w.]+)` \|$", re.MULTILINE)


def read_rows() -> list[tuple[str, str, str]]:
    """(what, file, name) of every row."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## Where is …\n", 1)[1].split("\n## ", 1)[0]
    rows = ROW.findall(section)
    assert len(rows) == section.count("\n| ") - 1, "a row that the pattern does not match"
    return rows


def defines(tree: ast.AST, name: str) -> bool:
    """Whether a module or class defines `Name` or `Name.method` in its body."""
    head, _, rest = name.partition(".")
    for node in getattr(tree, "body", []):
        names = [getattr(node, "name", None)]
        names += [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if head in names:
            return not rest or defines(node, rest)
    return False


def test_every_name_of_the_table_exists() -> None:
    rows = read_rows()
    assert len(rows) >= 24
    for what, file, name in rows:
        tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
        assert defines(tree, name), f"{what}: {file} does not define {name}"


def test_a_name_that_is_not_there_is_noticed() -> None:
    tree = ast.parse("class A:\n    def run(self): ...\nLIMIT = 1\n")
    assert defines(tree, "A.run")
    assert defines(tree, "LIMIT")
    assert not defines(tree, "A.stop")
    assert not defines(tree, "B")
