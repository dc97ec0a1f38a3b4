"""An encoded example as a person reads it: token by token in text, each with whether loss is taken on it.

Knows nothing about colours or pages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lorgnette.processing.tokenizer import IMAGE, TextTokenizer
from lorgnette.types import IGNORED, Encoded

_BROKEN = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token; or several that only together make a character, or a picture.

    count: how many tokens. kind: control tokens are the template's, a picture's all have its place.
    """

    text: str
    count: int
    trained: bool
    kind: Literal["text", "control", "picture"]


def pieces(encoded: Encoded, tokenizer: TextTokenizer) -> list[Piece]:
    """All tokens in order: Σ count is T, and a piece is trained where labels of its tokens are not IGNORED."""
    control = set(tokenizer.control.values())
    tokens, trained = encoded.tokens.tolist(), (encoded.labels != IGNORED).tolist()
    found: list[Piece] = []
    at = 0
    while at < len(tokens):
        if tokens[at] == tokenizer.control[IMAGE]:
            count = next(
                grid.tokens for grid, start in zip(encoded.grids, encoded.image_starts, strict=True) if start == at
            )
            found.append(Piece(IMAGE, count, trained[at], "picture"))
        elif tokens[at] in control:
            found.append(Piece(tokenizer.shown([tokens[at]]), 1, trained[at], "control"))
        else:
            found.append(_whole(tokens, trained, at, control, tokenizer))
        at += found[-1].count
    return found


def _whole(
    tokens: Sequence[int], trained: Sequence[bool], at: int, control: set[int], tokenizer: TextTokenizer
) -> Piece:
    """From `at`, the fewest tokens whose bytes are whole characters; all have one label."""
    texts = ((end, tokenizer.shown(tokens[at:end])) for end in _ends(tokens, trained, at, control))
    end, text = next(((end, text) for end, text in texts if not text.endswith(_BROKEN)), (at + 1, ""))
    return Piece(text or tokenizer.shown(tokens[at : at + 1]), end - at, trained[at], "text")


def _ends(tokens: Sequence[int], trained: Sequence[bool], at: int, control: set[int]) -> Iterator[int]:
    """A character has at most four bytes, so at most four tokens."""
    for end in range(at + 1, min(at + 4, len(tokens)) + 1):
        if tokens[end - 1] in control or trained[end - 1] != trained[at]:
            return
        yield end
