"""How texts are written, in numbers: length, words, how they begin and end. It needs no references.

Words are those that the caption metrics count (views.words): lower case, without punctuation; a Han character each.
Of formulas they are LaTeX tokens (views.latex).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorgnette.metrics import ptb, tokenizers

OPENINGS = 3
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]*")
_STOPS = (".", "!", "?", "。", "！", "？")
_BEHIND_STOPS = "\"'”’)」』"


@dataclass(frozen=True, slots=True)
class Style:
    """Of a set of texts. words, characters, sentences: the mean of a text; words_range: of the middle nine tenths.

    unit: what is counted as a word. vocabulary: how many different words there are in all of them. openings: the
    commonest first words and the share of texts that begin with them. stopped: the share that ends with a full stop or
    its like. repeating: the share in which a sentence stands twice. shared: the share that also stands somewhere else
    in the set, word for word.
    """

    texts: int
    unit: Literal["words", "tokens"]
    words: float
    words_range: tuple[float, float]
    characters: float
    sentences: float
    vocabulary: int
    openings: tuple[tuple[str, float], ...]
    stopped: float
    repeating: float
    shared: float
    empty: float


def style(texts: Sequence[str], view: Callable[[str], list[str]] = tokenizers.words) -> Style:
    """view: what a text's words are. Raises ValueError where there are no texts."""
    if not texts:
        raise ValueError("no texts")
    plain = [tokenizers.plain(text) for text in texts]
    words = [view(text) for text in plain]
    sentences = [[tokenizers.plain(one).lower() for one in _SENTENCE.findall(text)] for text in plain]
    counts = [len(one) for one in words]
    low, high = np.quantile(counts, [0.05, 0.95]).tolist()
    first = Counter(ptb.SIGNS.get(one[0], one[0]) for one in words if one)
    same = Counter(plain)
    total = len(texts)
    return Style(
        texts=total,
        unit="tokens" if view is tokenizers.latex else "words",
        words=sum(counts) / total,
        words_range=(low, high),
        characters=sum(map(len, plain)) / total,
        sentences=sum(map(len, sentences)) / total,
        vocabulary=len({word for one in words for word in one}),
        openings=tuple((word, count / total) for word, count in first.most_common(OPENINGS)),
        stopped=sum(text.rstrip(_BEHIND_STOPS).endswith(_STOPS) for text in plain) / total,
        repeating=sum(len(set(one)) < len(one) for one in sentences) / total,
        shared=sum(count for count in same.values() if count > 1) / total,
        empty=sum(not text for text in plain) / total,
    )
