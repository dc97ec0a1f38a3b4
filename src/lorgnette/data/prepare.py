"""The tutorial's step: any readable source → data_vl.json, and its parts data_vl_train.json and data_vl_test.json.

Knows nothing about downloads, tokens or models. All three are conversations with absolute picture paths.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorgnette.data import conversations
from lorgnette.data.check import OnBadRow, usable
from lorgnette.data.fields import Place
from lorgnette.data.source import PROMPT, read
from lorgnette.data.split import Split, parts, shared_pictures
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.files import write_json
from lorgnette.types import Example, Problem


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was written, and what is worth knowing about it."""

    all: Path
    train: Path
    test: Path
    train_rows: int
    test_rows: int
    problems: tuple[Problem, ...]
    """Rows left out (on_bad_row="skip")."""
    shared_pictures: int
    """Pictures that stand in both parts: 0 unless split="tail"."""
    tidied: int
    """Rows that lost blanks around a lone picture's text, which the form does not keep."""


def prepare(
    source: Path,
    out: Path,
    *,
    prompt: str = PROMPT,
    holdout: int = 4,
    split: Split = "picture",
    rows: int | None = None,
    on_bad_row: OnBadRow = "error",
) -> Prepared:
    """Write the three files into the folder `out`; see `split.parts` for the rule of the two splits.

    A file that stands there with the same content is left alone; with other content, nothing at all is written.
    """
    examples, problems = usable(_holdable(read(source, prompt=prompt, rows=rows)), on_bad_row=on_bad_row, where=source)
    train, test = parts(examples, holdout=holdout, split=split)
    made = [conversations.written(example) for example in examples]
    record = dict(zip(map(id, examples), (each for each, _ in made), strict=True))
    everything, to_train, to_test = (out / f"data_vl{part}.json" for part in ("", "_train", "_test"))
    contents = {everything: examples, to_train: train, to_test: test}
    _write({path: [record[id(example)] for example in part] for path, part in contents.items()})
    return Prepared(
        all=everything,
        train=to_train,
        test=to_test,
        train_rows=len(train),
        test_rows=len(test),
        problems=tuple(problems),
        shared_pictures=shared_pictures(train, test) if split == "tail" else 0,
        tidied=sum(changed for _, changed in made),
    )


def _holdable(rows: Iterable[Example | Problem]) -> Iterator[Example | Problem]:
    """Rows as they are; those that the conversations form cannot hold become problems."""
    for row in rows:
        if isinstance(row, Problem):
            yield row
            continue
        try:
            conversations.written(row)
        except LorgnetteError as error:
            yield Place(row.source, row.row, row.row).problem(error)
        else:
            yield row


def _write(contents: dict[Path, list[dict[str, Any]]]) -> None:
    """All or nothing, as far as other people's files go: every one is looked at before the first is written."""
    standing = {path: _stands(path, content) for path, content in contents.items()}
    foreign = [str(path) for path, same in standing.items() if same is False]
    if foreign:
        raise UsageError(
            "these files exist already, with other content",
            where=", ".join(foreign),
            remedy="remove them, or choose another folder",
        )
    for path, same in standing.items():
        if same is None:
            write_json(path, contents[path])


def _stands(path: Path, content: list[dict[str, Any]]) -> bool | None:
    """Is this very content there? None: nothing is there."""
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError):
        return False
