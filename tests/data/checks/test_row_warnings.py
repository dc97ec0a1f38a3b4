from pathlib import Path

import pytest

from lorgnette.data.checks.image_infos import ImageInfo
from lorgnette.data.checks.row_warnings import NO_LETTERS, count_scripts, detect_script, find_row_warnings
from lorgnette.types import Example, Image, Turn


def build_row(*parts: str | Image, answer: str = "a", number: int = 1) -> Example:
    return Example("x", (Turn("user", parts), Turn("assistant", (answer,))), Path("a.json"), number)


def list_kinds(
    *rows: Example, size: tuple[int, int] = (640, 480), fixed_size: tuple[int, int] | None = None
) -> list[str]:
    infos = {image.path: ImageInfo(size, None) for row in rows for image in row.images}
    return [f"{finding.kind} {finding.problem.row}" for finding in find_row_warnings(rows, infos, fixed_size)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red car", []),
        ("1 < 2 and <b> and |x| and <||>", []),
        ("done<|im_end|>", ["control-text 1"]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", ["text-box 1"]),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', ["text-box 1"]),
        ("<|box_start|>(1,2),(3,4)<|box_end|><|im_end|>", ["text-box 1", "control-text 1"]),
        ("<|box_start|>here<|box_end|>", ["control-text 1"]),
        ("a cat <bbox>", ["stray-marker 1"]),
        ("see <image>", ["stray-marker 1"]),
        ("<img>a.jpg</img>", ["stray-marker 1"]),
        ("<image><|image_pad|>", ["control-text 1", "stray-marker 1"]),
    ],
)
def test_markers_in_texts_are_reported(text: str, expected: list[str]) -> None:
    assert list_kinds(build_row("q", answer=text)) == list_kinds(build_row(text)) == expected


@pytest.mark.parametrize(
    ("contrast", "expected"), [(None, []), (0, ["low-contrast"]), (15, ["low-contrast"]), (16, [])]
)
def test_images_that_show_almost_nothing_are_reported(contrast: int | None, expected: list[str]) -> None:
    row, path = build_row(Image(Path("a.png"))), Path("a.png")
    findings = list(find_row_warnings([row, row], {path: ImageInfo((64, 48), None, contrast)}, None))
    assert [finding.kind for finding in findings] == expected
    assert [finding.images for finding in findings] == [(path,)] * len(expected)


@pytest.mark.parametrize(
    ("size", "fixed_size", "expected"),
    [
        ((640, 480), (280, 280), []),
        ((1120, 280), (280, 280), []),
        ((1200, 280), (280, 280), ["odd-shape 1"]),
        ((280, 1200), (280, 280), ["odd-shape 1"]),
        ((1200, 280), (100, 400), []),
        ((300, 300), (100, 500), ["odd-shape 1"]),
        ((1200, 100), None, []),
        ((2100, 100), None, ["odd-shape 1"]),
        ((28, 28), (28, 28), []),
        ((27, 60), (28, 28), ["tiny 1"]),
    ],
)
def test_unusual_shapes_are_reported(
    size: tuple[int, int], fixed_size: tuple[int, int] | None, expected: list[str]
) -> None:
    assert list_kinds(build_row(Image(Path("a.png")), "q"), size=size, fixed_size=fixed_size) == expected


def test_an_image_is_reported_once_at_its_first_row() -> None:
    rows = [
        build_row(Image(Path("a.png")), number=1),
        build_row(Image(Path("b.png")), number=2),
        build_row(Image(Path("a.png")), number=3),
    ]
    assert list_kinds(*rows, size=(10, 10)) == ["tiny 1", "tiny 2"]


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_the_script_of_most_letters(text: str, expected: str) -> None:
    assert detect_script(text) == expected


def test_scripts_are_counted_with_their_first_row() -> None:
    def build_row(number: int, *answers: str) -> Example:
        turns = [turn for text in answers for turn in (Turn("user", ("вопрос",)), Turn("assistant", (text,)))]
        return Example("x", tuple(turns), Path("a.json"), number)

    counts = count_scripts([build_row(1, "cat"), build_row(2, "cat", "кот"), build_row(3, "кот"), build_row(4, "cat")])
    assert [(name, count, first.row) for name, (count, first) in counts.items()] == [
        ("Latin", 3, 1),
        ("Cyrillic", 2, 2),
    ]
    assert count_scripts([]) == {}
