import base64
import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import PIL.Image
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
        ("FILE://localhost/x/a#1?.jpg", "/x/a#1?.jpg"),
        ("图像 space,comma.jpg", "/data/图像 space,comma.jpg"),
        ("C:/a.jpg", "/data/C:/a.jpg"),
    ],
)
def test_a_path_becomes_absolute_and_normalized(written: str, path: str) -> None:
    assert ImageResolver(Path("/data/a.csv")).resolve(written).path == Path(path)


@pytest.mark.parametrize("written", ["", "  ", "a\0b", "https://host/a.jpg", "data:text/html," + "A" * 99])
def test_what_is_no_path_is_refused(written: str) -> None:
    with pytest.raises(LorgnetteError) as caught:
        ImageResolver(Path("/data/a.csv")).resolve(written)
    assert len(caught.value.message) < 120
    assert caught.value.hint


@pytest.mark.parametrize("written", ["file://host/x/a.jpg", "file://C:/x/a.jpg", "file://x"])
def test_a_file_of_another_machine_is_refused(written: str) -> None:
    """Not /x/a.jpg of this one."""
    with pytest.raises(LorgnetteError, match=r"on another machine, '(host|C:|x)'"):
        ImageResolver(Path("/data/a.csv")).resolve(written)


def make_png() -> bytes:
    content = io.BytesIO()
    PIL.Image.new("RGB", (9, 9), "red").save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
def test_base64_without_a_data_uri_is_an_image(tmp_path: Path, encode: Callable[[bytes], bytes]) -> None:
    for content, suffix in ((make_png(), ".png"), (b"\xff\xd8\xff\xe0" + bytes(range(256)), ".jpg")):
        path = ImageResolver(tmp_path / "a.jsonl").resolve(encode(content).decode()).path
        assert (path.parent.name, path.suffix, path.read_bytes()) == ("a.jsonl.images", suffix, content)


@pytest.mark.parametrize(
    "text", ["iVBOR" + "A" * 3000, base64.b64encode(bytes(range(99, 255)) * 9).decode(), "/9j/" + "A" * 71]
)
def test_base64_that_is_no_image_is_refused_in_one_short_line(tmp_path: Path, text: str) -> None:
    """It is neither printed whole nor taken for a path."""
    with pytest.raises(LorgnetteError) as caught:
        ImageResolver(tmp_path / "a.jsonl").resolve(text)
    assert len(str(caught.value)) < 300
    assert not list(tmp_path.iterdir())


def test_a_long_path_without_an_ending_is_still_a_path() -> None:
    written = "/".join(["images", *["deadbeef"] * 12])
    assert ImageResolver(Path("/data/a.csv")).resolve(written).path == Path("/data") / written


def test_a_path_of_windows_is_found(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "sets").mkdir(parents=True)
    for name in ("a.jpg", "sets/b.jpg", "we\\ird.jpg"):
        (images / name).touch()
    resolver = ImageResolver(tmp_path / "x.json", images_from=images)
    for written, name in (
        ("D:\\sets\\vlm\\a.jpg", "a.jpg"),
        ("\\\\host\\share\\a.jpg", "a.jpg"),
        ("D:\\sets\\b.jpg", "sets/b.jpg"),
        ("sets\\b.jpg", "sets/b.jpg"),
        ("we\\ird.jpg", "we\\ird.jpg"),
    ):
        assert resolver.resolve(written).path == images / name
    assert ImageResolver(tmp_path / "x.json").resolve("images\\sets\\b.jpg").path == images / "sets/b.jpg"
    missing = ImageResolver(tmp_path / "x.json").resolve("images\\none.jpg").path
    assert str(missing).endswith("images\\none.jpg"), "as written, for the error"
    path = write_zip(tmp_path / "p.zip", **{"sets/b.jpg": b"B"})
    assert ImageResolver(tmp_path / "x.json", images_from=path).resolve("D:\\sets\\b.jpg").path.read_bytes() == b"B"


