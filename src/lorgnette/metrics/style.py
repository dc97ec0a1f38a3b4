"""How texts are written, in numbers: length, vocabulary, first words, endings. Needs no references.

Words are those of the caption metrics (tokenizers.tokenize_words): lower case, without punctuation; each Han character
is a word. Of formulas they are LaTeX tokens (tokenizers.tokenize_latex).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorgnette.metrics.tokenizers import TOKEN_TO_BRACKET, normalize_whitespace, tokenize_latex, tokenize_words

NUM_FIRST_WORDS = 3
_SENTENCE = re.compile(r"[^.!?。！？]+[.!?。！？]*")
_FULL_STOPS = (".", "!", "?", "。", "！", "？")
_CLOSING_MARKS = "\"'”’)」』"


@dataclass(frozen=True, slots=True)
class Style:
    """Statistics of a set of texts. mean_*: per text; *_share: of the texts.

    unit: of words. words_range: 5th and 95th percentile of words per text. vocabulary: distinct words in all texts.
    first_words: the most common ones, each with its share. full_stop_share: ends with a full stop or similar.
    repeated_sentence_share: has a sentence twice. duplicate_share: equals another text of the set.
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


def compute_style(texts: Sequence[str], tokenize: Callable[[str], list[str]] = tokenize_words) -> Style:
    """The style of texts. tokenize: a text's words. Raises ValueError without texts."""
    if not texts:
        raise ValueError("no texts")
    normalized = [normalize_whitespace(text) for text in texts]
    words = [tokenize(text) for text in normalized]
    sentences = [[normalize_whitespace(item).lower() for item in _SENTENCE.findall(text)] for text in normalized]
    lengths = [len(text_words) for text_words in words]
    low, high = np.quantile(lengths, [0.05, 0.95]).tolist()
    first_words = Counter(TOKEN_TO_BRACKET.get(text_words[0], text_words[0]) for text_words in words if text_words)
    total = len(texts)
    return Style(
        num_texts=total,
        unit="tokens" if tokenize is tokenize_latex else "words",
        mean_words=sum(lengths) / total,
        words_range=(low, high),
        mean_characters=sum(map(len, normalized)) / total,
        mean_sentences=sum(map(len, sentences)) / total,
        vocabulary=len({word for text_words in words for word in text_words}),
        first_words=tuple((word, count / total) for word, count in first_words.most_common(NUM_FIRST_WORDS)),
        full_stop_share=sum(text.rstrip(_CLOSING_MARKS).endswith(_FULL_STOPS) for text in normalized) / total,
        repeated_sentence_share=sum(len(set(text)) < len(text) for text in sentences) / total,
        duplicate_share=sum(count for count in Counter(normalized).values() if count > 1) / total,
        empty_share=sum(not text for text in normalized) / total,
    )
