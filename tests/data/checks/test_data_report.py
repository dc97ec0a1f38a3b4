import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path

import pytest
from PIL.ImageFile import ImageFile

from lorgnette.data import images, load_usable, read
from lorgnette.data.checks import data_report as room_check
from lorgnette.data.checks.data_report import AnswerLengths
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Problem, Turn


def example(*paths: Path, answer: str = "yes", row: int = 1) -> Example:
    return Example(
        "x",
        (Turn("user", (*(Image(path) for path in paths), "q")), Turn("assistant", (answer,))),
        Path("a.json"),
        row,
    )


def test_report(picture: Callable[..., Path], table: Callable[..., Path], tmp_path: Path) -> None:
    picture("small.jpg", size=(10, 20))
    picture("large.png", size=(60, 50))
    (tmp_path / "empty.jpg").touch()
    path = table(
        [
            ("small.jpg", "four"),
            ("large.png", "a longer one"),
            ("gone.jpg", "x"),
            ("./small.jpg", "again"),
            ("empty.jpg", "x"),
            ("small.jpg", ""),
        ]
    )
    report = room_check(read(path))
    assert (report.rows, report.usable, report.pictures, report.repeats) == (6, 3, 2, 1)
    assert (report.smallest, report.largest) == ((10, 20), (60, 50))
    assert report.answers == AnswerLengths(4, 5, 7, 12)
    assert [(problem.row, problem.source) for problem in report.problems] == [(4, path), (6, path), (7, path)]
    missing, empty, _ = report.problems
    assert str(tmp_path / "gone.jpg") in missing.what
    assert "zero bytes" in empty.what
    assert all(problem.remedy for problem in report.problems)
    told = json.loads(json.dumps(report.as_dict()))
    assert told["problems"][0]["row"] == 4
    assert told["smallest"] == {"width": 10, "height": 20}
    assert told["answers"]["longest"] == 12


def test_a_report_of_nothing() -> None:
    report = room_check([])
    assert (report.rows, report.usable, report.smallest, report.answers) == (0, 0, None, None)
    assert json.loads(json.dumps(report.as_dict()))["largest"] is None


def test_text_alone_is_fine() -> None:
    assert room_check([example()]).usable == 1


def test_a_truncated_picture_is_found(picture: Callable[..., Path], tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        whole = picture(f"whole.{suffix}", size=(300, 300)).read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) - 40])
        (problem,) = room_check([example(tmp_path / f"cut.{suffix}")]).problems
        assert "cut" in problem.what


def test_each_picture_is_looked_at_once_and_never_decoded(
    picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [picture("a.jpg"), picture("b.png"), picture("c.webp")]
    monkeypatch.setattr(images, "load_image", lambda path: pytest.fail(f"{path} was decoded"))
    opened: list[Path] = []
    real = images._open

    def seen(path: Path) -> AbstractContextManager[ImageFile]:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(images, "_open", seen)
    report = room_check(example(path, row=row) for row, path in product(range(1000), good))
    assert (report.usable, report.pictures, report.repeats) == (3000, 3, 2997)
    assert sorted(opened) == good


def test_order_is_kept_over_many_blocks(picture: Callable[..., Path], tmp_path: Path) -> None:
    good, gone = picture("a.jpg"), tmp_path / "gone.jpg"
    rows = [
        Problem(Path("a"), row, "w", "r") if row % 5 == 0 else example(gone if row % 7 == 0 else good, row=row)
        for row in range(1, 3000)
    ]
    seen = load_usable(rows, on_bad_row="skip")
    assert [each.row for each in seen.examples] == [row for row in range(1, 3000) if row % 5 and row % 7]
    assert [each.row for each in seen.problems] == [row for row in range(1, 3000) if not (row % 5 and row % 7)]


@pytest.mark.parametrize(
    "turns",
    [
        (Turn("user", ("q",)),),
        (Turn("user", ("q",)), Turn("assistant", ("  ",))),
        (Turn("assistant", ("a",)), Turn("user", ("q",))),
        (Turn("user", ("q",)), Turn("system", ("s",)), Turn("assistant", ("a",))),
        (),
    ],
)
def test_conversations_nobody_can_learn_from(turns: tuple[Turn, ...]) -> None:
    (problem,) = room_check([Example("x", turns, Path("a.json"), 8)]).problems
    assert problem.row == 8


def test_an_error_names_the_first_ten_and_the_count(table: Callable[..., Path]) -> None:
    path = table([(f"{i}.jpg", "x") for i in range(14)])
    with pytest.raises(LorgnetteError) as caught:
        load_usable([*read(path), example()], on_bad_row="error")
    said = str(caught.value)
    assert "14 of 15 rows cannot be used" in said
    assert "row 2: picture is missing" in said
    assert "row 11:" in said
    assert "row 12:" not in said
    assert "and 4 more" in said
    assert "data.on_bad_row=skip" in said


def test_without_problems_both_ways_are_the_same(picture: Callable[..., Path]) -> None:
    row = example(picture("a.jpg"))
    seen = load_usable([row], on_bad_row="error")
    assert seen == load_usable([row], on_bad_row="skip")
    assert (seen.examples, seen.problems) == ([row], [])


def test_nothing_left() -> None:
    with pytest.raises(LorgnetteError, match="no rows"):
        load_usable([], on_bad_row="skip")
    with pytest.raises(LorgnetteError, match="1 of 1 rows") as caught:
        load_usable([Problem(Path("a"), 1, "w", "r")], on_bad_row="skip")
    assert "skip" not in (caught.value.hint or "")
