"""What a person typed → an answer: one spelling of each character, no blanks around it. And texts → labels."""

import re
import unicodedata
from collections.abc import Sequence

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import is_unicode

MAX_CHARACTERS = 20_000
"""Of an answer."""
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_CONTROLS = re.compile("[\0-\x08\x0e-\x1f\x7f-\x9f]")


def normalize_text(text: str) -> str:
    """The text in Unicode NFC, with \\n for every kind of line end and without blanks around it.

    Other control characters but the tab, which no field shows, are left out.
    """
    return _CONTROLS.sub("", _LINE_ENDS.sub("\n", unicodedata.normalize("NFC", text))).strip()


def clean_answer(text: str) -> str:
    """The normalized text. Raises LorgnetteError if it has no visible character, half of a character, or too many."""
    if not is_unicode(text):
        raise LorgnetteError("The text has half of a character.", hint="write it again")
    shown = normalize_text(text)
    if all(unicodedata.category(letter)[0] in "ZC" for letter in shown):
        raise LorgnetteError("The answer is empty.", hint="write one, or skip the image")
    if len(shown) > MAX_CHARACTERS:
        message = f"The answer has {len(shown):,} characters; {MAX_CHARACTERS:,} are possible."
        raise LorgnetteError(message, hint="shorten it")
    return shown


def find_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that the text is, apart from case and punctuation at its end; None if it is none."""
    exact = normalize_text(text)
    if exact in labels:
        return exact
    wanted = _fold(text)
    return next((label for label in labels if _fold(label) == wanted), None)


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFC", normalize_text(text).casefold())
    while folded and (unicodedata.category(folded[-1])[0] == "P" or folded[-1].isspace()):
        folded = folded[:-1]
    return folded
