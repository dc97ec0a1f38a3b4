"""Finds, reads and copies recipes: YAML files of settings, the package's own and the user's.

The first line of a recipe is a comment with its title.
"""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.config import Settings, read_recipe
from lorgnette.errors import UsageError
from lorgnette.io.atomic import write_text
from lorgnette.io.shell import quote_word

_PACKAGE = Path(__file__).parent
# In the package when installed, at the root in a checkout.
RECIPES_DIR = next(folder for folder in (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes") if folder.is_dir())


def list_titles() -> list[tuple[str, str]]:
    """(name, title) of each of the package's recipes."""
    paths = sorted(RECIPES_DIR.glob("*.yaml"))
    return [(path.stem, path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()) for path in paths]


def find_recipe(name: str) -> Path:
    """Find a recipe by its name, or the user's own by its file. Raises UsageError with the most similar name."""
    if Path(name).suffix.lower() in (".csv", ".json", ".jsonl"):
        raise UsageError("a data file, not a recipe", where=name, hint=f"write {quote_word(f'data={name}')}")
    for path in (Path(name), RECIPES_DIR / f"{name}.yaml"):
        if path.is_file():
            return path
    similar = difflib.get_close_matches(name, [title[0] for title in list_titles()], n=1)
    hint = f"did you mean {similar[0]}?" if similar else "`lorgnette recipe list` lists all recipes"
    raise UsageError("no such recipe", where=name, hint=hint)


def load_settings(
    name: str | None = None,
    overrides: Iterable[str] = (),
    *,
    on_remark: Callable[[str], None] = lambda line: None,
    **values: Any,
) -> Settings:
    """Load a recipe by name or file; named values and then `key=value` overrides replace its settings.

    `load_settings("coco-caption", ["train.learning_rate=1e-4"], model="demo", data="captions.csv")`. Words of other
    trainers are settings too (docs/coming-from.md); on_remark gets a line for each.
    """
    tree = _load_tree(find_recipe(name)) if name else {}
    return config.load_settings(tree, overrides, values=values, where=name or "settings", on_remark=on_remark)


def _load_tree(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe and merge it into the recipe that it `inherits`. children: the recipes that inherit this one."""
    tree = read_recipe(path)
    if "inherits" not in tree:
        return tree
    parent_path = find_recipe(str(tree.pop("inherits")))
    if parent_path in (path, *children):
        raise UsageError("a recipe inherits itself", where=str(path), hint="remove the line `inherits`")
    parent = _load_tree(parent_path, (path, *children))
    sections = {
        name: {**parent[name], **tree[name]}
        for name in parent.keys() & tree.keys()
        if isinstance(parent[name], dict) and isinstance(tree[name], dict)
    }
    return {**parent, **tree, **sections}


def read_text(name: str) -> str:
    """Read a recipe's file. Raises UsageError if it is not text."""
    path = find_recipe(name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("not a recipe: the file is not text", where=str(path), hint="name a YAML file") from None


def copy_recipe(name: str, to: Path | None) -> Path:
    """Copy a recipe to `to` (default: NAME.yaml in the current folder). Raises UsageError if that file exists."""
    source = find_recipe(name)
    target = to or Path(source.name)
    if target.exists():
        raise UsageError("file exists", where=str(target), hint="name another: `lorgnette recipe copy NAME FILE`")
    write_text(target, read_text(name))
    return target
