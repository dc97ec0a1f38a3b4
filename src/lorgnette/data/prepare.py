"""The tutorial's step: any readable source → data_vl.json, and its parts data_vl_train.json and data_vl_test.json.

Knows nothing about downloads, tokens or models. All three have absolute picture paths.
"""

from dataclasses import dataclass
from pathlib import Path

from lorgnette.data.checks.data_report import OnBadRow, load_usable
from lorgnette.data.dataset import read
from lorgnette.data.export import count_trimmed, filter_exportable, write_files
from lorgnette.data.formats import EXPORTERS, ExportFormat
from lorgnette.data.row_location import DEFAULT_PROMPT
from lorgnette.data.splits import Split, count_shared_images, train_test_split
from lorgnette.types import Problem


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """What was written, and what is worth knowing about it."""

    all_path: Path
    train_path: Path
    test_path: Path
    num_train: int
    num_test: int
    problems: tuple[Problem, ...]
    """Rows left out (on_bad_row="skip")."""
    num_shared_images: int
    """Pictures that stand in both parts: 0 unless split="tail"."""
    num_trimmed: int
    """Rows that lost blanks around a lone picture's text, which the form does not keep."""


def prepare(
    source: Path,
    out: Path,
    *,
    prompt: str = DEFAULT_PROMPT,
    holdout: int = 4,
    split: Split = "image",
    max_rows: int | None = None,
    on_bad_row: OnBadRow = "error",
    export_format: ExportFormat = "json",
    sample: int | None = None,
    seed: int = 0,
    name: str | None = None,
    images_from: Path | None = None,
    images_to: Path | None = None,
) -> PrepareResult:
    """Write the three files into the folder `out` in the form `to`; see `read` for what picks rows and pictures, and
    `split.parts` for the rule of the two splits.

    Pictures inside the source are laid down in `out`/pictures, unless pictures_to says otherwise. A file that stands
    there with the same content is left alone; with other content, nothing at all is written.
    """
    found = read(
        source,
        prompt=prompt,
        max_rows=max_rows,
        sample=sample,
        seed=seed,
        name=name,
        images_from=images_from,
        images_to=images_to or out / "pictures",
    )
    seen = load_usable(filter_exportable(found, export_format, prompt), on_bad_row=on_bad_row, source=source)
    train, test = train_test_split(seen.examples, holdout=holdout, split=split)
    everything, to_train, to_test = (
        out / f"data_vl{part}{EXPORTERS[export_format].suffix}" for part in ("", "_train", "_test")
    )
    write_files({everything: seen.examples, to_train: train, to_test: test}, export_format, prompt)
    return PrepareResult(
        all_path=everything,
        train_path=to_train,
        test_path=to_test,
        num_train=len(train),
        num_test=len(test),
        problems=tuple(seen.problems),
        num_shared_images=count_shared_images(train, test) if split == "tail" else 0,
        num_trimmed=count_trimmed(seen.examples, export_format),
    )
