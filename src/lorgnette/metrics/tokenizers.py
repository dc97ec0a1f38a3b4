"""A text as a metric compares it: words, normalized text, or LaTeX tokens.

Words are coco-caption's (ptb.py). Chinese has no spaces: each Han character is a word, as in sacrebleu's `zh`
tokenizer, and the text between them is read as English. Kana and Hangul are not split.
"""

import re
import unicodedata

from lorgnette.metrics.ptb import tokenize_ptb

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_CHINESE_PUNCTUATION = re.compile(
    "[\u3000-\u3004\u3008-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff3d\uff5b-\uff65…—·“”‘’]+"
)
_LATEX = re.compile(r"\\[a-zA-Z]+|\\.|\S", re.DOTALL)


def tokenize_words(text: str) -> list[str]:
    """The words of a caption, lower case, without punctuation. The script tells English from Chinese."""
    if not _HAN.search(text):
        return tokenize_ptb(text)
    return tokenize_ptb(_CHINESE_PUNCTUATION.sub(" ", _HAN.sub(r" \g<0> ", text)))


def normalize_whitespace(text: str) -> str:
    """The text in Unicode NFC, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def tokenize_latex(text: str) -> list[str]:
    """Commands (`\\frac`, `\\,`) and single characters; white space is dropped, except in `\\ `."""
    return _LATEX.findall(text)
