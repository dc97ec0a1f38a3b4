import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import PIL.Image
import pytest

from lorgnette.data.checks import near_duplicates
from lorgnette.data.checks.scan import _BLOCK_SIZE, _TASK_SIZE, compute_full_signatures, scan, scan_rows
from lorgnette.data.images import load_image
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Problem, Turn


def row(number: int, *paths: Path) -> Example:
    turns = (Turn("user", (*map(Image, paths), "q")), Turn("assistant", ("a",)))
    return Example("x", turns, Path("a.json"), number)


def test_rows_keep_their_order_and_pictures_are_told_once(picture: Callable[..., Path], tmp_path: Path) -> None:
    one, other = picture("one.png"), picture("other.jpg", size=(50, 40))
    seen = scan([row(1, one), Problem(Path("a"), 2, "w", "r"), row(3, other, one), row(4, tmp_path / "gone.png")])
    assert [example.row for example in seen.examples] == [1, 3]
    assert [problem.row for problem in seen.problems] == [2, 4]
    assert [(path.name, look.size, look.signature) for path, look in seen.image_infos.items()] == [
        ("one.png", (32, 24), None),
        ("other.jpg", (50, 40), None),
    ]


def test_a_sketch_is_taken_only_where_asked(picture: Callable[..., Path]) -> None:
    path = picture("one.png", (200, 30, 30))
    [(_, looks)] = scan_rows([row(1, path)], with_signatures=True)
    assert looks[path].signature == bytes((200, 30, 30)) * 256


