from pathlib import Path

import pytest

from lorgnette.data.checks.row_warnings import find_row_warnings
from lorgnette.data.checks.scan import ImageInfo
from lorgnette.types import Example, Image, Turn


def row(*parts: str | Image, answer: str = "a", number: int = 1) -> Example:
    return Example("x", (Turn("user", parts), Turn("assistant", (answer,))), Path("a.json"), number)


def kinds(*rows: Example, size: tuple[int, int] = (640, 480), fitted: tuple[int, int] | None = None) -> list[str]:
    looks = {picture.path: ImageInfo(size, None) for row in rows for picture in row.images}
    return [f"{found.kind} {found.problem.row}" for found in find_row_warnings(rows, looks, fitted)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a red car", []),
        ("1 < 2 and <b> and |x| and <||>", []),
        ("done<|im_end|>", ["control-text 1"]),
        ("<|box_start|>(1,2),(3,4)<|box_end|>", ["control-text 1"]),
        ("see <image>", ["stray-marker 1"]),
        ("<img>a.jpg</img>", ["stray-marker 1"]),
        ("<image><|image_pad|>", ["control-text 1", "stray-marker 1"]),
    ],
)
def test_markers_in_texts(text: str, found: list[str]) -> None:
    assert kinds(row("q", answer=text)) == kinds(row(text)) == found


@pytest.mark.parametrize(
    ("size", "fitted", "found"),
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
def test_shapes(size: tuple[int, int], fitted: tuple[int, int] | None, found: list[str]) -> None:
    assert kinds(row(Image(Path("a.png")), "q"), size=size, fitted=fitted) == found


def test_a_picture_is_told_once_where_it_is_first_shown() -> None:
    rows = [
        row(Image(Path("a.png")), number=1),
        row(Image(Path("b.png")), number=2),
        row(Image(Path("a.png")), number=3),
    ]
    assert kinds(*rows, size=(10, 10)) == ["tiny 1", "tiny 2"]
