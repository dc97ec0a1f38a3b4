"""Splits an encoded example into spans of text that a person can read, each marked with or without loss.

Knows nothing about colors or pages.
"""

from dataclasses import dataclass
from typing import Literal

from lorgnette.processing.tokenizer import IMAGE_TOKEN, TextTokenizer
from lorgnette.types import IGNORE_INDEX, Encoded

_REPLACEMENT_CHARACTER = "\ufffd"
"""A decoder's output for bytes that are no whole character."""


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One token, or several that only together form a character or an image.

    kind: "control" for a token of the chat template, "image" for all tokens of an image.
    """

    text: str
    num_tokens: int
    is_trained: bool
    kind: Literal["text", "control", "image"]


def split_into_spans(encoded: Encoded, tokenizer: TextTokenizer) -> list[TokenSpan]:
    """All tokens in order: the spans' num_tokens add up to T. Either all tokens of a span have loss, or none."""
    control_ids = set(tokenizer.control_tokens.values())
    image_token_id = tokenizer.control_tokens[IMAGE_TOKEN]
    image_lengths = {start: grid.num_tokens for start, grid in zip(encoded.image_starts, encoded.grids, strict=True)}
    ids, is_trained = encoded.input_ids.tolist(), (encoded.labels != IGNORE_INDEX).tolist()
    decode = tokenizer.decode_with_control_tokens
    spans: list[TokenSpan] = []
    start = 0
    while start < len(ids):
        is_control = ids[start] in control_ids
        span = TokenSpan(decode(ids[start : start + 1]), 1, is_trained[start], "control" if is_control else "text")
        if ids[start] == image_token_id:
            span = TokenSpan(IMAGE_TOKEN, image_lengths[start], is_trained[start], "image")
        elif not is_control and span.text.endswith(_REPLACEMENT_CHARACTER):
            # The fewest tokens whose bytes are whole characters. A character has at most four bytes and tokens.
            for end in range(start + 2, min(start + 4, len(ids)) + 1):
                if ids[end - 1] in control_ids or is_trained[end - 1] != is_trained[start]:
                    break
                if not (text := decode(ids[start:end])).endswith(_REPLACEMENT_CHARACTER):
                    span = TokenSpan(text, end - start, is_trained[start], "text")
                    break
        spans.append(span)
        start += span.num_tokens
    return spans
