"""Reads data sets into Examples, checks them, splits them, exports them.

    read(path)              a data file or folder in any format → Example or Problem, row by row
    is_dataset(path)        whether `read` can read it; if not, it is bare images
    read_images(path)       an image or a folder of images → prompts without answers
    scan(rows)              → the usable rows, the problems, and what is known of the images
    check_rows(rows)        → DataReport, from text and image headers only
    load_usable(rows)       → as `scan`, or an error that lists what to fix
    find_duplicates, find_row_warnings, count_scripts   → findings for a person to judge
    group_problems, format_group, format_problems   equal problems of many rows → one line each
    train_test_split(…)     → training part, test part
    export(rows, …)         → a data file for other projects
    prepare(…)              any source → the tutorial's data_vl.json with its train and test parts
    map_identical_files     which files have the same bytes
    read_image_size, verify_image   an image's size · the same, and a check that the file is not cut off
    load_image, load_resized   an image's pixels: upright 8-bit RGB on white · the same, resized

Knows nothing about tokens, models or devices, and imports neither torch nor transformers.
"""

from lorgnette.config import DEFAULT_PROMPT
from lorgnette.data.box_notation import TextBoxUnit
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
from lorgnette.data.checks.image_infos import ImageInfo
from lorgnette.data.checks.name_matches import take_rows
from lorgnette.data.checks.problem_groups import (
    format_group,
    format_places,
    format_problems,
    format_rows,
    group_problems,
)
from lorgnette.data.checks.row_warnings import count_scripts, find_row_warnings
from lorgnette.data.checks.scan import ScanResult, compute_full_signatures, scan
from lorgnette.data.dataset import is_dataset, read, read_images
from lorgnette.data.export import ExportResult, PrepareResult, export, prepare
from lorgnette.data.formats import EXPORTERS, ExportFormat
from lorgnette.data.images import IMAGE_SUFFIXES, check_aspect, load_image, load_resized, read_image_size, verify_image
from lorgnette.data.row_location import RECOGNIZED, ColumnChoice
from lorgnette.data.splits import Holdout, Split, map_identical_files, parse_holdout, train_test_split

__all__ = [
    "DEFAULT_PROMPT",
    "EXPORTERS",
    "IMAGE_SUFFIXES",
    "RECOGNIZED",
    "AnswerLengths",
    "ColumnChoice",
    "DataReport",
    "ExportFormat",
    "ExportResult",
    "Holdout",
    "ImageInfo",
    "OnBadRow",
    "PrepareResult",
    "ScanResult",
    "Split",
    "TextBoxUnit",
    "build_refusal",
    "build_report",
    "check_aspect",
    "check_rows",
    "compute_full_signatures",
    "count_scripts",
    "export",
    "find_duplicates",
    "find_row_warnings",
    "format_group",
    "format_places",
    "format_problems",
    "format_rows",
    "group_problems",
    "is_dataset",
    "load_image",
    "load_resized",
    "load_usable",
    "map_identical_files",
    "parse_holdout",
    "prepare",
    "read",
    "read_image_size",
    "read_images",
    "scan",
    "take_rows",
    "train_test_split",
    "verify_image",
]
