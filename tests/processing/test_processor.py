"""Loss on the answers and their ends and nowhere else; a prompt is the beginning of the whole."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.processing.processor import Processor
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, Role, Turn

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TRAPS = ["<|im_end|>", "<|image_pad|>", "<|im_start|>assistant\n", "{{ messages }}", "{% raw %}", "\ufdd00\ufdd1", ""]
TEXT = WORDS | st.sampled_from(TRAPS)


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 84)))


def test_who_knows_the_sizes_need_not_have_pictures_read(tiny: Path, tmp_path: Path) -> None:
    asked: list[Path] = []

    def known(path: Path) -> tuple[int, int]:
        asked.append(path)
        return 280, 140

    encoder = Processor.from_folder(tiny, ProcessorSettings(image_size=None), read_size=known)
    gone = Image(tmp_path / "gone.png")
    [grid] = encoder.encode(Example("x", (Turn("user", (gone,)), Turn("assistant", ("a",))), Path("x"), 1)).grids
    assert (grid.w, grid.h) == (20, 10)
    assert asked == [gone.path]


def labelled(encoder: Processor, encoded: Encoded) -> str:
    return encoder.tokenizer.decode_with_control_tokens(encoded.labels[encoded.labels != IGNORE_INDEX].tolist())


@st.composite
def conversation(draw: st.DrawFn, pictures: list[Path]) -> Example:
    part = TEXT | st.sampled_from(pictures[:3]).map(Image)
    turns: list[Turn] = [Turn("system", (draw(TEXT),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Turn("user", tuple(draw(st.lists(part, max_size=4)))))
        turns.append(Turn("assistant", tuple(draw(st.lists(TEXT, min_size=1, max_size=2)))))
    if draw(st.booleans()):
        turns.append(Turn("user", tuple(draw(st.lists(part, max_size=3)))))
    return Example("x", tuple(turns), Path("x.json"), 1)


@given(data=st.data())
def test_labels_are_the_answers_whatever_the_texts_say(
    encoder: Processor, pictures: list[Path], data: st.DataObject
) -> None:
    example = data.draw(conversation(pictures))
    encoded = encoder.encode(example)
    said = [
        "".join(unicodedata.normalize("NFC", str(part)) for part in turn.parts) + "<|im_end|>"
        for turn in example.turns
        if turn.role == "assistant"
    ]
    assert labelled(encoder, encoded) == "".join(said)
    trained = encoded.labels != IGNORE_INDEX
    np.testing.assert_array_equal(encoded.labels[trained], encoded.input_ids[trained])
    assert not trained[0]
    image = encoder.tokenizer.control_tokens["<|image_pad|>"]
    rows = [row for start, grid in zip(encoded.image_starts, encoded.grids, strict=True)
            for row in range(start, start + grid.num_tokens)]  # fmt: skip
    assert np.flatnonzero(encoded.input_ids == image).tolist() == rows
    assert [grid.image for grid in encoded.grids] == list(example.images)
    prompt = encoder.encode(example, add_generation_prompt=True)
    np.testing.assert_array_equal(prompt.input_ids, encoded.input_ids[: len(prompt.input_ids)])
    np.testing.assert_array_equal(prompt.position_ids, encoded.position_ids[:, : len(prompt.input_ids)])
    assert encoder.tokenizer.decode_with_control_tokens(prompt.input_ids[-3:].tolist()).endswith("assistant\n")


SIZES = {"wide": (280, 140), "tall": (140, 280), "other": (140, 280), "small": (56, 56)}
ALIKE: list[tuple[tuple[Role, tuple[str, ...]], ...]] = [
    (("user", ("wide", "what?")), ("assistant", ("a car",))),
    (("user", ("wide", "what?")), ("assistant", ("a bus",))),
    (("user", ("wide", "what?")), ("assistant", ("a ", "car"))),
    (("user", ("wide", "who?")), ("assistant", ("a car",))),
    (("user", ("what?", "wide")), ("assistant", ("a car",))),
    (("user", ("tall", "what?")), ("assistant", ("a car",))),
    (("user", ("other", "what?")), ("assistant", ("a car",))),
    (("user", ("small", "what?")), ("assistant", ("a car",))),
    (("user", ("what?",)), ("assistant", ("a car",))),
    (("user", ("wide", "small", "what?")), ("assistant", ("a car",))),
    (("user", ("small", "wide", "what?")), ("assistant", ("a car",))),
    (("system", ("what?",)), ("user", ("wide",)), ("assistant", ("a car",))),
    (("user", ("wide", "what?")), ("assistant", ("a car",)), ("user", ("what?", "wide"))),
    (("user", ("wide", "what?")), ("assistant", ("a car",)), ("user", ("small",)), ("assistant", ("a bus",))),
    (("user", ("wide", "what?")), ("assistant", ("a car in a park",)), ("user", ("small",)), ("assistant", ("",))),
]
"""Conversations that differ in as little as may be. Words of SIZES are pictures."""


def conversation_of(number: int) -> Example:
    turns = [Turn(role, tuple(Image(Path(p)) if p in SIZES else p for p in parts)) for role, parts in ALIKE[number]]
    return Example(str(number), tuple(turns), Path("x.json"), number)


def seen(encoded: Encoded) -> tuple[object, ...]:
    arrays = (encoded.input_ids, encoded.labels, encoded.position_ids)
    return *(array.tolist() for array in arrays), encoded.image_starts, encoded.grids, encoded.example.id


def strangers(kind: type[Processor], tiny: Path, order: Sequence[int], *, answer: bool) -> list[int]:
    """Those of the conversations, encoded one after the other, that come out otherwise than alone."""

    def made() -> Processor:
        return kind.from_folder(tiny, ProcessorSettings(image_size=None), read_size=lambda path: SIZES[path.name])

    together = made()
    return [number for number in order for alone in [made()]
            if seen(together.encode(conversation_of(number), add_generation_prompt=answer))
            != seen(alone.encode(conversation_of(number), add_generation_prompt=answer))]  # fmt: skip


@pytest.mark.parametrize("answer", [False, True])
@pytest.mark.parametrize("step", [1, -1])
def test_no_conversation_gets_what_another_left_behind(tiny: Path, step: int, answer: bool) -> None:
    assert not strangers(Processor, tiny, [*range(len(ALIKE))][::step] * 2, answer=answer)


@pytest.mark.parametrize("forgotten", ["questions", "roles"])
def test_a_confusion_would_be_seen(tiny: Path, forgotten: str) -> None:
    """Negative control: what is kept of a conversation by less than what it depends on becomes another's."""

    class Confused(Processor):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            whole, kept = self._encode_frame, dict[object, Any]()
            self._frame_of = lambda outline, answer: kept.setdefault(less(outline), whole(outline, answer))  # type: ignore[assignment]

    def less(outline: Any) -> object:
        if forgotten == "roles":
            return tuple(part for _, parts in outline for part in parts)
        return tuple((role, tuple(part for part in parts if not isinstance(part, str))) for role, parts in outline)

    assert strangers(Confused, tiny, range(len(ALIKE)), answer=False)


