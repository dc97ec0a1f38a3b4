"""The tutorial's step: any readable source → data_vl.json, and its parts data_vl_train.json and data_vl_test.json.

Knows nothing about downloads, tokens or models. All three have absolute picture paths.
"""

from dataclasses import dataclass
from pathlib import Path

from lorgnette.data.checks.data_report import OnBadRow, usable
from lorgnette.data.dataset import read
from lorgnette.data.export import holdable, tidied, write
from lorgnette.data.formats import EXPORTS, To
from lorgnette.data.rows import PROMPT
from lorgnette.data.splits import Split, parts, shared_pictures
from lorgnette.types import Problem


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
    to: To = "json",
    sample: int | None = None,
    seed: int = 0,
    name: str | None = None,
    images_from: Path | None = None,
    pictures_to: Path | None = None,
) -> Prepared:
    """Write the three files into the folder `out` in the form `to`; see `read` for what picks rows and pictures, and
    `split.parts` for the rule of the two splits.

    Pictures inside the source are laid down in `out`/pictures, unless pictures_to says otherwise. A file that stands
    there with the same content is left alone; with other content, nothing at all is written.
    """
    found = read(
        source,
        prompt=prompt,
        rows=rows,
        sample=sample,
        seed=seed,
        name=name,
        images_from=images_from,
        pictures_to=pictures_to or out / "pictures",
    )
    seen = usable(holdable(found, to, prompt), on_bad_row=on_bad_row, where=source)
    train, test = parts(seen.examples, holdout=holdout, split=split)
    everything, to_train, to_test = (out / f"data_vl{part}{EXPORTS[to].suffix}" for part in ("", "_train", "_test"))
    write({everything: seen.examples, to_train: train, to_test: test}, to, prompt)
    return Prepared(
        all=everything,
        train=to_train,
        test=to_test,
        train_rows=len(train),
        test_rows=len(test),
        problems=tuple(seen.problems),
        shared_pictures=shared_pictures(train, test) if split == "tail" else 0,
        tidied=tidied(seen.examples, to),
    )
