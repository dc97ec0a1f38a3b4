from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.config import ProcessorSettings
from lorgnette.processing.processor import Processor
from lorgnette.processing.token_spans import split_into_spans
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Turn

PROCESSOR = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(56, 84)))


def list_is_trained(encoded: Encoded) -> list[bool]:
    """Token by token, from the spans."""
    spans = split_into_spans(encoded, PROCESSOR.tokenizer)
    return list(chain.from_iterable([span.is_trained] * span.num_tokens for span in spans))


def join_text(encoded: Encoded) -> str:
    return "".join(
        span.text * (span.num_tokens if span.kind == "image" else 1)
        for span in split_into_spans(encoded, PROCESSOR.tokenizer)
    )


def test_spans_are_the_tokens_with_their_labels(conversations: list[Example]) -> None:
    for example in conversations:
        encoded = PROCESSOR.encode(example)
        assert list_is_trained(encoded) == (encoded.labels != IGNORE_INDEX).tolist()
        assert join_text(encoded) == PROCESSOR.tokenizer.decode_with_control_tokens(encoded.input_ids.tolist())


def test_spans_have_their_kind(example: Callable[..., Example]) -> None:
    spans = split_into_spans(
        PROCESSOR.encode(example(("user", 0, "新?"), ("assistant", "a<|im_end|>"))), PROCESSOR.tokenizer
    )
    assert [(span.num_tokens, span.is_trained) for span in spans if span.kind == "image"] == [(6, False)]
    ends = [span for span in spans if span.text == "<|im_end|>"]
    assert [(span.kind, span.is_trained) for span in ends] == [
        ("control", False),
        ("control", False),
        ("control", True),
    ]
    assert any(span.text.strip() == "新" and span.num_tokens > 1 for span in spans)  # three bytes in this vocabulary


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_text_can_be_split(question: str, answer: str) -> None:
    encoded = PROCESSOR.encode(Example("x", (Turn("user", (question,)), Turn("assistant", (answer,))), Path("a"), 1))
    assert list_is_trained(encoded) == (encoded.labels != IGNORE_INDEX).tolist()
    if "\ufffd" not in question + answer:
        assert join_text(encoded) == PROCESSOR.tokenizer.decode_with_control_tokens(encoded.input_ids.tolist())


def test_a_wrong_label_shows(example: Callable[..., Example]) -> None:
    encoded = PROCESSOR.encode(example(("user", "q"), ("assistant", "a cat")))
    labels = encoded.labels.copy()
    labels[0] = encoded.input_ids[0]
    changed = Encoded(encoded.example, encoded.input_ids, labels, encoded.position_ids, (), ())
    assert list_is_trained(changed) != list_is_trained(encoded)


@pytest.mark.parametrize("eos_token", ["template", "<|endoftext|>"])
def test_the_end_token_is_trained(eos_token: str, example: Callable[..., Example]) -> None:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(eos_token=eos_token))  # type: ignore[arg-type]
    spans = split_into_spans(processor.encode(example(("user", "q"), ("assistant", "a"))), processor.tokenizer)
    [last] = [span for span in spans if span.is_trained and span.kind == "control"]
    assert last.text == ("<|im_end|>" if eos_token == "template" else eos_token)
