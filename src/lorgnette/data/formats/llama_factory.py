"""LLaMA-Factory's dataset_info.json ↔ its entries: which file, in which format, under which column names.

    {"pets": {"file_name": "pets.json", "formatting": "sharegpt",
              "columns": {"messages": "messages", "images": "images"},
              "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}

The keys of an entry's records are renamed, then read as messages (sharegpt) or as instruction and output (alpaca).
Image paths are relative to this file's folder, as in LLaMA-Factory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorgnette.data import fields
from lorgnette.data.formats import json_records, messages, queries
from lorgnette.data.formats.objects import require_no_boxes
from lorgnette.data.row_location import ReadOptions, Row, RowCounter, RowLocation, sample_rows
from lorgnette.data.text_files import describe_type
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example

_REMOTE_KEYS = {"hf_hub_url": "hf:", "ms_hub_url": "modelscope:"}
_REMOTE_KEYS |= dict.fromkeys(("om_hub_url", "script_url", "cloud_file_name"), "")
_ALPACA_COLUMNS = {"instruction": "prompt", "input": "query", "output": "response"}
"""Our key, which is LLaMA-Factory's default column → its name for the column."""
_TAGS = {"user": ("user_tag", "human"), "assistant": ("assistant_tag", "gpt"), "system": ("system_tag", "system")}
_COMMON_COLUMNS = ("images", "system", "videos", "audios", "chosen", "rejected", "kto_tag", "tools")


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
    for name, value in (*columns.items(), *tags.items()):
        if not isinstance(value, str | None):
            hint = "write the name as text"
            raise LorgnetteError(f"the entry's {name} is {describe_type(value)}, not a name", where=where, hint=hint)
    columns, tags = ({key: name for key, name in names.items() if name} for names in (columns, tags))
    known = ("messages", "history", *_ALPACA_COLUMNS.values(), *_COMMON_COLUMNS)
    if unknown := [key for key in columns if key not in known]:
        message, hint = (
            f"the entry's columns have {unknown[0]!r}, which is not read",
            f"write one of {', '.join(known)}",
        )
        raise LorgnetteError(message, where=where, hint=hint)

    def read(record: Mapping[str, Any], location: RowLocation) -> list[Example]:
        if formatting == "alpaca":
            names = {ours: columns.get(theirs, ours) for ours, theirs in _ALPACA_COLUMNS.items()}
            names |= {"history": columns["history"]} if columns.get("history") else {}
            renamed, unread_keys = _rename_columns(record, columns, names)
            example = queries.read_alpaca(renamed, location)
        else:
            column = columns.get("messages", "conversations")
            renamed, unread_keys = _rename_columns(record, columns, {"messages": column})
            renamed["messages"] = _rename_tags(record.get(column), column, tags)
            example = messages.read_record(renamed, location)
        return [replace(example, unread_keys=fields.join_keys(example.unread_keys, unread_keys))]

    return read


def _rename_columns(
    record: Mapping[str, Any], columns: Mapping[str, str], own_names: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the record under our keys, its keys that are not declared, which LLaMA-Factory does not read either).

    own_names: our key → the record's, where the two formats differ.
    """
    names = {**own_names} | {key: columns[key] for key in _COMMON_COLUMNS if columns.get(key)}
    names |= {key: key for key in ("id", *fields.ROW_MARKS) if key in record and key not in names}
    rest = [key for key, value in record.items() if key not in names.values() and fields.has_content(value)]
    if images := [key for key in rest if key in ("image", "images", *fields.IMAGE_KEYS)]:
        message = f"the row has {', '.join(map(repr, images))}, which the entry's columns do not declare"
        raise LorgnetteError(message, hint="declare it in dataset_info.json, or remove it")
    return {ours: record[theirs] for ours, theirs in names.items() if theirs in record}, tuple(rest)


def _rename_tags(value: object, column: str, tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """The turns as messages; their other keys stay."""
    role_tag, content_tag = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = {tags.get(tag, default): role for role, (tag, default) in _TAGS.items()}
    renamed = []
    for number, item in enumerate(fields.require_objects(value, column), start=1):
        name = item.get(role_tag)
        if not isinstance(name, str) or name not in roles:
            message = f"message {number} is from {name!r}, not one of {', '.join(roles)}"
            raise LorgnetteError(message, hint="correct it, or declare the name in the entry's tags")
        rest = {key: value for key, value in item.items() if key not in (role_tag, content_tag)}
        renamed.append({**rest, "role": roles[name], "content": item.get(content_tag)})
    return renamed


def to_record(example: Example) -> dict[str, Any]:
    """The record of a file that `build_dataset_info` names."""
    require_no_boxes(example, "LLaMA-Factory's format")
    return messages.to_record(example)


def build_dataset_info(files: Sequence[Path]) -> dict[str, Any]:
    """The dataset_info.json with an entry for each file, named by its stem."""
    tags = {f"{name}_tag": name for name in ("role", "content", "user", "assistant", "system")}
    entry = {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": tags}
    return {file.stem: {"file_name": file.name, **entry} for file in files}
