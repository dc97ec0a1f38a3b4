from pathlib import Path
from typing import Any

import pytest

from lorgnette.data.formats import captions
from lorgnette.data.formats.records import read_record
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a cat", ["a cat"]),
        (["a ", "", " b", None], ["a ", " b"]),
        ([{"raw": "a", "tokens": ["a"]}, {"raw": "b"}], ["a", "b"]),
        ({"caption": ["a", "b"], "other": "c"}, ["a", "b"]),
        ([[["deep"]]], ["deep"]),
    ],
)
def test_each_caption_is_an_example(location: RowLocation, cat: Image, value: object, texts: list[str]) -> None:
    examples = captions.build_examples(cat, value, location._replace(trim=False), name="'text'", id_="7")
    assert [example.reference for example in examples] == texts
    assert [example.id for example in examples] == (["7"] if len(texts) == 1 else ["7_1", "7_2"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the caption is empty"),
        ("  ", "the caption is empty"),
        ([], "the caption is empty"),
        (3, "'text' is a number"),
        (b"bytes", "'text' is bytes"),
        (["a", 3], "'text' is a number"),
        ({"en": "a"}, "'text' is an object"),
    ],
)
def test_what_is_no_text_is_refused(location: RowLocation, cat: Image, value: object, message: str) -> None:
    with pytest.raises(LorgnetteError, match=message):
        captions.build_examples(cat, value, location, name="'text'", id_="7")


A = Image(Path("/a.jpg"))


@pytest.mark.parametrize(
    ("turns", "prompt"),
    [
        ([("user", (A, "q")), ("assistant", ("x",))], "other"),
        ([("user", (A,)), ("assistant", ("x",))], "q"),
        ([("user", ("q", A)), ("assistant", ("x",))], "q"),
        ([("user", (A, A, "q")), ("assistant", ("x",))], "q"),
        ([("user", ("q",)), ("assistant", ("x",))], "q"),
        ([("system", ("s",)), ("user", (A, "r")), ("assistant", ("x",))], "q"),
        ([("system", ("s", A)), ("user", (A, "q")), ("assistant", ("x",))], "q"),
        ([("user", (A, "q")), ("assistant", ("x",)), ("user", ("q",)), ("assistant", ("x",))], "q"),
    ],
)
def test_other_conversations_cannot_be_written(turns: list[tuple[Any, ...]], prompt: str) -> None:
    example = Example("1", tuple(Turn(role, parts) for role, parts in turns), Path("a"), 1)
    with pytest.raises(LorgnetteError, match="captions hold one image, the question"):
        captions.to_record(example, prompt)


def test_a_caption_is_written_without_the_prompt() -> None:
    for prompt, parts in (("q", (A, "q")), ("", (A,))):
        example = Example("1", (Turn("user", parts), Turn("assistant", ("x",))), Path("a"), 1)
        assert captions.to_record(example, prompt) == {"image_path": "/a.jpg", "caption": "x"}
        with_system = Example("1", (Turn("system", ("s",)), *example.turns), Path("a"), 1)
        record = captions.to_record(with_system, prompt)
        assert record == {"image_path": "/a.jpg", "caption": "x", "system": "s"}
        [restored] = read_record(record, RowLocation(Path("a"), 1, 1, prompt=prompt))
        assert restored.turns == with_system.turns
