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

from lorgnette.data.checks.data_report import Lengths, OnBadRow, Report, check, refusal, report_of, usable
from lorgnette.data.checks.duplicates import repeats
from lorgnette.data.checks.row_warnings import oddities
from lorgnette.data.checks.scan import Look, Survey, survey, whole_sketches
from lorgnette.data.checks.scripts import scripts
from lorgnette.data.dataset import pictures_of, read, speaks
from lorgnette.data.export import Exported, export
from lorgnette.data.formats import EXPORTS, To
from lorgnette.data.images import SUFFIXES, header, load, verified
from lorgnette.data.prepare import Prepared, prepare
from lorgnette.data.rows import PROMPT
from lorgnette.data.splits import Split, identities, parts

__all__ = [
    "EXPORTS",
    "PROMPT",
    "SUFFIXES",
    "Exported",
    "Lengths",
    "Look",
    "OnBadRow",
    "Prepared",
    "Report",
    "Split",
    "Survey",
    "To",
    "check",
    "export",
    "header",
    "identities",
    "load",
    "oddities",
    "parts",
    "pictures_of",
    "prepare",
    "read",
    "refusal",
    "repeats",
    "report_of",
    "scripts",
    "speaks",
    "survey",
    "usable",
    "verified",
    "whole_sketches",
]
