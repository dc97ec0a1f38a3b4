"""Room 1: source → Example. Reads data files and pictures, and says what is wrong with them.

    read(path)         a CSV, JSON or JSONL file → Example or Problem, row by row
    pictures_of(path)  a picture or a folder of pictures → prompts without answers
    check(rows)        → Report, from text and picture headers only
    usable(rows)       → the examples to go on with, or an error that lists what to fix
    prepare(…)         any source → the tutorial's data_vl.json and its train and test parts
    header, verified   a picture's size as seen · the same, and that it was not cut off
    load               a picture's pixels: upright 8-bit RGB on white

Knows nothing about tokens, models or devices, and imports neither torch nor transformers.
"""

from lorgnette.data.check import Lengths, OnBadRow, Report, check, refusal, usable
from lorgnette.data.pictures import SUFFIXES, header, load, verified
from lorgnette.data.prepare import Prepared, prepare
from lorgnette.data.source import PROMPT, pictures_of, read
from lorgnette.data.split import Split, parts

__all__ = [
    "PROMPT",
    "SUFFIXES",
    "Lengths",
    "OnBadRow",
    "Prepared",
    "Report",
    "Split",
    "check",
    "header",
    "load",
    "parts",
    "pictures_of",
    "prepare",
    "read",
    "refusal",
    "usable",
    "verified",
]
