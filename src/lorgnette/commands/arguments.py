"""The arguments that the commands share when they are called from Python: data and settings."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorgnette import config, recipes
from lorgnette.commands.settings_in_words import describe_recipe_data
from lorgnette.config import Settings
from lorgnette.data.memory_rows import is_in_memory
from lorgnette.errors import UsageError
from lorgnette.io.paths import join_sources
from lorgnette.report.console import Terminal

SettingsLike = Settings | Mapping[str, Any] | None


def build_settings(
    data: Any = None,
    *,
    recipe: str | Path | None = None,
    settings: SettingsLike = None,
    values: Mapping[str, Any] | None = None,
    terminal: Terminal | None = None,
) -> Settings:
    """The settings of a call: those of the recipe, then `settings`, then `values`, then the data; later ones win.

    data: the name of a data file or several; None: as the settings say. It may be Settings, which then stand for all.
    settings: Settings, or a mapping with full names (`{"train.learning_rate": 1e-4}`) or sections. values: as keywords.
    terminal: gets a line for each word of another trainer. Raises UsageError for an unknown name or value.
    """

    def say(line: str) -> None:
        (terminal or Terminal()).print(f"setting    {line}")

    if isinstance(data, Settings):
        if settings is not None:
            raise UsageError("two Settings", where="settings=", hint="give them once")
        data, settings = None, data
    if isinstance(settings, Settings):
        if recipe is not None:
            hint = "leave it out, or load it with them: lorgnette.recipes.load_settings"
            raise UsageError("a recipe and whole Settings", where=f"recipe={recipe}", hint=hint)
        chosen = settings
    else:
        name = None if recipe is None else os.fspath(recipe)
        chosen = recipes.load_settings(name, on_remark=say, **_convert_paths(settings or {}))
    values = _convert_paths({**(values or {}), **({} if data is None else {"data.path": data})})
    if values:
        tree = chosen.model_dump(exclude_unset=True)
        chosen = config.load_settings(tree, values=values, on_remark=say, sources=chosen.sources)
    if remark := describe_recipe_data(chosen):
        (terminal or Terminal()).warn(f"recipe     {remark}")
    return chosen


def _convert_paths(values: Any) -> dict[str, Any]:
    """The values with paths as text. Raises UsageError for what is no mapping, and for rows in memory where a file is
    named."""
    if not isinstance(values, Mapping):
        where, hint = f"settings is a {type(values).__name__}", 'give a dict, such as {"train.batch_size": 4}'
        raise UsageError("no settings", where=where, hint=hint)
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name.rpartition(".")[2] in ("path", "test"):
            converted[name] = None if value is None else as_source(value)
        elif isinstance(value, Mapping):
            converted[name] = _convert_paths(value)
        else:
            converted[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return converted


def as_source(data: Any) -> Path:
    """The data file that is meant, or a list of several. Raises UsageError for rows in memory."""
    if is_list_of_paths(data):
        return join_sources(Path(path) for path in data)
    if is_in_memory(data):
        hint = "write them first, and name the file: lorgnette.write_rows(rows, FOLDER)"
        raise UsageError("rows in memory, not a data file", where=f"data is a {type(data).__name__}", hint=hint)
    return Path(data)


def as_name(value: Any) -> str:
    """The name of a run, an adapter, a model or a file. Raises UsageError for anything else."""
    if is_in_memory(value):
        hint = "give a run, or a name or path as text"
        raise UsageError("no name of a run or a model", where=f"a {type(value).__name__}", hint=hint)
    return str(os.fspath(value))


def require_data(settings: Settings) -> Path:
    """The data file of the settings. Raises UsageError if there is none."""
    if settings.data.path is None:
        raise UsageError("no data", where="data.path", hint="name a file: data=captions.csv")
    return settings.data.path


def is_list_of_paths(data: Any) -> bool:
    return isinstance(data, list | tuple) and bool(data) and all(isinstance(item, str | os.PathLike) for item in data)


def is_rows(data: Any) -> bool:
    """Whether it is rows in memory: not the name of a file, not a list of names, not Settings."""
    return data is not None and not isinstance(data, Settings) and is_in_memory(data) and not is_list_of_paths(data)
