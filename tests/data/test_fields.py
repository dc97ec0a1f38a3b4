from pathlib import Path

import pytest

from lorgnette.data import fields
from lorgnette.errors import LorgnetteError

PLACE = fields.Place(Path("/data/a.jsonl"), 7, 3)


def test_place() -> None:
    assert PLACE.folder == Path("/data")
    assert PLACE.id == "identity_3"
    problem = PLACE.problem(LorgnetteError("wrong", where="b.jpg", remedy="right it"))
    assert (problem.row, problem.what, problem.remedy) == (7, "wrong (b.jpg)", "right it")
    assert PLACE.problem(LorgnetteError("wrong")).remedy


@pytest.mark.parametrize("value", [None, 1, [], "half \ud83d"])
def test_not_text(value: object) -> None:
    with pytest.raises(LorgnetteError, match="the caption"):
        fields.string(value, "the caption")


def test_text_stays_as_it_is() -> None:
    for value in ("", " é\0<|im_end|>\r\n", "😀"):
        assert fields.string(value, "x") == value


@pytest.mark.parametrize("value", [None, {}, [1], [{}, "a"]])
def test_not_objects(value: object) -> None:
    with pytest.raises(LorgnetteError, match="'turns'"):
        fields.objects(value, "'turns'")


def test_identity() -> None:
    assert fields.identity({}, PLACE) == "identity_3"
    assert fields.identity({"id": None}, PLACE) == "identity_3"
    assert fields.identity({"id": 12}, PLACE) == "12"
    assert fields.identity({"id": "a b"}, PLACE) == "a b"
    for value in (True, 1.5, []):
        with pytest.raises(LorgnetteError, match="id is"):
            fields.identity({"id": value}, PLACE)


def test_keys_that_would_be_lost() -> None:
    fields.must_be_read({"id": 1, "video": None, "note": "x"}, ("id",), ("video",))
    with pytest.raises(LorgnetteError, match="'video'"):
        fields.must_be_read({"id": 1, "video": "a.mp4"}, ("id",), ("video",))


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("a.jpg", "/data/a.jpg"),
        (" ./b/../a.jpg ", "/data/a.jpg"),
        ("/elsewhere/a.jpg", "/elsewhere/a.jpg"),
        ("~/a.jpg", "/data/~/a.jpg"),
        ("file:///x/a%20b.jpg", "/x/a b.jpg"),
        ("图像 space,comma.jpg", "/data/图像 space,comma.jpg"),
        ("C:/a.jpg", "/data/C:/a.jpg"),
    ],
)
def test_paths(written: str, path: str) -> None:
    assert fields.picture(written, Path("/data")).path == Path(path)


@pytest.mark.parametrize("written", ["", "  ", "a\0b", "https://host/a.jpg", "data:image/png;base64," + "A" * 99])
def test_what_is_no_path(written: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        fields.picture(written, Path("/data"))
    assert len(caught.value.what) < 120
    assert caught.value.remedy


def test_the_other_folder_serves_where_the_first_has_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    (other / "a.jpg").touch()
    assert fields.picture("a.jpg", one, or_folder=other).path == other / "a.jpg"
    assert fields.picture("b.jpg", one, or_folder=other).path == one / "b.jpg"
    (one / "a.jpg").touch()
    assert fields.picture("a.jpg", one, or_folder=other).path == one / "a.jpg"
