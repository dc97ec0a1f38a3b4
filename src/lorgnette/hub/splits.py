"""Which files of a data set hold which split: as its card declares, else by the names of the files.

As on the hubs, a data set has configs and a config has splits. Knows nothing about what is in the files.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Repository, RepositoryFile

Layout = dict[str, dict[str, list[RepositoryFile]]]
"""config → split → files."""
FORMATS = (
    (".parquet",),
    (".tar",),
    (".csv", ".tsv", ".jsonl", ".csv.zip", ".tsv.zip", ".jsonl.zip"),
    (".json",),
    (".zip",),
)
_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")
_NOT_DATA = {"dataset_infos.json", "dataset_info.json", "configuration.json", "config.json", "package.json"}


def detect_layout(repository: Repository) -> Layout:
    """Empty if the repository has no data in a known format."""
    return _read_card(repository) or _group_by_name(repository)


def select_split(layout: Layout, words: Sequence[str], *, where: str) -> tuple[str, str, list[RepositoryFile]]:
    """(config, split, files) that `words` name: a config, a split, both or neither.

    Raises LorgnetteError with the names there are if the choice is not clear.
    """
    config, split = _parse_words(layout, words, where)
    if config is None:
        config = "default" if "default" in layout else next(iter(layout)) if len(layout) == 1 else None
    if config is None:
        raise LorgnetteError(
            f"there are several configs: {', '.join(sorted(layout)[:30])}", where=where, hint=f"write {where}:CONFIG"
        )
    if config not in layout:
        raise LorgnetteError(f"there is no config {config!r}", where=where, hint=f"use one of {', '.join(layout)}")
    splits = layout[config]
    split = split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if split is None or (name := _match_split(splits, split)) is None:
        raise LorgnetteError(
            f"there is no split {split or 'train'!r}; the splits are {', '.join(splits)}",
            where=where,
            hint=f"write {where}:{next(iter(splits))}",
        )
    return config, name, splits[name]


def _parse_words(layout: Layout, words: Sequence[str], where: str) -> tuple[str | None, str | None]:
    """(config, split)"""
    if len(words) > 2:
        raise LorgnetteError("too many colons", where=where, hint="write NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    if len(words) == 2:
        return words[0], words[1]
    if not words:
        return None, None
    return (words[0], None) if words[0] in layout else (None, words[0])


def normalize_split(split: str) -> str:
    """val, valid and dev → validation."""
    return _WORDS.get(split.lower(), split)


def _match_split(splits: Mapping[str, Any], split: str) -> str | None:
    if split in splits:
        return split
    return next((name for name in splits if normalize_split(name) == normalize_split(split)), None)


def _read_card(repository: Repository) -> Layout:
    layout: Layout = {}
    configs = repository.card.get("configs")
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, Mapping) and config.get("data_files"):
            splits = layout.setdefault(str(config.get("config_name", "default")), {})
            folder = str(config.get("data_dir") or "")
            for split, patterns in _parse_patterns(config["data_files"]):
                data_files = repository.find_by_suffix(sum(FORMATS, ()))
                files = [file for file in data_files if _matches_pattern(file.path, patterns, folder)]
                if files:
                    splits.setdefault(split, []).extend(files)
    return {config: splits for config, splits in layout.items() if splits}


def _parse_patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """A card's data_files in all its forms: a path, a list of them, {split: path}, [{split, path}]."""
    if isinstance(data_files, str):
        return [("train", [data_files])]
    if isinstance(data_files, Mapping):
        return [(str(split), _as_list(paths)) for split, paths in data_files.items()]
    if not isinstance(data_files, list):
        return []
    paths = [item for item in data_files if isinstance(item, str)]
    named = [
        (str(item.get("split", "train")), _as_list(item.get("path")))
        for item in data_files
        if isinstance(item, Mapping)
    ]
    return ([("train", paths)] if paths else []) + named


def _as_list(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else [str(path) for path in paths or []]


def _matches_pattern(path: str, patterns: Sequence[str], folder: str) -> bool:
    prefix = folder.strip("/") + "/" if folder.strip("/") else ""
    return any(
        fnmatch.fnmatchcase(path, prefix + pattern.removeprefix("./").replace("**", "*")) for pattern in patterns
    )


def _group_by_name(repository: Repository) -> Layout:
    has_script = bool(repository.find_by_suffix([".py"]))
    for suffixes in FORMATS[:-1] if has_script else FORMATS:  # beside a script a zip has only its images
        files = [file for file in repository.find_by_suffix(suffixes) if file.path.rsplit("/", 1)[-1] not in _NOT_DATA]
        if not files:
            continue
        layout: Layout = {}
        folders = {_get_config_folder(file.path) for file in files}
        for file in sorted(files, key=lambda each: each.path):
            config = _get_config_folder(file.path) if len(folders) > 1 else "default"
            layout.setdefault(config or "default", {}).setdefault(guess_split(file.path), []).append(file)
        return layout
    return {}


def _get_config_folder(path: str) -> str:
    """The first folder, which may be a config; "" if it is `data` or names a split."""
    first = path.partition("/")[0] if "/" in path else ""
    return "" if first.lower() in ("data", "parquet") or _WORD.fullmatch(first.lower()) else first


def guess_split(path: str) -> str:
    """The split in a file's name, or else in its folder's; train if neither has one."""
    name = path.rsplit("/", 1)[-1].lower()
    word = _WORD.search(name) or _WORD.search(path.lower())
    return _WORDS[word[1]] if word else "train"