def test_an_image_found_by_its_name_alone_remembers_its_path(tmp_path: Path) -> None:
    (tmp_path / "flat" / "in").mkdir(parents=True)
    for name in ("0.png", "in/1.png"):
        (tmp_path / "flat" / name).touch()
    path = write_zip(tmp_path / "p.zip", **{"x/0.png": b"0", "in/1.png": b"1"})
    for images_from in (tmp_path / "flat", path):
        resolver = ImageResolver(tmp_path / "x.json", images_from=images_from)
        for written, is_by_name in (
            ("A/0.png", True),
            ("in/1.png", False),
            ("./in/1.png", False),
            ("A/none.png", False),
        ):
            assert resolver.resolve(written).written == (written if is_by_name else "")
    assert ImageResolver(tmp_path / "x.json", images_from=tmp_path / "flat").resolve("0.png").written == ""


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "cp932", "cp437", "cp1251"])
def test_names_of_a_zip_may_have_any_encoding(tmp_path: Path, encoding: str) -> None:
    name = {"gb18030": "图像.png", "cp932": "画像.png", "cp1251": "фото.png"}.get(encoding, "café.png")
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("xxxxxxxxxx"[: len(name.encode(encoding))], b"0")
    plain = b"xxxxxxxxxx"[: len(name.encode(encoding))]
    path.write_bytes(path.read_bytes().replace(plain, name.encode(encoding)))  # without the mark of UTF-8
    for written in (name, f"elsewhere/{name}"):
        assert ImageResolver(tmp_path / "a.json", images_from=path).resolve(written).path.read_bytes() == b"0"


def test_the_fallback_folder_is_used_only_for_missing_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (second / "a.jpg").touch()
    assert ImageResolver(first / "a.csv").resolve("a.jpg", fallback_folder=second).path == second / "a.jpg"
    assert ImageResolver(first / "a.csv").resolve("b.jpg", fallback_folder=second).path == first / "b.jpg"
    (first / "a.jpg").touch()
    assert ImageResolver(first / "a.csv").resolve("a.jpg", fallback_folder=second).path == first / "a.jpg"


def test_equal_paths_are_resolved_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (second / "b.jpg").touch()
    resolver = ImageResolver(first / "a.csv")
    assert resolver.resolve("a.jpg") is resolver.resolve(" a.jpg ")
    assert resolver.resolve("b.jpg").path == first / "b.jpg"
    assert resolver.resolve("b.jpg", fallback_folder=second).path == second / "b.jpg"
    for _ in range(2):
        with pytest.raises(LorgnetteError, match="empty"):
            resolver.resolve("")


def test_the_first_folder_with_the_file_wins(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "x").mkdir(parents=True)
    second.mkdir()
    (second / "a.jpg").touch()
    resolver = ImageResolver(tmp_path / "a.json", folders=(first, second))
    assert resolver.resolve("a.jpg").path == second / "a.jpg"
    assert resolver.resolve("b.jpg").path == first / "b.jpg"


def test_images_from_a_folder_by_path_then_by_name(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "in").mkdir(parents=True)
    for name in ("in/a.jpg", "b.jpg"):
        (images / name).touch()
    (tmp_path / "own.jpg").touch()
    resolver = ImageResolver(tmp_path / "a.json", images_from=images)
    assert resolver.resolve("in/a.jpg").path == images / "in/a.jpg"
    assert resolver.resolve("elsewhere/deep/b.jpg").path == images / "b.jpg"
    assert resolver.resolve("/gone/b.jpg").path == images / "b.jpg"
    assert resolver.resolve("own.jpg").path == tmp_path / "own.jpg"
    assert resolver.resolve("c.jpg").path == images / "c.jpg"
    (tmp_path / "in").mkdir()
    for name in ("in/a.jpg", "b.jpg"):
        (tmp_path / name).touch()
    assert resolver.resolve("in/a.jpg").path == images / "in/a.jpg"  # searched first
    assert resolver.resolve("b.jpg").path == resolver.resolve(str(tmp_path / "b.jpg")).path == images / "b.jpg"
    assert resolver.resolve(str(tmp_path / "own.jpg")).path == tmp_path / "own.jpg"


@pytest.mark.parametrize("content", [None, b"", b"PK but no zip"])
def test_images_from_must_be_a_folder_or_a_zip(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UsageError, match="images_from"):
        ImageResolver(tmp_path / "a.json", images_from=tmp_path / "a.zip")


def test_a_wrong_images_from_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UsageError) as caught:
        ImageResolver(tmp_path / "a.json", images_from=tmp_path / "Image")
    assert caught.value.hint == f"did you mean {tmp_path / 'images'}?"


