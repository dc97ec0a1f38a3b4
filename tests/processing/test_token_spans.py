from collections.abc import Callable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.config import ProcessorSettings
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import split_into_spans
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Turn

ENCODER = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))


def mask(encoded: Encoded) -> list[bool]:
    """Token by token, as the pieces have it."""
    found = split_into_spans(encoded, ENCODER.tokenizer)
    return list(chain.from_iterable([piece.is_trained] * piece.num_tokens for piece in found))


def text(encoded: Encoded) -> str:
    return "".join(
        piece.text * (piece.num_tokens if piece.kind == "image" else 1)
        for piece in split_into_spans(encoded, ENCODER.tokenizer)
    )


def test_they_are_the_tokens_with_their_labels(conversations: list[Example]) -> None:
    for example in conversations:
        encoded = ENCODER.encode(example)
        assert mask(encoded) == (encoded.labels != IGNORE_INDEX).tolist()
        assert text(encoded) == ENCODER.tokenizer.decode_with_control_tokens(encoded.input_ids.tolist())


def test_what_they_are(example: Callable[..., Example]) -> None:
    found = split_into_spans(
        ENCODER.encode(example(("user", 0, "新?"), ("assistant", "a<|im_end|>"))), ENCODER.tokenizer
    )
    assert [(piece.num_tokens, piece.is_trained) for piece in found if piece.kind == "image"] == [(6, False)]
    ends = [piece for piece in found if piece.text == "<|im_end|>"]
    assert [(piece.kind, piece.is_trained) for piece in ends] == [
        ("control", False),
        ("control", False),
        ("control", True),
    ]
    assert any(piece.text.strip() == "新" and piece.num_tokens > 1 for piece in found)  # three bytes in this vocabulary


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text(asked: str, answer: str) -> None:
    from pathlib import Path

    encoded = ENCODER.encode(Example("x", (Turn("user", (asked,)), Turn("assistant", (answer,))), Path("a"), 1))
    assert mask(encoded) == (encoded.labels != IGNORE_INDEX).tolist()
    if "\ufffd" not in asked + answer:
        assert text(encoded) == ENCODER.tokenizer.decode_with_control_tokens(encoded.input_ids.tolist())


def test_a_wrong_label_would_show(example: Callable[..., Example]) -> None:
    encoded = ENCODER.encode(example(("user", "q"), ("assistant", "a cat")))
    labels = encoded.labels.copy()
    labels[0] = encoded.input_ids[0]
    changed = Encoded(encoded.example, encoded.input_ids, labels, encoded.position_ids, (), ())
    assert mask(changed) != mask(encoded)


@pytest.mark.parametrize("end_token", ["template", "<|endoftext|>"])
def test_the_end_token_is_trained(end_token: str, example: Callable[..., Example]) -> None:
    encoder = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(eos_token=end_token))  # type: ignore[arg-type]
    found = split_into_spans(encoder.encode(example(("user", "q"), ("assistant", "a"))), encoder.tokenizer)
    [last] = [piece for piece in found if piece.is_trained and piece.kind == "control"]
    assert last.text == ("<|im_end|>" if end_token == "template" else end_token)
