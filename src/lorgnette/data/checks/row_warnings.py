"""Warns about single rows: markers in a text, images of an unusual shape; counts the answers' writing systems.

Knows nothing about tokens or models. Each row is checked on its own.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from lorgnette.data.box_notation import find_boxes
from lorgnette.data.checks.image_infos import ImageInfo
from lorgnette.data.checks.scan import MIN_CONTRAST
from lorgnette.types import Example, Finding

MAX_STRETCH = 4
"""An image that is stretched by more than this into the fixed size is hard to recognize."""
MAX_ELONGATION = 20
"""Longer side over shorter side, for images that keep their shape."""
MIN_SIDE = 28
"""In pixels: a shorter side is less than one image token of every Qwen-VL model."""
NO_LETTERS = "no letters"
_CONTROL = re.compile(r"<\|\w+\|>")
_MARKER = re.compile(r"<(?:image|img|video|audio|bbox|ref-object)>|</img>|\[IMG\]")
_OF_BOXES = ("<|box_", "<|object_ref_")
_BOX_SIGNS = ("<|box_start|>", '_2d"')
"""One of them is in every text with a box."""
_SCRIPT_NAMES = {"Cjk": "Han"}


def find_row_warnings(
    rows: Iterable[Example], image_infos: Mapping[Path, ImageInfo], fixed_size: tuple[int, int] | None
) -> Iterator[Finding]:
    """Findings row by row; an image's shape is reported once, at the first row with the image.

    fixed_size: the (height, width) to which every image is resized; None if each keeps its shape.
    """
    checked: set[Path] = set()
    for row in rows:
        yield from _check_markers(row)
        for image in row.images:
            if image.path not in checked:
                checked.add(image.path)
                yield from _check_contrast(row, image.path, image_infos[image.path].contrast)
                yield from _check_shape(row, image.path, image_infos[image.path].size, fixed_size)


def _check_markers(row: Example) -> Iterator[Finding]:
    text = "\n".join(part for turn in row.turns for part in turn.parts if isinstance(part, str))
    has_box = any(sign in text for sign in _BOX_SIGNS) and any(found.box.corners for found in find_boxes(text))
    if has_box:
        message = "a text has boxes, whose numbers are trained as written"
        hint = "`lorgnette prepare DATA --text-boxes pixels` (or thousandths) turns them into the model's own"
        yield Finding.for_example(row, "text-box", message, hint)
    names = [name for name in _CONTROL.findall(text) if not (has_box and name.startswith(_OF_BOXES))]
    if names:
        message = f"a text contains {names[0]}, which is read as characters, never as the model's own token"
        yield Finding.for_example(row, "control-text", message, "remove it, unless you mean the characters")
    if match := _MARKER.search(text):
        what = "a box or a name" if match[0] in ("<bbox>", "<ref-object>") else "an image"
        message = f"a text contains {match[0]} without {what} there"
        hint = "remove it, or write the row in a format that reads such markers"
        yield Finding.for_example(row, "stray-marker", message, hint)


def _check_contrast(row: Example, path: Path, contrast: int | None) -> Iterator[Finding]:
    """The usual cause is a scan of 16 bits whose values use a small part of them."""
    if contrast is not None and contrast < MIN_CONTRAST:
        message = f"{path.name} shows almost nothing: its colors differ by {contrast} of 255"
        hint = "stretch its values to the full range (ImageMagick: magick IN -auto-level OUT), or replace it"
        yield Finding.for_example(row, "low-contrast", message, hint, path)


def _check_shape(
    row: Example, path: Path, size: tuple[int, int], fixed_size: tuple[int, int] | None
) -> Iterator[Finding]:
    width, height = size
    aspect = width / height
    relative = aspect * fixed_size[0] / fixed_size[1] if fixed_size else aspect
    factor = max(relative, 1 / relative)
    if factor > (MAX_STRETCH if fixed_size else MAX_ELONGATION):
        elongated = f"{factor:.0f} times longer on one side than on the other"
        shape = f"stretched {factor:.0f}-fold into {fixed_size[1]}×{fixed_size[0]}" if fixed_size else elongated
        hint = "crop it, or let images keep their shape: image_size=null" if fixed_size else "crop it"
        yield Finding.for_example(row, "odd-shape", f"{path.name}, {width}×{height} pixels, is {shape}", hint, path)
    if min(size) < MIN_SIDE:
        message = f"{path.name} has only {width}×{height} pixels"
        yield Finding.for_example(row, "tiny", message, "get a larger version, or remove the row", path)


def count_scripts(rows: Iterable[Example]) -> dict[str, tuple[int, Example]]:
    """Writing system → the number of answers mostly in it and the first row with one; the most frequent first.

    A script is not a language: English, French and LaTeX are all Latin here, and Japanese may count as Han or Hiragana.
    """
    counts, first = Counter[str](), dict[str, Example]()
    for row in rows:
        for turn in row.turns:
            if turn.role == "assistant":
                script = detect_script(turn.text)
                counts[script] += 1
                first.setdefault(script, row)
    return {name: (count, first[name]) for name, count in counts.most_common()}


def detect_script(text: str) -> str:
    """The script of most letters (among equals the first), such as Latin, Han, Cyrillic."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else NO_LETTERS
    counts = Counter(_read_letter_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else NO_LETTERS


@lru_cache(maxsize=65536)
def _read_letter_script(letter: str) -> str:
    """The first word of a letter's name (Unicode Standard, chapter 4.8): Python's tables have no script property.

    Full-width and mathematical letters are normalized first.
    """
    plain = unicodedata.normalize("NFKC", letter)[:1]
    word = unicodedata.name(plain, "unnamed").split(" ")[0].split("-")[0].capitalize()
    return _SCRIPT_NAMES.get(word, word)