def test_a_file_is_opened_once_for_its_size_its_end_and_its_sketch(
    picture: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture("one.jpg", size=(300, 200))
    opened: list[Path] = []
    real = Path.open

    def counted(self: Path, *given: str) -> Any:
        opened.append(self)
        return real(self, *given)

    monkeypatch.setattr(Path, "open", counted)
    seen = scan([row(1, path), row(2, path)], with_signatures=True)
    assert seen.image_infos[path].signature
    assert opened == [path]


def test_the_next_pictures_are_looked_at_while_rows_are_dealt_with(picture: Callable[..., Path]) -> None:
    paths = [picture(f"{number}.png", (number, 0, 0)) for number in range(5)]
    shown = [(paths[number * 5 // (3 * _BLOCK_SIZE)], paths[0]) for number in range(3 * _BLOCK_SIZE)]
    read: list[int] = []

    def rows() -> Iterator[Example]:
        for number, both in enumerate(shown):
            read.append(number)
            yield row(number, *both)

    taken = scan_rows(rows(), with_signatures=True)
    assert next(taken)[0] == row(0, paths[0], paths[0])
    assert len(read) == 2 * _BLOCK_SIZE
    assert [tuple(looks) for _, looks in taken] == [tuple(dict.fromkeys(both)) for both in shown[1:]]


def test_damage_in_the_middle_is_found_where_pixels_are_looked_at(picture: Callable[..., Path]) -> None:
    """Its header and its end are whole."""
    path = picture("torn.png", size=(300, 300))
    content = path.read_bytes()
    middle = content.index(b"IDAT") + 8
    path.write_bytes(content[:middle] + bytes(20) + content[middle + 20 :])
    assert scan([row(1, path)]).examples
    [problem] = scan([row(1, path)], with_signatures=True).problems
    assert (problem.row, str(path) in problem.message) == (1, True)


def photograph(path: Path, upper: int, lower: int, **how: Any) -> Path:
    halves = (np.random.default_rng(seed).integers(0, 255, (20, 40, 3), dtype=np.uint8) for seed in (upper, lower))
    PIL.Image.fromarray(np.concatenate(list(halves))).resize((640, 480), PIL.Image.Resampling.BICUBIC).save(path, **how)
    return path


def test_jpegs_are_looked_at_down_to_their_end_only_where_their_upper_quarters_agree(tmp_path: Path) -> None:
    sky, anew = photograph(tmp_path / "sky.jpg", 1, 2), photograph(tmp_path / "anew.jpg", 1, 2, quality=60)
    land, other = photograph(tmp_path / "land.jpg", 1, 3), photograph(tmp_path / "other.jpg", 4, 2)
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(sky.read_bytes())
    png = photograph(tmp_path / "a.png", 4, 2)
    looks = scan([row(1, sky, anew, land, copy)], with_signatures=True).image_infos
    assert {len(look.signature or b"") for look in looks.values()} == {near_duplicates.UPPER_BYTES}
    same = {path: path for path in looks} | {copy: sky}
    found = compute_full_signatures(looks, same)
    assert list(found) == [sky, anew, land]
    assert {len(sketch) for sketch in found.values()} == {768}
    assert near_duplicates.near_duplicate_groups(list(found.values())) == [[0, 1]]
    assert list(
        compute_full_signatures(
            scan([row(1, sky, other, png)], with_signatures=True).image_infos, {other: other, png: png}
        )
    ) == [
        other,
        png,
    ]
    assert (
        compute_full_signatures(scan([row(1, sky, other)], with_signatures=True).image_infos, {sky: sky, other: other})
        == {}
    )
    assert compute_full_signatures(scan([row(1, sky, anew)]).image_infos, {sky: sky, anew: anew}) == {}


def test_damage_below_the_upper_part_of_a_jpeg_is_found_as_a_whole_decode_finds_it(tmp_path: Path) -> None:
    content = photograph(tmp_path / "whole.jpg", 1, 2, quality=95).read_bytes()
    torn, at = tmp_path / "torn.jpg", len(content) * 3 // 4
    for seed in range(20):
        torn.write_bytes(content[:at] + Random(seed).randbytes(4096) + content[at + 4096 :])
        try:
            load_image(torn)
            refused = False
        except LorgnetteError:
            refused = True
        assert bool(scan([row(1, torn)], with_signatures=True).problems) == refused
    torn.write_bytes(content[:at] + b"\xff\xc4" + content[at + 2 :])  # a table's marker, with no table behind it
    with pytest.raises(LorgnetteError):
        load_image(torn)
    assert scan([row(1, torn)], with_signatures=True).problems


def test_what_is_no_file_is_announced_without_waiting_for_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    rows = [row(1, pipe), row(2, tmp_path / "gone.png"), row(3, Path("a\0b.png")), row(4, tmp_path)]
    assert [problem.row for problem in scan(rows, with_signatures=True).problems] == [1, 2, 3, 4]


@pytest.mark.parametrize("patience", [-1.0, 1e9])
def test_pictures_that_are_waited_for_are_looked_at_in_threads_and_say_the_same(
    picture: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    paths = [picture(f"{i}.png", size=(10 + i, 20)) for i in range(150)]
    paths[70] = tmp_path / "gone.png"
    threads: list[str] = []
    look = scan_rows.__globals__["_look"]

    def seen_by(path: Path, *, sketched: bool) -> object:
        threads.append(threading.current_thread().name)
        return look(path, sketched=sketched)

    monkeypatch.setitem(scan_rows.__globals__, "_look", seen_by)
    monkeypatch.setitem(scan_rows.__globals__, "_PATIENCE", patience)
    seen = scan(row(number, path) for number, path in enumerate(paths))
    assert [look.size for look in seen.image_infos.values()] == [(10 + i, 20) for i in range(150) if i != 70]
    assert [(problem.row, problem.message) for problem in seen.problems] == [(70, f"picture is missing ({paths[70]})")]
    assert len(threads) == 150
    assert any(name.startswith("pictures") for name in threads) == (patience < 0)


def test_two_surveys_are_one(picture: Callable[..., Path], tmp_path: Path) -> None:
    one, other = scan([row(1, picture("a.png"))]), scan([row(2, picture("b.png")), row(3, tmp_path / "gone.png")])
    both = one.merge(other)
    assert [example.row for example in both.examples] == [1, 2]
    assert [problem.row for problem in both.problems] == [3]
    assert len(both.image_infos) == 2


@pytest.mark.parametrize("sketched", [True, False])
def test_nothing(sketched: bool) -> None:
    assert scan([], with_signatures=sketched).image_infos == {}


def test_each_of_many_pictures_has_its_own_look(picture: Callable[..., Path]) -> None:
    """Also where threads take several at a time, and the last ones are fewer."""
    paths = [picture(f"{number}.png", (number, 0, 0), (20 + number, 20)) for number in range(2 * _TASK_SIZE + 5)]
    seen = scan((row(number, path) for number, path in enumerate(paths)), with_signatures=True)
    assert [(look.size[0], look.signature and look.signature[0]) for look in seen.image_infos.values()] == [
        (20 + number, number) for number in range(len(paths))
    ]