def write_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_images_from_a_zip(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.zip", **{"val/a.jpg": b"A", "one/b.jpg": b"1", "two/b.jpg": b"2", "c.jpg": b"A"})
    resolver = ImageResolver(tmp_path / "a.json", images_from=path)
    a = resolver.resolve("a.jpg").path
    assert (a.parent, a.suffix, a.read_bytes()) == (tmp_path / "p.zip.images", ".jpg", b"A")
    assert resolver.resolve("./val/a.jpg").path == resolver.resolve("/anywhere/c.jpg").path == a
    assert resolver.resolve("one/b.jpg").path.read_bytes() == b"1"
    assert resolver.resolve("b.jpg").path == tmp_path / "b.jpg"  # two members have this name
    before = a.stat().st_mtime_ns
    second = ImageResolver(tmp_path / "a.json", images_from=path)
    assert second.resolve("a.jpg").path.stat().st_mtime_ns == before
    assert (
        ImageResolver(tmp_path / "a.json", images_from=path, images_to=tmp_path / "x").resolve("a.jpg").path.parent.name
        == "x"
    )


def test_broken_and_malicious_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "p.zip", **{"../out.jpg": b"A", "bomb.jpg": bytes(9000), "bad.jpg": b"precious"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"bad.jpg") + 10] ^= 255
    path.write_bytes(raw)
    resolver = ImageResolver(tmp_path / "a.json", images_from=path)
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        resolver.resolve("out.jpg")
    with pytest.raises(LorgnetteError, match="cannot be unpacked"):
        resolver.resolve("bad.jpg")
    monkeypatch.setattr(read_member, "__kwdefaults__", {"max_bytes": 1000})
    with pytest.raises(LorgnetteError, match="unpacks to more than 1,000 bytes"):
        resolver.resolve("bomb.jpg")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.zip"]


def uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    """zlib finds damage in a deflated stream before any checksum is compared."""
    path = write_zip(tmp_path / "p.zip", **{"a.jpg": bytes(range(256)) * 400})
    content = bytearray(path.read_bytes())
    content[45:60] = b"\xff" * 15
    path.write_bytes(content)
    resolver = ImageResolver(tmp_path / "a.json", images_from=path)
    with pytest.raises(LorgnetteError, match=r"'a\.jpg' cannot be unpacked: Error -3"):
        resolver.resolve("a.jpg")


def test_a_data_uri_is_extracted_once(tmp_path: Path) -> None:
    resolver = ImageResolver(tmp_path / "a.jsonl")
    first = resolver.resolve(uri(b"1", "image/jpeg")).path
    assert (first.parent, first.suffix, first.read_bytes()) == (tmp_path / "a.jsonl.images", ".jpg", b"1")
    os.utime(first, (1, 1))
    assert ImageResolver(tmp_path / "a.jsonl").resolve("  " + uri(b"1", "IMAGE/JPEG;charset=x") + "\n").path == first
    assert first.stat().st_mtime == 1
    assert resolver.resolve(uri(b"2", "image/x.y+z-verylong")).path.suffix == ".xyzve"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,###", "broken"),
        ("data:image/png;base64,AAA", "broken"),
        ("data:image/png,AAAA", "URL"),
        ("data:text/plain;base64,AAAA", "URL"),
        ("data:image/../../x;base64,AAAA", "URL"),
    ],
)
def test_broken_data_uris_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LorgnetteError, match=message):
        ImageResolver(tmp_path / "a.jsonl").resolve(text)
    assert not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_extracted_stops_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.images").write_text("a file in the way")
    with pytest.raises(CannotExtractError) as caught:
        ImageResolver(tmp_path / "a.jsonl").resolve(uri(b"1"))
    assert "images_to" in (caught.value.hint or "")


def test_an_extracted_image_has_a_maximum_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_resolver, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(LorgnetteError, match="11 bytes"):
        ImageResolver(tmp_path / "a.tar").extract(bytes(11), "jpg")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "..\\a", "C:\\a", "c:a", "\\\\host\\a", "a\0b"])
def test_member_names_that_leave_the_archive_are_refused(name: str) -> None:
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        check_member_name(name)


def test_other_member_names_pass() -> None:
    for name in ("a.jpg", "./a/b.jpg", "a..b/c...jpg", "图/像.jpg"):
        assert check_member_name(name) == name


def test_a_member_has_a_maximum_size() -> None:
    assert read_member(io.BytesIO(b"123"), "x", max_bytes=3) == b"123"
    with pytest.raises(LorgnetteError, match="more than 2 bytes"):
        read_member(io.BytesIO(b"123"), "x", max_bytes=2)
