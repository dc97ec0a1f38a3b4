import base64
import io
import os
import zipfile
from pathlib import Path

import pytest

from lorgnette.data import image_resolver
from lorgnette.data.image_resolver import CannotExtractError, ImageResolver, check_member_name, read_member
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
    assert ImageResolver(Path("/data/a.csv")).resolve(written).path == Path(path)


@pytest.mark.parametrize("written", ["", "  ", "a\0b", "https://host/a.jpg", "data:text/html," + "A" * 99])
def test_what_is_no_path(written: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        ImageResolver(Path("/data/a.csv")).resolve(written)
    assert len(caught.value.message) < 120
    assert caught.value.hint


def test_the_other_folder_serves_where_the_first_has_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    (other / "a.jpg").touch()
    assert ImageResolver(one / "a.csv").resolve("a.jpg", fallback_folder=other).path == other / "a.jpg"
    assert ImageResolver(one / "a.csv").resolve("b.jpg", fallback_folder=other).path == one / "b.jpg"
    (one / "a.jpg").touch()
    assert ImageResolver(one / "a.csv").resolve("a.jpg", fallback_folder=other).path == one / "a.jpg"


def test_the_captions_of_a_picture_share_it_and_no_other(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    (other / "b.jpg").touch()
    found = ImageResolver(one / "a.csv")
    assert found.resolve("a.jpg") is found.resolve(" a.jpg ")
    assert found.resolve("b.jpg").path == one / "b.jpg"
    assert found.resolve("b.jpg", fallback_folder=other).path == other / "b.jpg"
    for _ in range(2):
        with pytest.raises(LorgnetteError, match="empty"):
            found.resolve("")


def test_several_folders_the_first_that_has_it(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "x").mkdir(parents=True)
    other.mkdir()
    (other / "a.jpg").touch()
    found = ImageResolver(tmp_path / "a.json", folders=(one, other))
    assert found.resolve("a.jpg").path == other / "a.jpg"
    assert found.resolve("b.jpg").path == one / "b.jpg"


def test_images_from_a_folder_by_path_then_by_name(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "in").mkdir(parents=True)
    for name in ("in/a.jpg", "b.jpg"):
        (there / name).touch()
    (tmp_path / "own.jpg").touch()
    found = ImageResolver(tmp_path / "a.json", images_from=there)
    assert found.resolve("in/a.jpg").path == there / "in/a.jpg"
    assert found.resolve("elsewhere/deep/b.jpg").path == there / "b.jpg"
    assert found.resolve("/gone/b.jpg").path == there / "b.jpg"
    assert found.resolve("own.jpg").path == tmp_path / "own.jpg"
    assert found.resolve("c.jpg").path == there / "c.jpg"  # where it is missed
    (tmp_path / "in").mkdir()
    for name in ("in/a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    assert found.resolve("in/a.jpg").path == there / "in/a.jpg"  # asked first
    assert found.resolve("b.jpg").path == found.resolve(str(tmp_path / "b.jpg")).path == there / "b.jpg"
    assert found.resolve(str(tmp_path / "own.jpg")).path == tmp_path / "own.jpg"


@pytest.mark.parametrize("content", [None, b"", b"PK but no zip"])
def test_images_from_what_is_neither(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UsageError, match="images_from"):
        ImageResolver(tmp_path / "a.json", images_from=tmp_path / "a.zip")


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_images_from_a_zip(tmp_path: Path) -> None:
    path = zipped(tmp_path / "p.zip", **{"val/a.jpg": b"A", "one/b.jpg": b"1", "two/b.jpg": b"2", "c.jpg": b"A"})
    found = ImageResolver(tmp_path / "a.json", images_from=path)
    a = found.resolve("a.jpg").path
    assert (a.parent, a.suffix, a.read_bytes()) == (tmp_path / "p.zip.pictures", ".jpg", b"A")
    assert found.resolve("./val/a.jpg").path == found.resolve("/anywhere/c.jpg").path == a
    assert found.resolve("one/b.jpg").path.read_bytes() == b"1"
    assert found.resolve("b.jpg").path == tmp_path / "b.jpg"  # two have this name: no guess
    before = a.stat().st_mtime_ns
    again = ImageResolver(tmp_path / "a.json", images_from=path)
    assert again.resolve("a.jpg").path.stat().st_mtime_ns == before
    assert (
        ImageResolver(tmp_path / "a.json", images_from=path, images_to=tmp_path / "x").resolve("a.jpg").path.parent.name
        == "x"
    )


def test_a_zip_that_is_cut_or_wicked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "p.zip", **{"../out.jpg": b"A", "bomb.jpg": bytes(9000), "bad.jpg": b"precious"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"bad.jpg") + 10] ^= 255
    path.write_bytes(raw)
    found = ImageResolver(tmp_path / "a.json", images_from=path)
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        found.resolve("out.jpg")
    with pytest.raises(LorgnetteError, match="cannot be unpacked"):
        found.resolve("bad.jpg")
    monkeypatch.setattr(read_member, "__kwdefaults__", {"most": 1000})
    with pytest.raises(LorgnetteError, match="unpacks to more than 1,000 bytes"):
        found.resolve("bomb.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.zip"]


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_zip_with_a_damaged_picture_inside(tmp_path: Path) -> None:
    """Damage in a deflated stream is zlib's to find, before any checksum is."""
    path = zipped(tmp_path / "p.zip", **{"a.jpg": bytes(range(256)) * 400})
    content = bytearray(path.read_bytes())
    content[45:60] = b"\xff" * 15
    path.write_bytes(content)
    found = ImageResolver(tmp_path / "a.json", images_from=path)
    with pytest.raises(LorgnetteError, match=r"'a\.jpg' cannot be unpacked: Error -3"):
        found.resolve("a.jpg")


def test_a_data_uri_becomes_a_file_once(tmp_path: Path) -> None:
    found = ImageResolver(tmp_path / "a.jsonl")
    one = found.resolve(uri(b"1", "image/jpeg")).path
    assert (one.parent, one.suffix, one.read_bytes()) == (tmp_path / "a.jsonl.pictures", ".jpg", b"1")
    os.utime(one, (1, 1))
    assert ImageResolver(tmp_path / "a.jsonl").resolve("  " + uri(b"1", "IMAGE/JPEG;charset=x") + "\n").path == one
    assert one.stat().st_mtime == 1
    assert found.resolve(uri(b"2", "image/x.y+z-verylong")).path.suffix == ".xyzve"


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
        ImageResolver(tmp_path / "a.jsonl").resolve(text)
    assert not list(tmp_path.iterdir())


def test_no_place_for_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.pictures").write_text("a file stands there")
    with pytest.raises(CannotExtractError) as caught:
        ImageResolver(tmp_path / "a.jsonl").resolve(uri(b"1"))
    assert "pictures_to" in (caught.value.hint or "")


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_resolver, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(LorgnetteError, match="11 bytes"):
        ImageResolver(tmp_path / "a.tar").extract(bytes(11), "jpg")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "c:a", "\\\\host\\a", "a\0b"])
def test_names_that_leave(name: str) -> None:
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        check_member_name(name)


def test_names_that_stay() -> None:
    for name in ("a.jpg", "./a/b.jpg", "a..b/c...jpg", "图/像.jpg"):
        assert check_member_name(name) == name


def test_limited() -> None:
    assert read_member(io.BytesIO(b"123"), "x", max_bytes=3) == b"123"
    with pytest.raises(LorgnetteError, match="more than 2 bytes"):
        read_member(io.BytesIO(b"123"), "x", max_bytes=2)
