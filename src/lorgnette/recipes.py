"""Recipes: YAML files of settings. The first line of each is a comment with its purpose."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.config import Settings, read_recipe
from lorgnette.errors import UsageError
from lorgnette.io.atomic import write_text

_PACKAGE = Path(__file__).parent
# In the package when installed; at the root of a checkout otherwise.
RECIPES_DIR = next(folder for folder in (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes") if folder.is_dir())


def list_titles() -> list[tuple[str, str]]:
    """(name, first line) of every recipe that comes with lorgnette."""
    return [(path.stem, _read_title(path)) for path in sorted(RECIPES_DIR.glob("*.yaml"))]


def find_recipe(name: str) -> Path:
    """Find a recipe by name or by file. Raises UsageError with the nearest name."""
    if Path(name).suffix.lower() in (".csv", ".json", ".jsonl"):
        raise UsageError("this is a data file, not a recipe", where=name, hint=f"write data={name}")
    for path in (Path(name), RECIPES_DIR / f"{name}.yaml"):
        if path.is_file():
            return path
    nearest = difflib.get_close_matches(name, [title for title, _ in list_titles()], n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "`lorgnette recipe list` lists the recipes"
    raise UsageError("no such recipe", where=name, hint=hint)


def load_settings(name: str | None = None, overrides: Iterable[str] = (), **values: Any) -> Settings:
    """Load a recipe (name or file), then override it by named values and by `key=value` words.

    `load_settings("coco-caption", ["train.learning_rate=1e-4"], model="demo", data="captions.csv")`
    """
    tree = _load_tree(find_recipe(name)) if name else {}
    return config.load_settings(tree, overrides, values=values, where=name or "settings")


def _load_tree(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Merge a recipe's tree into the tree of the recipe that it `inherits`."""
    tree = read_recipe(path)
    if "inherits" not in tree:
        return tree
    parent = find_recipe(str(tree.pop("inherits")))
    if parent in (path, *children):
        raise UsageError("the recipe inherits itself", where=str(path), hint="remove the line `inherits`")
    base = _load_tree(parent, (path, *children))
    sections = {
        name: {**base[name], **tree[name]}
        for name in base.keys() & tree.keys()
        if isinstance(base[name], dict) and isinstance(tree[name], dict)
    }
    return {**base, **tree, **sections}


def read_text(name: str) -> str:
    """Read a recipe's file. Raises UsageError if it is not text."""
    path = find_recipe(name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("not a recipe: the file is not text", where=str(path), hint="name a YAML file") from None


def copy_recipe(name: str, to: Path | None) -> Path:
    """Copy a recipe to `to` (default: NAME.yaml in the working folder). Raises UsageError if the file exists."""
    source = find_recipe(name)
    target = to or Path(source.name)
    if target.exists():
        raise UsageError("the file exists", where=str(target), hint="name another: `lorgnette recipe copy NAME FILE`")
    write_text(target, read_text(name))
    return target


def _read_title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
