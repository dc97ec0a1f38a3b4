"""Which files of a data set hold which split: as its card declares it, else as the files' names say.

Knows nothing about what is in the files. Spoken of as the hubs do: a data set has configs, a config has splits.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Listed, Repository

Layout = dict[str, dict[str, list[Listed]]]
FORMATS = ((".parquet",), (".tar",), (".csv", ".tsv", ".jsonl", ".csv.zip", ".tsv.zip", ".jsonl.zip"), (".json",))
_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip
_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")
_NO_DATA = {"dataset_infos.json", "dataset_info.json", "configuration.json", "config.json", "package.json"}


def layout(repository: Repository) -> Layout:
    """config → split → files; empty where the repository holds no data in a format that can be read."""
    declared = _declared(repository)
    return declared or _by_name(repository)


def pick(found: Layout, asked: Sequence[str], *, where: str) -> tuple[str, str, list[Listed]]:
    """The config and split that `asked` names (config, split, both or neither). In doubt the error lists them."""
    config, split = _read(found, asked, where)
    if config is None:
        config = "default" if "default" in found else next(iter(found)) if len(found) == 1 else None
    if config is None:
        raise LorgnetteError(
            f"there are several configs: {', '.join(sorted(found)[:30])}", where=where, remedy=f"write {where}:CONFIG"
        )
    if config not in found:
        raise LorgnetteError(f"there is no config {config!r}", where=where, remedy=f"there are {', '.join(found)}")
    splits = found[config]
    split = split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None)
    if split is None or (own := _match(splits, split)) is None:
        said = f"there is no split {split or 'train'!r}; there are {', '.join(splits)}"
        raise LorgnetteError(said, where=where, remedy=f"write {where}:{next(iter(splits))}")
    return config, own, splits[own]


def _read(found: Layout, asked: Sequence[str], where: str) -> tuple[str | None, str | None]:
    if len(asked) > 2:
        raise LorgnetteError("too many colons", where=where, remedy="write NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    if len(asked) == 2:
        return asked[0], asked[1]
    if not asked:
        return None, None
    return (asked[0], None) if asked[0] in found else (None, asked[0])


def canonical(split: str) -> str:
    """val, valid and dev are validation."""
    return _WORDS.get(split.lower(), split)


def _match(splits: Mapping[str, Any], split: str) -> str | None:
    if split in splits:
        return split
    return next((own for own in splits if canonical(own) == canonical(split)), None)


def _declared(repository: Repository) -> Layout:
    found: Layout = {}
    configs = repository.card.get("configs")
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, Mapping) and config.get("data_files"):
            splits = found.setdefault(str(config.get("config_name", "default")), {})
            folder = str(config.get("data_dir") or "")
            for split, patterns in _patterns(config["data_files"]):
                files = [file for file in repository.files if _fits(file.path, patterns, folder)]
                if files and any(file.path.lower().endswith(sum(FORMATS, ())) for file in files):
                    splits.setdefault(split, []).extend(files)
    return {config: splits for config, splits in found.items() if splits}


def _patterns(data_files: Any) -> list[tuple[str, list[str]]]:
    """A card's data_files in all the forms it may have: a path, a list of them, {split: path}, [{split, path}]."""
    if isinstance(data_files, str):
        return [("train", [data_files])]
    if isinstance(data_files, Mapping):
        return [(str(split), _list(paths)) for split, paths in data_files.items()]
    if not isinstance(data_files, list):
        return []
    plain = [each for each in data_files if isinstance(each, str)]
    named = [
        (str(each.get("split", "train")), _list(each.get("path"))) for each in data_files if isinstance(each, Mapping)
    ]
    return ([("train", plain)] if plain else []) + named


def _list(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else [str(path) for path in paths or []]


def _fits(path: str, patterns: Sequence[str], folder: str) -> bool:
    prefix = folder.strip("/") + "/" if folder.strip("/") else ""
    return any(
        fnmatch.fnmatchcase(path, prefix + pattern.removeprefix("./").replace("**", "*")) for pattern in patterns
    )


def _by_name(repository: Repository) -> Layout:
    for suffixes in FORMATS:
        files = [file for file in repository.named(suffixes) if file.path.rsplit("/", 1)[-1] not in _NO_DATA]
        if not files:
            continue
        found: Layout = {}
        tops = {_top(file.path) for file in files}
        for file in sorted(files, key=lambda each: each.path):
            config = _top(file.path) if len(tops) > 1 else "default"
            found.setdefault(config or "default", {}).setdefault(by_name(file.path), []).append(file)
        return found
    return {}


def _top(path: str) -> str:
    """The folder that may be a config: the first one, unless it only says `data` or names a split."""
    first = path.partition("/")[0] if "/" in path else ""
    return "" if first.lower() in ("data", "parquet") or _WORD.fullmatch(first.lower()) else first


def by_name(path: str) -> str:
    """The split that a file's name, or else its folder, speaks of; train where none does."""
    name = path.rsplit("/", 1)[-1].lower()
    word = _WORD.search(name) or _WORD.search(path.lower())
    return _WORDS[word[1]] if word else "train"
