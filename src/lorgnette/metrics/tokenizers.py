"""What of a text a metric looks at: its words, its characters, or its LaTeX.

Words are coco-caption's (ptb.py). Chinese has no spaces, so where a text holds Han characters each of them is a word
of its own, as in sacrebleu's `zh` tokenizer; what stands between them is read as English. Kana and Hangul stay as they
are written.
"""

import re
import unicodedata

from lorgnette.metrics import ptb

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_CHINESE_PUNCTUATION = re.compile(
    "[\u3000-\u3004\u3008-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff3d\uff5b-\uff65…—·“”‘’]+"
)
_LATEX = re.compile(r"\\[a-zA-Z]+|\\.|\S", re.DOTALL)


def tokenize_words(text: str) -> list[str]:
    """The words of a caption, lower case, without punctuation. English or Chinese is seen by the script."""
    if not _HAN.search(text):
        return ptb.tokenize_ptb(text)
    return ptb.tokenize_ptb(_CHINESE_PUNCTUATION.sub(" ", _HAN.sub(r" \g<0> ", text)))


def normalize_whitespace(text: str) -> str:
    """The text with every run of white space as one space; composed characters (NFC)."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def tokenize_latex(text: str) -> list[str]:
    """Commands (`\\frac`, `\\,`) and single characters; white space does not count, save as `\\ `."""
    return _LATEX.findall(text)
