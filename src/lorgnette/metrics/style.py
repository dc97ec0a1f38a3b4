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

NUM_FIRST_WORDS = 3
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]*")
_FULL_STOPS = (".", "!", "?", "。", "！", "？")
_CLOSING_MARKS = "\"'”’)」』"


@dataclass(frozen=True, slots=True)
class Style:
    """Of a set of texts. words, characters, sentences: the mean of a text; words_range: of the middle nine tenths.

    unit: what is counted as a word. vocabulary: how many different words there are in all of them. openings: the
    commonest first words and the share of texts that begin with them. stopped: the share that ends with a full stop or
    its like. repeating: the share in which a sentence stands twice. shared: the share that also stands somewhere else
    in the set, word for word.
    """

    num_texts: int
    unit: Literal["words", "tokens"]
    mean_words: float
    words_range: tuple[float, float]
    mean_characters: float
    mean_sentences: float
    vocabulary: int
    first_words: tuple[tuple[str, float], ...]
    full_stop_share: float
    repeated_sentence_share: float
    duplicate_share: float
    empty_share: float


def compute_style(texts: Sequence[str], tokenize: Callable[[str], list[str]] = tokenizers.tokenize_words) -> Style:
    """view: what a text's words are. Raises ValueError where there are no texts."""
    if not texts:
        raise ValueError("no texts")
    plain = [tokenizers.normalize_whitespace(text) for text in texts]
    words = [tokenize(text) for text in plain]
    sentences = [[tokenizers.normalize_whitespace(one).lower() for one in _SENTENCE.findall(text)] for text in plain]
    counts = [len(one) for one in words]
    low, high = np.quantile(counts, [0.05, 0.95]).tolist()
    first = Counter(ptb.TOKEN_TO_BRACKET.get(one[0], one[0]) for one in words if one)
    same = Counter(plain)
    total = len(texts)
    return Style(
        num_texts=total,
        unit="tokens" if tokenize is tokenizers.tokenize_latex else "words",
        mean_words=sum(counts) / total,
        words_range=(low, high),
        mean_characters=sum(map(len, plain)) / total,
        mean_sentences=sum(map(len, sentences)) / total,
        vocabulary=len({word for one in words for word in one}),
        first_words=tuple((word, count / total) for word, count in first.most_common(NUM_FIRST_WORDS)),
        full_stop_share=sum(text.rstrip(_CLOSING_MARKS).endswith(_FULL_STOPS) for text in plain) / total,
        repeated_sentence_share=sum(len(set(one)) < len(one) for one in sentences) / total,
        duplicate_share=sum(count for count in same.values() if count > 1) / total,
        empty_share=sum(not text for text in plain) / total,
    )
