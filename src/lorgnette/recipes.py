"""The recipes that come with lorgnette, and a person's own: a YAML file of settings, its first line a comment that
says what it is for."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.config import Settings, read_recipe
from lorgnette.errors import UsageError
from lorgnette.io.atomic import write_text

_PACKAGE = Path(__file__).parent
# Beside the package when installed, at the root of a checkout otherwise.
RECIPES_DIR = next(folder for folder in (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes") if folder.is_dir())


def list_titles() -> list[tuple[str, str]]:
    """(name, first line) of every recipe on the shelf."""
    return [(path.stem, _read_title(path)) for path in sorted(RECIPES_DIR.glob("*.yaml"))]


def find_recipe(name: str) -> Path:
    """A recipe by name, or a file of one's own. Raises UsageError with the nearest name."""
    if Path(name).suffix.lower() in (".csv", ".json", ".jsonl"):
        raise UsageError("a data file, not a recipe", where=name, hint=f"write data={name}")
    for path in (Path(name), RECIPES_DIR / f"{name}.yaml"):
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, [known for known, _ in list_titles()], n=1)
    remedy = f"did you mean {near[0]}?" if near else "`lorgnette recipe list` shows those there are"
    raise UsageError("no such recipe", where=name, hint=remedy)


def load_settings(name: str | None = None, overrides: Iterable[str] = (), **values: Any) -> Settings:
    """The settings of a recipe (its name or file) with named values and `key=value` words laid over it.

    `settings("coco-caption", ["train.learning_rate=1e-4"], model="demo", data="captions.csv")`
    """
    tree = _load_tree(find_recipe(name)) if name else {}
    return config.load_settings(tree, overrides, values=values, where=name or "settings")


def _load_tree(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe's tree laid over that of the recipe it `inherits`."""
    tree = read_recipe(path)
    if "inherits" not in tree:
        return tree
    parent = find_recipe(str(tree.pop("inherits")))
    if parent in (path, *children):
        raise UsageError("a recipe inherits itself", where=str(path), hint="remove the line `inherits`")
    under = _load_tree(parent, (path, *children))
    sections = {
        name: {**under[name], **tree[name]} for name in under.keys() & tree.keys() if _are_both_maps(under, tree, name)
    }
    return {**under, **tree, **sections}


def _are_both_maps(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    return isinstance(one[name], dict) and isinstance(other[name], dict)


def read_text(name: str) -> str:
    """A recipe as it stands in its file. Raises UsageError where it is no text."""
    path = find_recipe(name)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError("not a recipe: its file is no text", where=str(path), hint="name a YAML file") from None


def copy_recipe(name: str, to: Path | None) -> Path:
    """Copy a recipe to `to` (default: NAME.yaml here). Raises UsageError where a file stands there."""
    source = find_recipe(name)
    target = to or Path(source.name)
    if target.exists():
        raise UsageError("file exists", where=str(target), hint="name another: `lorgnette recipe copy NAME FILE`")
    write_text(target, read_text(name))
    return target


def _read_title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
