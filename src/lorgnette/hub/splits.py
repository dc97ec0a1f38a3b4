"""Which files of a data set hold which split: as its card declares, else by the names of the files.

As on the hubs, a data set has configs and a config has splits. Knows nothing about what is in the files.
"""

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Repository, RepositoryFile
from lorgnette.io.image_signature import IMAGE_SUFFIXES

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
_NOT_DATA = re.compile(
    r"(dataset_infos?|configuration|config|package)\.json|(instances|person_keypoints|stuff|panoptic|image_info)_.*\.json"
)
"""Descriptions of repositories, and COCO's annotations other than captions."""


def detect_layout(repository: Repository) -> Layout:
    """Empty if the repository has no data in a known format."""
    return _read_card(repository) or _group_by_name(repository)


def select_split(
    layout: Layout, words: Sequence[str], *, where: str
) -> tuple[str, str, str | None, list[RepositoryFile]]:
    """(config, split, the split as written, files) that `words` name: a config, a split, both or neither.

    The split is "" if only one .json is there and its name has another split: the file itself may have several. Raises
    LorgnetteError with the names there are if the choice is not clear.
    """
    if len(words) > 2:
        raise LorgnetteError("too many colons", where=where, hint="write NAME, NAME:SPLIT or NAME:CONFIG:SPLIT")
    has_config = len(words) == 2 or (len(words) == 1 and words[0] in layout)
    config = words[0] if has_config else "default" if "default" in layout or len(layout) > 1 else next(iter(layout))
    word = words[-1] if len(words) > has_config else None
    if config not in layout and not has_config:
        configs = f"there are several configs: {', '.join(sorted(layout)[:30])}"
        raise LorgnetteError(configs, where=where, hint=f"write {where}:CONFIG")
    if config not in layout:
        raise LorgnetteError(f"there is no config {config!r}", where=where, hint=f"use one of {', '.join(layout)}")
    splits = layout[config]
    wanted = word or ("train" if "train" in splits or len(splits) > 1 else next(iter(splits)))
    if split := match_split(splits, wanted):
        return config, split, word, splits[split]
    files = [file for files in splits.values() for file in files]
    if len(files) == 1 and files[0].path.lower().endswith(".json"):
        return config, "", word, files
    message = f"there is no split {wanted!r}; the splits are {', '.join(splits)}"
    raise LorgnetteError(message, where=where, hint=f"write {where}:{next(iter(splits))}")


def match_split(splits: Collection[str], split: str) -> str | None:
    """The split of this name, or of another name for the same part."""
    same = [name for name in splits if normalize_split(name) == normalize_split(split)]
    return split if split in splits else next(iter(same), None)


def normalize_split(split: str) -> str:
    """val, valid and dev → validation."""
    return _WORDS.get(split.lower(), split)


def _read_card(repository: Repository) -> Layout:
    layout: Layout = {}
    data_files = repository.find_by_suffix(sum(FORMATS, ()))
    configs = repository.card.get("configs")
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, Mapping) and config.get("data_files"):
            folder = str(config.get("data_dir") or "").strip("/")
            for split, patterns in _parse_patterns(config["data_files"]):
                whole = [f"{folder}/{pattern}".lstrip("/").replace("**", "*") for pattern in patterns]
                files = [file for file in data_files if any(fnmatch.fnmatchcase(file.path, p) for p in whole)]
                if files:
                    splits = layout.setdefault(str(config.get("config_name", "default")), {})
                    known = splits.setdefault(split, [])
                    known.extend(file for file in files if file not in known)
    return layout


def _parse_patterns(data_files: Any) -> Iterator[tuple[str, list[str]]]:
    """A card's data_files in all its forms: a path, a list of them, {split: path}, [{split, path}]."""
    if isinstance(data_files, Mapping):
        data_files = [{"split": split, "path": paths} for split, paths in data_files.items()]
    for item in [data_files] if isinstance(data_files, str) else data_files if isinstance(data_files, list) else []:
        split, paths = (item.get("split"), item.get("path")) if isinstance(item, Mapping) else (None, item)
        paths = [paths] if isinstance(paths, str) else paths or []
        yield str(split or "train"), [str(path).removeprefix("./") for path in paths]


def _group_by_name(repository: Repository) -> Layout:
    *tables, zips = (repository.find_by_suffix(suffixes) for suffixes in FORMATS)
    if repository.find_by_suffix([".py"]):  # beside a script a zip has only its images
        zips = []
    for candidate in (*tables, _find_pairs(repository), zips):
        files = [file for file in candidate if not _NOT_DATA.fullmatch(file.path.rpartition("/")[2])]
        has_configs = len({_get_config_folder(file.path) for file in files}) > 1
        layout: Layout = {}
        for file in sorted(files, key=lambda each: each.path):
            config = _get_config_folder(file.path) if has_configs else ""
            layout.setdefault(config or "default", {}).setdefault(guess_split(file.path), []).append(file)
        if layout:
            return layout
    return {}


def _find_pairs(repository: Repository) -> list[RepositoryFile]:
    """The folders that have images with a .txt of the same name."""
    stems = {file.path.rpartition(".")[0] for file in repository.find_by_suffix([".txt"])}
    images = repository.find_by_suffix(list(IMAGE_SUFFIXES))
    folders = {"".join(image.path.rpartition("/")[:2]) for image in images if image.path.rpartition(".")[0] in stems}
    return [RepositoryFile(folder, None, None, "") for folder in folders]


def _get_config_folder(path: str) -> str:
    """The first folder, which may be a config; "" if it is `data` or names a split."""
    first = path.partition("/")[0] if "/" in path else ""
    return "" if first.lower() in ("data", "parquet") or _WORD.fullmatch(first.lower()) else first


def guess_split(path: str) -> str:
    """The split in a file's name, or else in its folder's; train if neither has one."""
    name = path.rsplit("/", 1)[-1].lower()
    word = _WORD.search(name) or _WORD.search(path.lower())
    return _WORDS[word[1]] if word else "train"
