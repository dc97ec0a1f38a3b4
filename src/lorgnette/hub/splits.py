"""Which files of a data set hold which split: as its card declares it, else as the files' names say.

Knows nothing about what is in the files. Spoken of as the hubs do: a data set has configs, a config has splits.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Repository, RepositoryFile

Layout = dict[str, dict[str, list[RepositoryFile]]]
FORMATS = ((".parquet",), (".tar",), (".csv", ".tsv", ".jsonl", ".csv.zip", ".tsv.zip", ".jsonl.zip"), (".json",))
_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")
_NOT_DATA = {"dataset_infos.json", "dataset_info.json", "configuration.json", "config.json", "package.json"}


def detect_layout(repository: Repository) -> Layout:
    """config → split → files; empty where the repository holds no data in a format that can be read."""
    declared = _read_card(repository)
    return declared or _group_by_name(repository)


def select_split(layout: Layout, words: Sequence[str], *, where: str) -> tuple[str, str, list[RepositoryFile]]:
    """The config and split that `asked` names (config, split, both or neither). In doubt the error lists them."""
    config, split = _parse_words(layout, words, where)
    if config is None:
        config = "default" if "default" in layout else next(iter(layout)) if len(layout) == 1 else None
    if config is None:
        raise LorgnetteError(
            f"there are several configs: {', '.join(sorted(layout)[:30])}", where=where, hint=f"write {where}:CONFIG"
        )
    if config not in layout:
        raise LorgnetteError(f"there is no config {config!r}", where=where, hint=f"there are {', '.join(layout)}")
    splits = layout[config]
    split = split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if split is None or (own := _match_split(splits, split)) is None:
        said = f"there is no split {split or 'train'!r}; there are {', '.join(splits)}"
        raise LorgnetteError(said, where=where, hint=f"write {where}:{next(iter(splits))}")
    return config, own, splits[own]


def _parse_words(found: Layout, asked: Sequence[str], where: str) -> tuple[str | None, str | None]:
    if len(asked) > 2:
        raise LorgnetteError("too many colons", where=where, hint="write NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    if len(asked) == 2:
        return asked[0], asked[1]
    if not asked:
        return None, None
    return (asked[0], None) if asked[0] in found else (None, asked[0])


def normalize_split(split: str) -> str:
    """val, valid and dev are validation."""
    return _WORDS.get(split.lower(), split)


def _match_split(splits: Mapping[str, Any], split: str) -> str | None:
    if split in splits:
        return split
    return next((own for own in splits if normalize_split(own) == normalize_split(split)), None)


def _read_card(repository: Repository) -> Layout:
    found: Layout = {}
    configs = repository.card.get("configs")
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, Mapping) and config.get("data_files"):
            splits = found.setdefault(str(config.get("config_name", "default")), {})
            folder = str(config.get("data_dir") or "")
            for split, patterns in _parse_patterns(config["data_files"]):
                files = [file for file in repository.files if _matches_pattern(file.path, patterns, folder)]
                if files and any(file.path.lower().endswith(sum(FORMATS, ())) for file in files):
                    splits.setdefault(split, []).extend(files)
    return {config: splits for config, splits in found.items() if splits}


def _parse_patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """A card's data_files in all the forms it may have: a path, a list of them, {split: path}, [{split, path}]."""
    if isinstance(data_files, str):
        return [("train", [data_files])]
    if isinstance(data_files, Mapping):
        return [(str(split), _as_list(paths)) for split, paths in data_files.items()]
    if not isinstance(data_files, list):
        return []
    plain = [each for each in data_files if isinstance(each, str)]
    named = [
        (str(each.get("split", "train")), _as_list(each.get("path")))
        for each in data_files
        if isinstance(each, Mapping)
    ]
    return ([("train", plain)] if plain else []) + named


def _as_list(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else [str(path) for path in paths or []]


def _matches_pattern(path: str, patterns: Sequence[str], folder: str) -> bool:
    prefix = folder.strip("/") + "/" if folder.strip("/") else ""
    return any(
        fnmatch.fnmatchcase(path, prefix + pattern.removeprefix("./").replace("**", "*")) for pattern in patterns
    )


def _group_by_name(repository: Repository) -> Layout:
    for suffixes in FORMATS:
        files = [file for file in repository.find_by_suffix(suffixes) if file.path.rsplit("/", 1)[-1] not in _NOT_DATA]
        if not files:
            continue
        found: Layout = {}
        tops = {_get_config_folder(file.path) for file in files}
        for file in sorted(files, key=lambda each: each.path):
            config = _get_config_folder(file.path) if len(tops) > 1 else "default"
            found.setdefault(config or "default", {}).setdefault(guess_split(file.path), []).append(file)
        return found
    return {}


def _get_config_folder(path: str) -> str:
    """The folder that may be a config: the first one, unless it only says `data` or names a split."""
    first = path.partition("/")[0] if "/" in path else ""
    return "" if first.lower() in ("data", "parquet") or _WORD.fullmatch(first.lower()) else first


def guess_split(path: str) -> str:
    """The split that a file's name, or else its folder, speaks of; train where none does."""
    name = path.rsplit("/", 1)[-1].lower()
    word = _WORD.search(name) or _WORD.search(path.lower())
    return _WORDS[word[1]] if word else "train"
