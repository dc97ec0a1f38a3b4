import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette.data import splits
from lorgnette.data.splits import (
    Holdout,
    Split,
    count_shared_images,
    map_identical_files,
    parse_holdout,
    train_test_split,
)
from lorgnette.errors import UsageError
from lorgnette.types import Example, Image, Turn


def build_examples(folder: Path, *words: str) -> list[Example]:
    """One example per word; each letter is an image."""
    for letter in set("".join(words)):
        (folder / letter).write_bytes(b"same size " + letter.encode())
    return [
        Example(
            f"{i}",
            (Turn("user", tuple(Image(folder / letter) for letter in word)), Turn("assistant", ("x",))),
            folder / "a.csv",
            i,
        )
        for i, word in enumerate(words)
    ]


def split_rows(examples: list[Example], holdout: int) -> list[int]:
    train, test = train_test_split(examples, holdout=holdout, split="image")
    assert sorted(example.row for example in [*train, *test]) == list(range(len(examples)))
    assert count_shared_images(train, test) == 0
    return [example.row for example in test]


def test_tail_holds_out_the_last_rows(tmp_path: Path) -> None:
    examples = build_examples(tmp_path, "a", "a", "b", "b")
    assert train_test_split(examples, holdout=1, split="tail") == (examples[:3], examples[3:])
    assert count_shared_images(*train_test_split(examples, holdout=1, split="tail")) == 1


@pytest.mark.parametrize(
    ("words", "holdout", "expected"),
    [
        ("a b c d e", 2, [3, 4]),  # one caption each: the last rows
        ("a a b b c c", 2, [4, 5]),  # whole groups
        ("a b b c c c", 2, [1, 2]),  # the last group does not fit, the one before does
        ("a a b c c", 3, [2, 3, 4]),
        ("a a a b b b", 2, [3, 4, 5]),  # none fits: the smallest, the last of equals
        ("a b a c c", 1, [1]),
        ("a a b b", 3, None),
        ("a a a b b", 3, [0, 1, 2]),  # b fits first, but a alone has 3 rows
        ("ab b c d d", 3, [2, 3, 4]),  # rows joined by way of b
        ("a b ab c", 3, [0, 1, 2]),
        ("a b", 0, []),
    ],
)
def test_rows_of_an_image_stay_together(tmp_path: Path, words: str, holdout: int, expected: list[int] | None) -> None:
    examples = build_examples(tmp_path, *words.split())
    if expected is None:
        with pytest.raises(UsageError, match="leaves nothing for training"):
            train_test_split(examples, holdout=holdout, split="image")
    else:
        assert split_rows(examples, holdout) == expected


@pytest.mark.parametrize("split", ["image", "tail"])
@pytest.mark.parametrize(
    "words", ["a", "a b", "a a b", "a a a b b b b", "a " * 30, "ab bc ca d", " ".join("abcdefgh" * 4)]
)
def test_the_suggested_holdout_works(tmp_path: Path, words: str, split: Split) -> None:
    examples = build_examples(tmp_path, *words.split())
    with pytest.raises(UsageError) as caught:
        train_test_split(examples, holdout=len(examples), split=split)
    hint = caught.value.hint or ""
    if match := re.search(r"data\.holdout=(\d+)", hint):
        train, test = train_test_split(examples, holdout=int(match[1]), split=split)
        assert train
        assert bool(test) == (len(examples) > 1)
    else:
        assert split == "image"
        assert len(set(words.split())) == 1
        assert "data.split=tail" in hint


def test_the_suggested_holdout_is_about_a_tenth(tmp_path: Path) -> None:
    for num_rows, holdout in ((100, 10), (30, 4), (7, 3)):
        with pytest.raises(UsageError, match=f"data.holdout={holdout} "):
            train_test_split(build_examples(tmp_path, *["a", "b"] * num_rows)[:num_rows], holdout=640, split="tail")


@pytest.mark.parametrize("holdout", [-1, 2, 3])
@pytest.mark.parametrize("split", ["image", "tail"])
def test_holdout_must_leave_rows_for_training(tmp_path: Path, holdout: int, split: str) -> None:
    with pytest.raises(UsageError, match="are 2 usable rows"):
        train_test_split(build_examples(tmp_path, "a", "b"), holdout=holdout, split=split)  # type: ignore[arg-type]


def test_rows_without_images_are_not_grouped(tmp_path: Path) -> None:
    assert split_rows(build_examples(tmp_path, "a", "", "", "a"), 1) == [2]


def test_copies_and_links_are_identical_files(make_image: Callable[..., Path], tmp_path: Path) -> None:
    original, other = make_image("a.png"), make_image("other.png", color=(0, 0, 0))
    copy, link = tmp_path / "copy.png", tmp_path / "link.png"
    copy.write_bytes(original.read_bytes())
    link.symlink_to(original)
    (tmp_path / "linked").symlink_to(tmp_path)
    through_link = tmp_path / "linked" / "a.png"
    same = map_identical_files([original, copy, link, through_link, other])
    assert same[original] == same[copy] == same[link] == same[through_link] != same[other]


