"""An encoded example as a person reads it: token by token in text, each with whether loss is taken on it.

Knows nothing about colours or pages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lorgnette.processing.tokenizer import IMAGE_TOKEN, TextTokenizer
from lorgnette.types import IGNORE_INDEX, Encoded

_REPLACEMENT_CHARACTER = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One token; or several that only together make a character, or a picture.

    count: how many tokens. kind: control tokens are the template's, a picture's all have its place.
    """

    text: str
    num_tokens: int
    is_trained: bool
    kind: Literal["text", "control", "image"]


def split_into_spans(encoded: Encoded, tokenizer: TextTokenizer) -> list[TokenSpan]:
    """All tokens in order: Σ count is T, and a piece is trained where labels of its tokens are not IGNORED."""
    control = set(tokenizer.control_tokens.values())
    tokens, trained = encoded.input_ids.tolist(), (encoded.labels != IGNORE_INDEX).tolist()
    found: list[TokenSpan] = []
    at = 0
    while at < len(tokens):
        if tokens[at] == tokenizer.control_tokens[IMAGE_TOKEN]:
            count = next(
                grid.num_tokens for grid, start in zip(encoded.grids, encoded.image_starts, strict=True) if start == at
            )
            found.append(TokenSpan(IMAGE_TOKEN, count, trained[at], "image"))
        elif tokens[at] in control:
            found.append(TokenSpan(tokenizer.decode_with_control_tokens([tokens[at]]), 1, trained[at], "control"))
        else:
            found.append(_decode_span(tokens, trained, at, control, tokenizer))
        at += found[-1].num_tokens
    return found


def _decode_span(
    tokens: Sequence[int], trained: Sequence[bool], at: int, control: set[int], tokenizer: TextTokenizer
) -> TokenSpan:
    """From `at`, the fewest tokens whose bytes are whole characters; all have one label."""
    texts = (
        (end, tokenizer.decode_with_control_tokens(tokens[at:end])) for end in _iter_ends(tokens, trained, at, control)
    )
    end, text = next(((end, text) for end, text in texts if not text.endswith(_REPLACEMENT_CHARACTER)), (at + 1, ""))
    return TokenSpan(text or tokenizer.decode_with_control_tokens(tokens[at : at + 1]), end - at, trained[at], "text")


def _iter_ends(tokens: Sequence[int], trained: Sequence[bool], at: int, control: set[int]) -> Iterator[int]:
    """A character has at most four bytes, so at most four tokens."""
    for end in range(at + 1, min(at + 4, len(tokens)) + 1):
        if tokens[end - 1] in control or trained[end - 1] != trained[at]:
            return
        yield end
