"""Which scripts the answers are written in, counted by letters. A script is not a language: English, French and LaTeX
are all Latin here, and Japanese may count as Han or as Hiragana.

Python's Unicode tables have no script property; the first word of a letter's name (Unicode Standard, chapter 4.8) says
the same for the scripts in use.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from lorgnette.types import Example

NO_LETTERS = "no letters"
_SCRIPT_NAMES = {"Cjk": "Han"}


def count_scripts(rows: Iterable[Example]) -> dict[str, tuple[int, Example]]:
    """Script → how many answers are mostly in it, and the first row that has one; the most frequent first."""
    counts: Counter[str] = Counter()
    first: dict[str, Example] = {}
    for row in rows:
        for turn in row.turns:
            if turn.role == "assistant":
                found = detect_script(turn.text)
                counts[found] += 1
                first.setdefault(found, row)
    return {name: (count, first[name]) for name, count in counts.most_common()}


def detect_script(text: str) -> str:
    """The script that most letters are in (of equals the first), such as Latin, Han, Cyrillic."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else NO_LETTERS
    counts = Counter(_read_letter_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else NO_LETTERS


@lru_cache(maxsize=65536)
def _read_letter_script(letter: str) -> str:
    """Full-width and mathematical letters are those they stand for."""
    plain = unicodedata.normalize("NFKC", letter)[:1]
    word = unicodedata.name(plain, "unnamed").split(" ")[0].split("-")[0].capitalize()
    return _SCRIPT_NAMES.get(word, word)