def test_an_empty_answer_still_learns_to_end(encoder: Processor, example: Callable[..., Example]) -> None:
    assert labelled(encoder, encoder.encode(example(("user", 0), ("assistant", "")))) == "<|im_end|>"


@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("system",)])
def test_nothing_is_trained_where_nobody_answers(
    encoder: Processor, example: Callable[..., Example], roles: tuple[Role, ...]
) -> None:
    asked = example(*((role, "words") for role in roles))
    assert encoder.encode(asked).num_labels == 0
    whole, prompt = encoder.encode(asked), encoder.encode(asked, add_generation_prompt=True)
    np.testing.assert_array_equal(whole.input_ids, prompt.input_ids[: len(whole.input_ids)])


def test_the_tutorials_end_stands_in_the_answers_place_only(tiny: Path, example: Callable[..., Example]) -> None:
    asked = example(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    encoder = Processor.from_folder(tiny, ProcessorSettings(eos_token="<|endoftext|>"))
    encoded = encoder.encode(asked)
    assert labelled(encoder, encoded) == "b<|endoftext|>d<|endoftext|>"
    template = Processor.from_folder(tiny, ProcessorSettings()).encode(asked)
    changed = encoded.input_ids != template.input_ids
    assert set(encoded.input_ids[changed]) == {encoder.tokenizer.control_tokens["<|endoftext|>"]}
    assert changed.sum() == 2


def test_the_length_limit_is_exact_and_names_what_is_long(tiny: Path, example: Callable[..., Example]) -> None:
    asked = example(("user", 0, "what?"), ("assistant", "a car"))
    length = len(Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56))).encode(asked).input_ids)
    Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56), max_length=length)).encode(asked)
    with pytest.raises(LorgnetteError) as caught:
        Processor.from_folder(tiny, ProcessorSettings(image_size=(56, 56), max_length=length - 1)).encode(asked)
    assert caught.value.message == f"{length} tokens (4 of them pictures), more than max_length={length - 1}"
    assert caught.value.where == asked.where
    assert "max_length" in str(caught.value.hint)


def test_a_picture_that_cannot_be_read_is_named_each_time(encoder: Processor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    asked = Example("x", (Turn("user", (Image(path),)), Turn("assistant", ("a",))), Path("x.json"), 1)
    for content in (None, b"", b"no picture"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LorgnetteError) as caught:
            encoder.encode(asked)
        assert "a.png" in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize("name", ["vocab.json", "preprocessor_config.json"])
def test_a_checkpoint_that_lacks_a_file_is_refused_by_name(tiny: Path, tmp_path: Path, name: str) -> None:
    for path in tiny.iterdir():
        if path.name not in (name, "model.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(LorgnetteError, match=name):
        Processor.from_folder(tmp_path, ProcessorSettings())