def test_files_with_different_known_info_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(b"the same")
    assert len(set(map_identical_files(files, {files[0]: 1, files[1]: 2, files[2]: 1}).values())) == 2
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("opened"))
    assert map_identical_files(files, dict(zip(files, "123", strict=True))) == {file: file for file in files}


def test_known_identical_files_are_not_read(tmp_path: Path) -> None:
    examples = build_examples(tmp_path, "a", "b", "c")
    same = {tmp_path / "a": tmp_path / "a", tmp_path / "b": tmp_path / "b", tmp_path / "c": tmp_path / "b"}
    for letter in "abc":
        (tmp_path / letter).unlink()
    train, test = train_test_split(examples, holdout=1, split="image", identical_files=same)
    assert ([example.row for example in train], [example.row for example in test]) == ([1, 2], [0])


@given(st.lists(st.text(alphabet="abcdefgh", max_size=2), min_size=2, max_size=20), st.integers(1, 5))
@settings(max_examples=150)
def test_no_image_is_in_both_parts_and_no_row_in_neither(words: list[str], holdout: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        examples = build_examples(Path(folder), *words)
        try:
            test = split_rows(examples, holdout)
        except UsageError:
            return
        assert holdout <= len(test) < len(words)


def test_files_of_one_size_and_middle_are_compared_whole(tmp_path: Path) -> None:
    contents = {
        "a": b"1" * 5000,
        "b": b"1" * 5000,
        "head": b"2" + b"1" * 4999,
        "tail": b"1" * 4999 + b"2",
        "c": b"1" * 4999,
    }
    contents["middle"] = b"1" * 2500 + b"2" + b"1" * 2499
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    same = map_identical_files(tmp_path / name for name in contents)
    assert {path.name: first.name for path, first in same.items()} == {
        name: "a" if name == "b" else name for name in contents
    }


@pytest.mark.parametrize(
    ("num_images", "num_held_out"),
    [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 1),
        (6, 1),
        (7, 1),
        (8, 4),
        (12, 4),
        (49, 4),
        (50, 5),
        (100, 10),
        (640, 64),
        (2000, 64),
    ],
)
def test_auto_holds_out_a_tenth_of_the_images(num_images: int, num_held_out: int) -> None:
    turns = (Turn("user", ("?",)), Turn("assistant", ("x",)))
    examples = [Example(f"{i}", turns, Path("a.csv"), i) for i in range(num_images)]
    for split in ("image", "tail"):
        train, test = train_test_split(examples, holdout="auto", split=split)
        assert [*train, *test] == examples
        assert len(test) == num_held_out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a b c d e f g h " * 5, [row for row in range(40) if row % 8 >= 4]),  # four images with all their captions
        ("a a a a a", []),  # one image: nothing can be held out
        ("a b c d e f g " + "h " * 20, [3, 4, 5, 6]),  # an image with most of the rows is trained on
    ],
)
def test_auto_holds_out_whole_images(tmp_path: Path, words: str, expected: list[int]) -> None:
    train, test = train_test_split(build_examples(tmp_path, *words.split()), holdout="auto", split="image")
    assert [example.row for example in test] == expected
    assert count_shared_images(train, test) == 0


@pytest.mark.parametrize(("text", "holdout"), [("auto", "auto"), ("12", 12), (0, 0)])
def test_holdout_as_it_is_typed(text: str | int, holdout: Holdout) -> None:
    assert parse_holdout(text) == holdout


@pytest.mark.parametrize("text", ["-1", "some", -1, "1.5", ""])
def test_a_holdout_that_is_none(text: str | int) -> None:
    with pytest.raises(UsageError, match="write a whole number of 0 or more, or auto"):
        parse_holdout(text)


def test_processes_find_the_copies_that_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{number}.bin" for number in range(20)]
    for number, path in enumerate(paths):  # equal sizes; equal middles; copies
        path.write_bytes(bytes([number % 2]) + bytes(2000) + bytes([number % 3]) * 600 + bytes(2000))
    expected = map_identical_files(paths)
    assert {path: expected[path].name for path in paths} == {path: f"{i % 6}.bin" for i, path in enumerate(paths)}
    monkeypatch.setattr(splits, "MIN_SHARED_FILES", 2)
    monkeypatch.setattr(splits, "_BLOCK_FILES", 3)
    monkeypatch.setattr(splits, "count_processes", lambda: 2)
    assert map_identical_files(paths) == expected
    paths[3].write_bytes(b"x" + paths[3].read_bytes()[1:])
    assert map_identical_files(paths) != expected
