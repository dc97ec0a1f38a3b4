from pathlib import Path

import pytest

from lorgnette.data import row_location
from lorgnette.data.image_resolver import CannotExtractError
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem

PLACE = row_location.RowLocation(Path("/data/a.jsonl"), 7, 3)


def test_place() -> None:
    assert PLACE.id == "identity_3"
    problem = PLACE.to_problem(LorgnetteError("wrong", where="b.jpg", hint="right it"))
    assert (problem.row, problem.message, problem.hint) == (7, "wrong (b.jpg)", "right it")
    assert PLACE.to_problem(LorgnetteError("wrong")).hint


@pytest.mark.parametrize("value", [None, 1, [], "half \ud83d"])
def test_not_text(value: object) -> None:
    with pytest.raises(LorgnetteError, match="the caption"):
        row_location.require_string(value, "the caption")


def test_text_stays_as_it_is() -> None:
    for value in ("", " é\0<|im_end|>\r\n", "😀"):
        assert row_location.require_string(value, "x") == value


@pytest.mark.parametrize("value", [None, {}, [1], [{}, "a"]])
def test_not_objects(value: object) -> None:
    with pytest.raises(LorgnetteError, match="'turns'"):
        row_location.require_objects(value, "'turns'")


def test_identity() -> None:
    assert row_location.read_id({}, PLACE) == "identity_3"
    assert row_location.read_id({"id": None}, PLACE) == "identity_3"
    assert row_location.read_id({"id": 12}, PLACE) == "12"
    assert row_location.read_id({"id": "a b"}, PLACE) == "a b"
    for value in (True, 1.5, []):
        with pytest.raises(LorgnetteError, match="id is"):
            row_location.read_id({"id": value}, PLACE)


def test_keys_that_would_be_lost() -> None:
    row_location.reject_unread_keys({"id": 1, "video": None, "note": "x"}, ("id",), ("video", "tools"))
    with pytest.raises(LorgnetteError, match="'video'; only pictures and text can be learned from"):
        row_location.reject_unread_keys({"id": 1, "video": "a.mp4"}, ("id",), ("video", "tools"))
    with pytest.raises(LorgnetteError, match="'tools', which this form does not read"):
        row_location.reject_unread_keys({"id": 1, "tools": ["x"]}, ("id",), ("video", "tools"))


def test_a_row_is_its_examples_or_its_problem() -> None:
    good = Example("1", (), PLACE.source, 7)
    assert list(PLACE.try_read(lambda: [good, good])) == [good, good]

    def broken() -> list[Example]:
        raise LorgnetteError("wrong", hint="right it")

    assert list(PLACE.try_read(broken)) == [Problem(PLACE.source, 7, "wrong", "right it")]

    def full() -> list[Example]:
        raise CannotExtractError("no space left")

    with pytest.raises(CannotExtractError):  # the disk, not the row
        list(PLACE.try_read(full))


def test_places_follow_each_other() -> None:
    places = row_location.create_row_counter(Path("/data/a.csv"), row_location.ReadOptions(prompt="q"))
    one, two = places.next(5), places.next()
    assert (one.row, one.number, two.row, two.number, two.prompt) == (5, 1, 2, 2, "q")
    assert one.resolve_image("a.jpg", "x").path == Path("/data/a.jpg")


def test_a_name_needs_parts() -> None:
    assert row_location.ReadOptions().require_no_name(Path("a.csv")) == row_location.ReadOptions()
    with pytest.raises(UsageError, match="'val'"):
        row_location.ReadOptions(name="val").require_no_name(Path("a.csv"))
