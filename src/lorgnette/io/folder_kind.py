"""What a folder is: a model, an adapter, a run or data, by the names of its files. No file is read.

Wherever a command takes one of them, a folder of another kind is called what it is, with the words to type.
"""

from itertools import islice
from pathlib import Path
from typing import Literal

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import suggest_path
from lorgnette.io.shell import format_command, quote_word

JOURNAL = "journal.jsonl"
"""In a run's folder: what a person answered, if `teach` made the run."""
FolderKind = Literal[
    "missing", "file", "empty", "model", "pickled model", "adapter", "pickled adapter", "run", "data", "other"
]
WantedKind = Literal["model", "adapter", "run"]
_KIND_WORDS: dict[FolderKind, str] = {
    "file": "a file, not a folder",
    "empty": "an empty folder",
    "model": "a model",
    "pickled model": "a model with weights in pickles (.bin) alone",
    "adapter": "an adapter",
    "pickled adapter": "an adapter with weights in a pickle (.bin) alone",
    "run": "a run",
    "data": "a folder of data",
    "other": "a folder of something else",
}
_HINTS: dict[WantedKind, str] = {
    "model": "name a folder that holds config.json and model.safetensors, OWNER/NAME on a hub, or `demo`",
    "adapter": "name a run, or its `adapter` folder",
    "run": "give a folder written by `lorgnette train`, such as runs/coco",
}
_DATA_SUFFIXES = frozenset({
    ".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".parquet", ".tar", ".zip", ".png", ".jpg", ".jpeg", ".webp", ".gif",
    ".bmp", ".tif", ".tiff", ".heic",
})  # fmt: skip
_MAX_LISTED = 200
"""Entries looked at in a folder that has none of the known names; a folder of images may have millions."""


def is_data_file(path: Path) -> bool:
    """Whether a name is that of a data file or an image; the file need not exist."""
    return path.suffix.lower() in _DATA_SUFFIXES


def find_folder_kind(path: Path) -> FolderKind:
    """The kind of what is at `path`."""
    if not path.is_dir():
        return "file" if path.exists() else "missing"

    def has(*patterns: str) -> bool:
        return any(next(path.glob(pattern), None) is not None for pattern in patterns)

    parts = ("log.jsonl", "adapter", "checkpoints", JOURNAL)
    if (has("config.yaml") and has("manifest.json", *parts)) or (has("manifest.json") and has(*parts)):
        return "run"
    is_model = has("model*.safetensors*") or (has("config.json") and not has("adapter_config.json"))
    if is_model:
        return "pickled model" if has("*.bin") and not has("*.safetensors") else "model"
    if has("adapter_model.safetensors", "adapter_model.bin", "adapter_config.json", "lorgnette.json"):
        return "pickled adapter" if has("adapter_model.bin") and not has("adapter_model.safetensors") else "adapter"
    entries = list(islice(path.iterdir(), _MAX_LISTED))
    if not entries:
        return "empty"
    return "data" if any(map(is_data_file, entries)) else "other"


def is_taught(run: Path) -> bool:
    """Whether a run is one of `teach`."""
    return (run / JOURNAL).is_file()


def format_resume_command(run: Path) -> str:
    """The command that goes on with a run, as it is typed."""
    return format_command("teach", "--run", run) if is_taught(run) else format_command("train", "--resume", run)


def explain_folder(path: Path, wanted: WantedKind, lacks: str | None = None) -> LorgnetteError:
    """The error for a folder that is not what is wanted: what it is, and what to type.

    lacks: the file that a folder of the wanted kind does not have. Such a folder is broken; any other is an error in
    the command.
    """
    kind = find_folder_kind(path)
    if kind == "missing":
        return UsageError(f"no such {wanted}", where=str(path), hint=suggest_path(path, _HINTS[wanted]))
    if kind == wanted:
        missing = f"{lacks or 'a file'} is missing"
        return LorgnetteError(missing, where=str(path), hint=f"copy the {wanted}'s folder again, whole")
    if kind == f"pickled {wanted}":
        return UsageError(_KIND_WORDS[kind], where=str(path), hint=_explain_pickles(path, kind))
    message = f"{_KIND_WORDS[kind]}, not {'an' if wanted == 'adapter' else 'a'} {wanted}"
    if kind == "file":
        message = _KIND_WORDS[kind]
    return UsageError(message, where=str(path), hint=_find_hint(path, kind, wanted))


def _find_hint(path: Path, kind: FolderKind, wanted: WantedKind) -> str:
    """What to type instead."""
    quoted = quote_word(path)
    if inside := _find_inside(path, wanted):
        return f"did you mean {inside}?"
    if wanted == "model" and kind in ("adapter", "run"):
        merge = f"; as one model: lorgnette merge {quoted} NEW_FOLDER"
        return f"answer with it: lorgnette predict IMAGE --adapter {quoted}{merge}"
    if wanted == "adapter" and kind == "model":
        return f"answer with it: lorgnette predict IMAGE --model {quoted}"
    if wanted == "adapter" and kind == "run":
        return f"it has no adapter yet: {format_resume_command(path)}"
    return f"data comes as data={quoted}; {_HINTS[wanted]}" if kind == "data" else _HINTS[wanted]


def _find_inside(path: Path, wanted: WantedKind) -> Path | None:
    """A folder of the wanted kind just below `path` or around it: a run of a folder of runs, a snapshot of a hub's
    cache, the run of an adapter."""
    if not path.is_dir():
        return None
    kinds = ("adapter", "run") if wanted == "adapter" else (wanted,)
    below = sorted(child for child in islice(path.iterdir(), _MAX_LISTED) if child.is_dir())
    around = [parent for parent in path.resolve().parents[:2] if wanted == "run"]
    snapshots = sorted(path.glob("snapshots/*"))
    return next((folder for folder in (*below, *snapshots, *around) if find_folder_kind(folder) in kinds), None)


def _explain_pickles(path: Path, kind: FolderKind) -> str:
    """How to turn pickles into safetensors. lorgnette reads none, because loading a pickle can run any code."""
    target = f"{path}-safetensors"
    if kind == "pickled adapter":
        call = f"PeftModel.from_pretrained(BASE, {str(path)!r}).save_pretrained({target!r})"
    else:
        call = f"AutoModelForImageTextToText.from_pretrained({str(path)!r}).save_pretrained({target!r})"
    return f"a pickle can run code when it is loaded; if you trust it, save it as safetensors in Python: {call}"
