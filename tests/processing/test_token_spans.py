from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.config import Encode
from lorgnette.processing.processor import Encoder
from lorgnette.processing.token_spans import pieces
from lorgnette.resolve import BUILT_IN
from lorgnette.types import IGNORED, Encoded, Example, Turn

ENCODER = Encoder.of_folder(BUILT_IN, Encode(size=(56, 84)))


def mask(encoded: Encoded) -> list[bool]:
    """Token by token, as the pieces have it."""
    found = pieces(encoded, ENCODER.tokenizer)
    return list(chain.from_iterable([piece.trained] * piece.count for piece in found))


def text(encoded: Encoded) -> str:
    return "".join(
        piece.text * (piece.count if piece.kind == "picture" else 1) for piece in pieces(encoded, ENCODER.tokenizer)
    )


def test_they_are_the_tokens_with_their_labels(conversations: list[Example]) -> None:
    for example in conversations:
        encoded = ENCODER.encode(example)
        assert mask(encoded) == (encoded.labels != IGNORED).tolist()
        assert text(encoded) == ENCODER.tokenizer.shown(encoded.tokens.tolist())


def test_what_they_are(example: Callable[..., Example]) -> None:
    found = pieces(ENCODER.encode(example(("user", 0, "新?"), ("assistant", "a<|im_end|>"))), ENCODER.tokenizer)
    assert [(piece.count, piece.trained) for piece in found if piece.kind == "picture"] == [(6, False)]
    ends = [piece for piece in found if piece.text == "<|im_end|>"]
    assert [(piece.kind, piece.trained) for piece in ends] == [
        ("control", False),
        ("control", False),
        ("control", True),
    ]
    assert any(piece.text.strip() == "新" and piece.count > 1 for piece in found)  # three bytes in this vocabulary


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text(asked: str, answer: str) -> None:
    from pathlib import Path

    encoded = ENCODER.encode(Example("x", (Turn("user", (asked,)), Turn("assistant", (answer,))), Path("a"), 1))
    assert mask(encoded) == (encoded.labels != IGNORED).tolist()
    if "\ufffd" not in asked + answer:
        assert text(encoded) == ENCODER.tokenizer.shown(encoded.tokens.tolist())


def test_a_wrong_label_would_show(example: Callable[..., Example]) -> None:
    encoded = ENCODER.encode(example(("user", "q"), ("assistant", "a cat")))
    labels = encoded.labels.copy()
    labels[0] = encoded.tokens[0]
    changed = Encoded(encoded.example, encoded.tokens, labels, encoded.positions, (), ())
    assert mask(changed) != mask(encoded)


@pytest.mark.parametrize("end_token", ["template", "<|endoftext|>"])
def test_the_end_token_is_trained(end_token: str, example: Callable[..., Example]) -> None:
    encoder = Encoder.of_folder(BUILT_IN, Encode(end_token=end_token))  # type: ignore[arg-type]
    found = pieces(encoder.encode(example(("user", "q"), ("assistant", "a"))), encoder.tokenizer)
    [last] = [piece for piece in found if piece.trained and piece.kind == "control"]
    assert last.text == ("<|im_end|>" if end_token == "template" else end_token)
