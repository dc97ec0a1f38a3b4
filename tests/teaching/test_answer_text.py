"""What a person types becomes one spelling of it; labels are found in whatever case the model writes them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.errors import LorgnetteError
from lorgnette.teaching.answer_text import clean_answer, find_label


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("  a cat \n", "a cat"),
        ("e\u0301te\u0301", "été"),
        ("one\r\ntwo\rthree\u2028four\x85five\x0bsix", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("a\x00b\x07c\td\x1b[31m", "abc\td[31m"),
        ("\u200fقطة\u200f", "\u200fقطة\u200f"),  # marks of direction belong to the text
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),
    ],
)
def test_an_answer_is_cleaned(text: str, answer: str) -> None:
    assert clean_answer(text) == answer


@given(st.text())
def test_a_clean_answer_stays(text: str) -> None:
    try:
        answer = clean_answer(text)
    except LorgnetteError:
        assert not any(unicodedata.category(letter)[0] in "LNPSM" for letter in text if letter.isprintable())
        return
    assert clean_answer(answer) == answer == unicodedata.normalize("NFC", answer).strip()


@pytest.mark.parametrize("text", ["", "\t \n", "\u200b", "\u2800\u00a0"[1:], "\x00", "\ud83d", "x" * 20_001])
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        clean_answer(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("cat", "cat"), ("Cat.", "cat"), (" CAT !? ", "cat"), ("STRASSE", "Straße"), ("straße", "Straße"),
        ("e\u0301te\u0301", "été"), ("A+", "A+"), ("a+.", "A+"), ("no.", "no."), ("No", "no."),
        ("dog", None), ("a cat", None), ("", None), (".", None),
    ],
)  # fmt: skip
def test_a_label_is_found(text: str, label: str | None) -> None:
    assert find_label(text, ("cat", "Straße", "été", "A+", "no.")) == label


def test_an_exact_label_is_found_before_a_similar_one() -> None:
    assert [find_label(text, ("US", "us")) for text in ("us", "US", "Us")] == ["us", "US", "US"]
