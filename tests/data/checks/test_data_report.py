import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path

import pytest
from PIL.ImageFile import ImageFile

from lorgnette.data import check_rows, images, load_usable, read, scan
from lorgnette.data.checks.data_report import AnswerLengths, build_report
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Problem, Turn


def build_example(*paths: Path, answer: str = "yes", row: int = 1) -> Example:
    return Example(
        "x",
        (Turn("user", (*(Image(path) for path in paths), "q")), Turn("assistant", (answer,))),
        Path("a.json"),
        row,
    )


def test_the_report_counts_rows_images_and_answers(
    make_image: Callable[..., Path], make_csv: Callable[..., Path], tmp_path: Path
) -> None:
    make_image("small.jpg", size=(10, 20))
    make_image("large.png", size=(60, 50))
    (tmp_path / "empty.jpg").touch()
    path = make_csv(
        [
            ("small.jpg", "four"),
            ("large.png", "a longer one"),
            ("gone.jpg", "x"),
            ("./small.jpg", "again"),
            ("empty.jpg", "x"),
            ("small.jpg", ""),
        ]
    )
    report = check_rows(read(path))
    assert (report.num_rows, report.num_usable, report.num_images, report.num_repeated_uses) == (6, 3, 2, 1)
    assert (report.smallest_size, report.largest_size) == ((10, 20), (60, 50))
    assert report.answer_lengths == AnswerLengths(4, 5, 7, 12)
    assert [(problem.row, problem.source) for problem in report.problems] == [(4, path), (6, path), (7, path)]
    missing, empty, _ = report.problems
    assert str(tmp_path / "gone.jpg") in missing.message
    assert "zero bytes" in empty.message
    assert all(problem.hint for problem in report.problems)
    content = json.loads(json.dumps(report.as_dict()))
    assert content["problems"][0]["row"] == 4
    assert content["smallest"] == {"width": 10, "height": 20}
    assert content["answers"]["longest"] == 12


def test_a_report_of_built_examples_is_the_same(make_image: Callable[..., Path]) -> None:
    path = make_image("a.png", size=(10, 20))
    scanned = scan([build_example(path, answer=text, row=i) for i, text in enumerate(("x", "four", "a longer one"))])
    built = scanned.examples.build_all()
    assert build_report(scanned, reversed(built)) == build_report(scanned)
    assert build_report(scanned, built[1:]) != build_report(scanned)


def test_the_report_of_no_rows() -> None:
    report = check_rows([])
    assert (report.num_rows, report.num_usable, report.smallest_size, report.answer_lengths) == (0, 0, None, None)
    assert json.loads(json.dumps(report.as_dict()))["largest"] is None


def test_rows_without_images_are_usable() -> None:
    assert check_rows([build_example()]).num_usable == 1


def test_a_truncated_image_is_reported(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        whole = make_image(f"whole.{suffix}", size=(300, 300)).read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) - 40])
        (problem,) = check_rows([build_example(tmp_path / f"cut.{suffix}")]).problems
        assert "cut" in problem.message


def test_each_image_is_opened_once_and_never_decoded(
    make_image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [make_image("a.jpg"), make_image("b.png"), make_image("c.webp")]
    monkeypatch.setattr(images, "load_image", lambda path: pytest.fail(f"{path} was decoded"))
    opened: list[Path] = []
    real = images._open

    def record_path(path: Path) -> AbstractContextManager[ImageFile]:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(images, "_open", record_path)
    report = check_rows(build_example(path, row=row) for row, path in product(range(1000), good))
    assert (report.num_usable, report.num_images, report.num_repeated_uses) == (3000, 3, 2997)
    assert sorted(opened) == good


def test_rows_keep_their_order_over_many_blocks(make_image: Callable[..., Path], tmp_path: Path) -> None:
    good, gone = make_image("a.jpg"), tmp_path / "gone.jpg"
    rows = [
        Problem(Path("a"), row, "w", "r") if row % 5 == 0 else build_example(gone if row % 7 == 0 else good, row=row)
        for row in range(1, 3000)
    ]
    result = load_usable(rows, on_bad_row="skip")
    assert [row.row for row in result.examples] == [row for row in range(1, 3000) if row % 5 and row % 7]
    assert [row.row for row in result.problems] == [row for row in range(1, 3000) if not (row % 5 and row % 7)]


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
def test_invalid_conversations_are_problems(turns: tuple[Turn, ...]) -> None:
    (problem,) = check_rows([Example("x", turns, Path("a.json"), 8)]).problems
    assert problem.row == 8


def test_the_error_lists_each_fault_once_and_at_most_ten(make_csv: Callable[..., Path]) -> None:
    path = make_csv([(f"{i}.jpg", "x") for i in range(14)])
    others = [Problem(Path("b.json"), row, f"fault {chr(97 + row)}", "correct it") for row in range(12)]
    with pytest.raises(LorgnetteError) as caught:
        load_usable([*read(path), *others, build_example()], on_bad_row="error")
    text = str(caught.value)
    assert "26 of 27 rows cannot be used" in text
    assert "14 rows: image is missing; correct the path" in text
    assert f"({path}, rows 2–15: {path.with_name('0.jpg')}, {path.with_name('1.jpg')}," in text
    assert "row 8: fault i" in text
    assert "row 9:" not in text
    assert "and 3 more" in text
    assert "data.on_bad_row=skip" in text


def test_on_bad_row_does_not_matter_without_problems(make_image: Callable[..., Path]) -> None:
    row = build_example(make_image("a.jpg"))
    result = load_usable([row], on_bad_row="error")
    assert result == load_usable([row], on_bad_row="skip")
    assert (result.examples, result.problems) == ([row], [])


def test_no_usable_rows_are_an_error() -> None:
    with pytest.raises(LorgnetteError, match="no rows"):
        load_usable([], on_bad_row="skip")
    with pytest.raises(LorgnetteError, match="1 of 1 rows") as caught:
        load_usable([Problem(Path("a"), 1, "w", "r")], on_bad_row="skip")
    assert "skip" not in (caught.value.hint or "")
