from pathlib import Path

import pytest

from lorgnette.data.checks.scripts import NO_LETTERS, count_scripts, detect_script
from lorgnette.types import Example, Turn


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A red car.", "Latin"),
        ("Ein süßer Hund", "Latin"),
        (r"\frac{a}{b}", "Latin"),
        ("ａｂｃ 𝒜𝒷", "Latin"),
        ("一只猫坐着。", "Han"),
        ("一只猫 OK", "Han"),
        ("ねこがすわっている", "Hiragana"),
        ("Кот на столе", "Cyrillic"),
        ("قطة", "Arabic"),
        ("고양이", "Hangul"),
        ("12 + 3 = 15", NO_LETTERS),
        ("🎂 12", NO_LETTERS),
        ("", NO_LETTERS),
    ],
)
def test_the_script_of_most_letters(text: str, found: str) -> None:
    assert detect_script(text) == found


def test_answers_are_counted_and_the_first_is_named() -> None:
    def row(number: int, *answers: str) -> Example:
        turns = [turn for text in answers for turn in (Turn("user", ("вопрос",)), Turn("assistant", (text,)))]
        return Example("x", tuple(turns), Path("a.json"), number)

    found = count_scripts([row(1, "cat"), row(2, "cat", "кот"), row(3, "кот"), row(4, "cat")])
    assert [(name, count, first.row) for name, (count, first) in found.items()] == [("Latin", 3, 1), ("Cyrillic", 2, 2)]
    assert count_scripts([]) == {}
