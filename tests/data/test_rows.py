from pathlib import Path

import pytest

from lorgnette.data import rows
from lorgnette.data.image_resolver import NoPlaceError
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem

PLACE = rows.Place(Path("/data/a.jsonl"), 7, 3)


def test_place() -> None:
    assert PLACE.id == "identity_3"
    problem = PLACE.problem(LorgnetteError("wrong", where="b.jpg", remedy="right it"))
    assert (problem.row, problem.what, problem.remedy) == (7, "wrong (b.jpg)", "right it")
    assert PLACE.problem(LorgnetteError("wrong")).remedy


@pytest.mark.parametrize("value", [None, 1, [], "half \ud83d"])
def test_not_text(value: object) -> None:
    with pytest.raises(LorgnetteError, match="the caption"):
        rows.string(value, "the caption")


def test_text_stays_as_it_is() -> None:
    for value in ("", " é\0<|im_end|>\r\n", "😀"):
        assert rows.string(value, "x") == value


@pytest.mark.parametrize("value", [None, {}, [1], [{}, "a"]])
def test_not_objects(value: object) -> None:
    with pytest.raises(LorgnetteError, match="'turns'"):
        rows.objects(value, "'turns'")


def test_identity() -> None:
    assert rows.identity({}, PLACE) == "identity_3"
    assert rows.identity({"id": None}, PLACE) == "identity_3"
    assert rows.identity({"id": 12}, PLACE) == "12"
    assert rows.identity({"id": "a b"}, PLACE) == "a b"
    for value in (True, 1.5, []):
        with pytest.raises(LorgnetteError, match="id is"):
            rows.identity({"id": value}, PLACE)


def test_keys_that_would_be_lost() -> None:
    rows.must_be_read({"id": 1, "video": None, "note": "x"}, ("id",), ("video", "tools"))
    with pytest.raises(LorgnetteError, match="'video'; only pictures and text can be learned from"):
        rows.must_be_read({"id": 1, "video": "a.mp4"}, ("id",), ("video", "tools"))
    with pytest.raises(LorgnetteError, match="'tools', which this form does not read"):
        rows.must_be_read({"id": 1, "tools": ["x"]}, ("id",), ("video", "tools"))


def test_a_row_is_its_examples_or_its_problem() -> None:
    good = Example("1", (), PLACE.source, 7)
    assert list(PLACE.judged(lambda: [good, good])) == [good, good]

    def broken() -> list[Example]:
        raise LorgnetteError("wrong", remedy="right it")

    assert list(PLACE.judged(broken)) == [Problem(PLACE.source, 7, "wrong", "right it")]

    def full() -> list[Example]:
        raise NoPlaceError("no space left")

    with pytest.raises(NoPlaceError):  # the disk, not the row
        list(PLACE.judged(full))


def test_places_follow_each_other() -> None:
    places = rows.places(Path("/data/a.csv"), rows.Asked(prompt="q"))
    one, two = places.next(5), places.next()
    assert (one.row, one.number, two.row, two.number, two.prompt) == (5, 1, 2, 2, "q")
    assert one.picture("a.jpg", "x").path == Path("/data/a.jpg")


def test_a_name_needs_parts() -> None:
    assert rows.Asked().unnamed(Path("a.csv")) == rows.Asked()
    with pytest.raises(UsageError, match="'val'"):
        rows.Asked(name="val").unnamed(Path("a.csv"))
