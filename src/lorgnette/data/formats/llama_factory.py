"""LLaMA-Factory's dataset_info.json ↔ its entries: which file, in which format, under which column names.

    {"pets": {"file_name": "pets.json", "formatting": "sharegpt",
              "columns": {"messages": "messages", "images": "images"},
              "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}

The keys of an entry's records are renamed, then read as messages (sharegpt) or as instruction and output (alpaca).
Image paths are relative to this file's folder, as in LLaMA-Factory.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import json_records, messages, queries
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, sample_rows
from lorgnette.errors import LorgnetteError, UsageError

_REMOTE_KEYS = {"hf_hub_url": "hf:", "ms_hub_url": "modelscope:"}
_REMOTE_KEYS |= dict.fromkeys(("om_hub_url", "script_url", "cloud_file_name"), "")
_ALPACA_COLUMNS = {"instruction": "prompt", "input": "query", "output": "response"}
"""Our key, which is LLaMA-Factory's default column → its name for the column."""
_TAGS = {"user": ("user_tag", "human"), "assistant": ("assistant_tag", "gpt"), "system": ("system_tag", "system")}
_REFUSED_COLUMNS = ("videos", "audios", "chosen", "rejected", "kto_tag", "tools")


def is_dataset_info(value: Mapping[str, Any]) -> bool:
    keys = {"file_name", *_REMOTE_KEYS}
    return bool(value) and all(isinstance(entry, dict) and not keys.isdisjoint(entry) for entry in value.values())


def read_dataset_info(value: Mapping[str, Any], path: Path, options: ReadOptions) -> Iterator[Row]:
    """The rows of the entry that options.name names, or of the only entry."""
    if options.name is None and len(value) > 1:
        raise UsageError("the file has several data sets", where=str(path), hint=f"name one: {_list_names(value)}")
    name = options.name or next(iter(value))
    if name not in value:
        raise UsageError(f"no data set {name!r}", where=str(path), hint=f"name one of {_list_names(value)}")
    entry = value[name]
    rows = _read_entry(entry, name, path, options)
    num_samples = entry.get("num_samples")
    return iter(sample_rows(rows, num_samples, options.seed)) if isinstance(num_samples, int) else rows


def _list_names(value: Mapping[str, Any]) -> str:
    return ", ".join(list(value)[:20]) + (f" … ({len(value)})" if len(value) > 20 else "")


def _read_entry(entry: Mapping[str, Any], name: str, path: Path, options: ReadOptions) -> Iterator[Row]:
    where = f"{path}, {name}"
    file = entry.get("file_name")
    if not isinstance(file, str):
        key = next(key for key in (*_REMOTE_KEYS, "file_name") if key in entry)
        hint = f"give the source as {_REMOTE_KEYS[key]}{entry[key]}" if _REMOTE_KEYS.get(key) else "download it first"
        raise LorgnetteError(f"the data set is not a local file ({key}: {entry[key]})", where=where, hint=hint)
    if entry.get("ranking"):
        raise LorgnetteError("the data set ranks answers (ranking)", where=where, hint="use one with a single answer")
    source = path.parent / file
    if source.suffix.lower() not in (".json", ".jsonl") or not source.is_file():
        fact = "is not a .json or .jsonl" if source.is_file() else "does not exist"
        raise LorgnetteError(f"file_name {file!r} {fact}", where=where, hint="correct the entry, or convert the file")
    counter = RowCounter(source, options, path.parent)
    return json_records.read_records(source, counter, _create_reader(entry, where))


def _create_reader(entry: Mapping[str, Any], where: str) -> json_records.RecordReader:
    columns, tags = (entry.get(key) or {} for key in ("columns", "tags"))
    formatting = entry.get("formatting", "alpaca")
    if not isinstance(columns, dict) or not isinstance(tags, dict) or formatting not in ("alpaca", "sharegpt"):
        message = f"the entry's formatting is {formatting!r}, its columns {columns!r}"
        hint = "write formatting alpaca or sharegpt, and columns and tags as objects"
        raise LorgnetteError(message, where=where, hint=hint)
    if formatting == "alpaca":
        return lambda record, location: [queries.read_alpaca(_rename_alpaca(record, columns), location)]
    return lambda record, location: [messages.read_record(_rename_sharegpt(record, columns, tags), location)]


def _rename_common(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The keys of both formats; LLaMA-Factory too ignores a column that is not declared."""
    refused = {key: record.get(columns[key]) for key in _REFUSED_COLUMNS if key in columns}
    fields.reject_unread_keys(refused, ("messages", "images", "system"), _REFUSED_COLUMNS)
    renamed = {key: record[columns[key]] for key in ("images", "system") if columns.get(key) in record}
    return {"id": record.get("id"), **renamed}


def _rename_alpaca(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    names = {ours: columns.get(theirs, ours) for ours, theirs in _ALPACA_COLUMNS.items()}
    texts = {ours: record[name] for ours, name in names.items() if name in record}
    history = columns.get("history")
    return {**_rename_common(record, columns), **texts, **({"history": record.get(history)} if history else {})}


def _rename_sharegpt(record: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    role_tag, content_tag = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = {tags.get(tag, default): role for role, (tag, default) in _TAGS.items()}
    column = columns.get("messages", "conversations")
    items = fields.require_objects(record.get(column), column)
    renamed = []
    for number, item in enumerate(items, start=1):
        name = item.get(role_tag)
        if not isinstance(name, str) or name not in roles:
            message = f"message {number} is from {name!r}, not one of {', '.join(roles)}"
            raise LorgnetteError(message, hint="correct it, or declare the name in the entry's tags")
        renamed.append({"role": roles[name], "content": item.get(content_tag)})
    return {**_rename_common(record, columns), "messages": renamed}


def build_dataset_info(files: Sequence[Path]) -> dict[str, Any]:
    """The dataset_info.json with an entry for each file, named by its stem."""
    tags = {f"{name}_tag": name for name in ("role", "content", "user", "assistant", "system")}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": tags}
    return {file.stem: {"file_name": file.name, **entry} for file in files}
