import base64
import io
import os
import zipfile
from pathlib import Path

import pytest

from lorgnette.data import image_resolver
from lorgnette.data.image_resolver import NoPlaceError, Shelf, inside, limited
from lorgnette.errors import LorgnetteError, UsageError


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
    assert Shelf(Path("/data/a.csv")).picture(written).path == Path(path)


@pytest.mark.parametrize("written", ["", "  ", "a\0b", "https://host/a.jpg", "data:text/html," + "A" * 99])
def test_what_is_no_path(written: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        Shelf(Path("/data/a.csv")).picture(written)
    assert len(caught.value.what) < 120
    assert caught.value.remedy


def test_the_other_folder_serves_where_the_first_has_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    (other / "a.jpg").touch()
    assert Shelf(one / "a.csv").picture("a.jpg", or_folder=other).path == other / "a.jpg"
    assert Shelf(one / "a.csv").picture("b.jpg", or_folder=other).path == one / "b.jpg"
    (one / "a.jpg").touch()
    assert Shelf(one / "a.csv").picture("a.jpg", or_folder=other).path == one / "a.jpg"


def test_the_captions_of_a_picture_share_it_and_no_other(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    (other / "b.jpg").touch()
    found = Shelf(one / "a.csv")
    assert found.picture("a.jpg") is found.picture(" a.jpg ")
    assert found.picture("b.jpg").path == one / "b.jpg"
    assert found.picture("b.jpg", or_folder=other).path == other / "b.jpg"
    for _ in range(2):
        with pytest.raises(LorgnetteError, match="empty"):
            found.picture("")


def test_several_folders_the_first_that_has_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "x").mkdir(parents=True)
    other.mkdir()
    (other / "a.jpg").touch()
    found = Shelf(tmp_path / "a.json", folders=(one, other))
    assert found.picture("a.jpg").path == other / "a.jpg"
    assert found.picture("b.jpg").path == one / "b.jpg"


def test_images_from_a_folder_by_path_then_by_name(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "in").mkdir(parents=True)
    for name in ("in/a.jpg", "b.jpg"):
        (there / name).touch()
    (tmp_path / "own.jpg").touch()
    found = Shelf(tmp_path / "a.json", images_from=there)
    assert found.picture("in/a.jpg").path == there / "in/a.jpg"
    assert found.picture("elsewhere/deep/b.jpg").path == there / "b.jpg"
    assert found.picture("/gone/b.jpg").path == there / "b.jpg"
    assert found.picture("own.jpg").path == tmp_path / "own.jpg"
    assert found.picture("c.jpg").path == there / "c.jpg"  # where it is missed
    (tmp_path / "in").mkdir()
    for name in ("in/a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    assert found.picture("in/a.jpg").path == there / "in/a.jpg"  # asked first
    assert found.picture("b.jpg").path == found.picture(str(tmp_path / "b.jpg")).path == there / "b.jpg"
    assert found.picture(str(tmp_path / "own.jpg")).path == tmp_path / "own.jpg"


@pytest.mark.parametrize("content", [None, b"", b"PK but no zip"])
def test_images_from_what_is_neither(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UsageError, match="images_from"):
        Shelf(tmp_path / "a.json", images_from=tmp_path / "a.zip")


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_images_from_a_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", **{"val/a.jpg": b"A", "one/b.jpg": b"1", "two/b.jpg": b"2", "c.jpg": b"A"})
    found = Shelf(tmp_path / "a.json", images_from=path)
    a = found.picture("a.jpg").path
    assert (a.parent, a.suffix, a.read_bytes()) == (tmp_path / "p.zip.pictures", ".jpg", b"A")
    assert found.picture("./val/a.jpg").path == found.picture("/anywhere/c.jpg").path == a
    assert found.picture("one/b.jpg").path.read_bytes() == b"1"
    assert found.picture("b.jpg").path == tmp_path / "b.jpg"  # two have this name: no guess
    before = a.stat().st_mtime_ns
    again = Shelf(tmp_path / "a.json", images_from=path)
    assert again.picture("a.jpg").path.stat().st_mtime_ns == before
    assert (
        Shelf(tmp_path / "a.json", images_from=path, pictures_to=tmp_path / "x").picture("a.jpg").path.parent.name
        == "x"
    )


def test_a_zip_that_is_cut_or_wicked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "p.zip", **{"../out.jpg": b"A", "bomb.jpg": bytes(9000), "bad.jpg": b"precious"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"bad.jpg") + 10] ^= 255
    path.write_bytes(raw)
    found = Shelf(tmp_path / "a.json", images_from=path)
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        found.picture("out.jpg")
    with pytest.raises(LorgnetteError, match="cannot be unpacked"):
        found.picture("bad.jpg")
    monkeypatch.setattr(limited, "__kwdefaults__", {"most": 1000})
    with pytest.raises(LorgnetteError, match="unpacks to more than 1,000 bytes"):
        found.picture("bomb.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.zip"]


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_zip_with_a_damaged_picture_inside(tmp_path: Path) -> None:
    """Damage in a deflated stream is zlib's to find, before any checksum is."""
    path = zipped(tmp_path / "p.zip", **{"a.jpg": bytes(range(256)) * 400})
    content = bytearray(path.read_bytes())
    content[45:60] = b"\xff" * 15
    path.write_bytes(content)
    found = Shelf(tmp_path / "a.json", images_from=path)
    with pytest.raises(LorgnetteError, match=r"'a\.jpg' cannot be unpacked: Error -3"):
        found.picture("a.jpg")


def test_a_data_uri_becomes_a_file_once(tmp_path: Path) -> None:
    found = Shelf(tmp_path / "a.jsonl")
    one = found.picture(uri(b"1", "image/jpeg")).path
    assert (one.parent, one.suffix, one.read_bytes()) == (tmp_path / "a.jsonl.pictures", ".jpg", b"1")
    os.utime(one, (1, 1))
    assert Shelf(tmp_path / "a.jsonl").picture("  " + uri(b"1", "IMAGE/JPEG;charset=x") + "\n").path == one
    assert one.stat().st_mtime == 1
    assert found.picture(uri(b"2", "image/x.y+z-verylong")).path.suffix == ".xyzve"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("data:image/png;base64,", "no bytes"),
        ("data:image/png;base64,###", "broken"),
        ("data:image/png;base64,AAA", "broken"),
        ("data:image/png,AAAA", "address"),
        ("data:text/plain;base64,AAAA", "address"),
        ("data:image/../../x;base64,AAAA", "address"),
    ],
)
def test_data_uris_that_are_none(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(LorgnetteError, match=what):
        Shelf(tmp_path / "a.jsonl").picture(text)
    assert not list(tmp_path.iterdir())


def test_no_place_for_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.pictures").write_text("a file stands there")
    with pytest.raises(NoPlaceError) as caught:
        Shelf(tmp_path / "a.jsonl").picture(uri(b"1"))
    assert "pictures_to" in (caught.value.remedy or "")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_resolver, "LARGEST", 10)
    with pytest.raises(LorgnetteError, match="11 bytes"):
        Shelf(tmp_path / "a.tar").laid(bytes(11), "jpg")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "c:a", "\\\\host\\a", "a\0b"])
def test_names_that_leave(name: str) -> None:
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        inside(name)


def test_names_that_stay() -> None:
    for name in ("a.jpg", "./a/b.jpg", "a..b/c...jpg", "图/像.jpg"):
        assert inside(name) == name


def test_limited() -> None:
    assert limited(io.BytesIO(b"123"), "x", most=3) == b"123"
    with pytest.raises(LorgnetteError, match="more than 2 bytes"):
        limited(io.BytesIO(b"123"), "x", most=2)
