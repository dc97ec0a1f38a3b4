"""Room 1: source → Example. Reads data files and pictures, and says what is wrong with them.

    read(path)         a data file or folder of any form → Example or Problem, row by row
    speaks(path)       whether it is such a source, or bare pictures
    pictures_of(path)  a picture or a folder of pictures → prompts without answers
    check(rows)        → Report, from text and picture headers only
    survey(rows)       → the rows and what their pictures look like; repeats, oddities, scripts: what is odd about them
    usable(rows)       → the same, or an error that lists what to fix
    export(rows, …)    → a file in a form that others read
    prepare(…)         any source → the tutorial's data_vl.json and its train and test parts
    identities(paths)  which of them are one picture, by their bytes
    header, verified   a picture's size as seen · the same, and that it was not cut off
    load               a picture's pixels: upright 8-bit RGB on white

Knows nothing about tokens, models or devices, and imports neither torch nor transformers.
"""

from lorgnette.data.checks.data_report import (
    AnswerLengths,
    DataReport,
    OnBadRow,
    build_refusal,
    build_report,
    check_rows,
    load_usable,
)
from lorgnette.data.checks.duplicates import find_duplicates
from lorgnette.data.checks.row_warnings import find_row_warnings
from lorgnette.data.checks.scan import ImageInfo, ScanResult, compute_full_signatures, scan
from lorgnette.data.checks.scripts import count_scripts
from lorgnette.data.dataset import is_dataset, read, read_images
from lorgnette.data.export import ExportResult, export
from lorgnette.data.formats import EXPORTERS, ExportFormat
from lorgnette.data.images import IMAGE_SUFFIXES, load_image, read_image_size, verify_image
from lorgnette.data.prepare import PrepareResult, prepare
from lorgnette.data.row_location import DEFAULT_PROMPT
from lorgnette.data.splits import Split, map_identical_files, train_test_split

__all__ = [
    "DEFAULT_PROMPT",
    "EXPORTERS",
    "IMAGE_SUFFIXES",
    "AnswerLengths",
    "DataReport",
    "ExportFormat",
    "ExportResult",
    "ImageInfo",
    "OnBadRow",
    "PrepareResult",
    "ScanResult",
    "Split",
    "build_refusal",
    "build_report",
    "check_rows",
    "compute_full_signatures",
    "count_scripts",
    "export",
    "find_duplicates",
    "find_row_warnings",
    "is_dataset",
    "load_image",
    "load_usable",
    "map_identical_files",
    "prepare",
    "read",
    "read_image_size",
    "read_images",
    "scan",
    "train_test_split",
    "verify_image",
]
