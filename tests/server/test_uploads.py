"""What clients send as an image, and what becomes of it. CVEs and issues are of other projects."""

import base64
import hashlib
import io
import os
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import PIL.Image
import pytest

from lorgnette.data.images import load_image
from lorgnette.errors import LorgnetteError
from lorgnette.server.api_errors import ApiError
from lorgnette.server.uploads import FORMATS, MAX_PIXELS, UploadStore, explain_upload

WHERE = "messages.0.content.1.image_url"


def to_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def draw(kind: str = "PNG", size: tuple[int, int] = (8, 6), color: int = 0, **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (color, 0, 0)).save(file, kind, **options)
    return file.getvalue()


def write_png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG whose header promises any size. more: chunks behind its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), *more, (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def store() -> Any:
    store = UploadStore()
    yield store
    store.close()


def refuse(store: UploadStore, url: str) -> ApiError:
    """The error. Nothing stays in the folder, and its path stays out of the message."""
    with pytest.raises(ApiError) as raised:
        store.add(url, WHERE, 0)
    assert (raised.value.status, raised.value.param) == (400, WHERE)
    assert str(store.folder) not in raised.value.message
    assert [path for path in store.folder.rglob("*") if path.is_file()] == []
    assert store.num_bytes == 0
    return raised.value


# --- nothing is fetched, nothing is opened: SSRF vllm CVE-2025-6242, ms-swift#9740, LLaMA-Factory#10646, #8556,
# --- FastChat#3873, llama-cpp-python#2220; local files in LLaMA-Factory, LMDeploy; Gradio CVE-2023-51449, CVE-2024-1561

FOREIGN_URLS = [
    "http://169.254.169.254/latest/meta-data/", "https://images.example/a.png", "HTTP://127.0.0.1:8787/health",
    "http://[::ffff:169.254.169.254]/", "http://images.example\\@127.0.0.1/", "ftp://images.example/a.png",
    "file:///etc/passwd", "file:/etc/passwd", "/etc/passwd", "../../../../etc/passwd", "~/.ssh/id_rsa", "a.png",
    "//host/share/a.png", "C:\\Users\\a.png", "gopher://127.0.0.1:6379/_FLUSHALL", "blob:http://127.0.0.1:8787/1",
    "javascript:alert(1)", "attachment:a.png", "s3://bucket/a.png", "", " ", "data:", "data:image/png",
    "data:image/png,", "data:image/png;base64", "data:image/png,%89PNG", "data:image/svg+xml,<svg onload=alert(1)>",
    "data:text/html;base64,PGI+", "data:application/octet-stream;base64,iVBORw0KGgo=", "image/png;base64,iVBORw0KGgo=",
    "iVBORw0KGgoAAAANSUhEUgAAAAE=", "data:http://images.example/a.png;base64,iVBORw0KGgo=",
    f"data:image/{'x' * 300};base64,iVBORw0KGgo=",
]  # fmt: skip


@pytest.mark.parametrize("url", FOREIGN_URLS)
def test_only_data_urls_are_taken(store: UploadStore, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    def fail(*_: object, **__: object) -> Any:
        pytest.fail("looked for")

    for name in ("getaddrinfo", "create_connection", "socket"):
        monkeypatch.setattr(socket, name, fail)
    for method in ("open", "stat", "read_bytes"):
        monkeypatch.setattr(Path, method, fail)
    with pytest.raises(ApiError) as raised:
        store.add(url, WHERE, 0)
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, "invalid_image_url", WHERE)
    assert len(raised.value.message) < 300


def test_the_scheme_is_named(store: UploadStore) -> None:
    assert "base64,… only, not http:; send the bytes" in refuse(store, "http://images.example/a.png").message
    assert "base64,… only, no path" in refuse(store, "photo.jpg").message
    assert refuse(store, "data:text/html;base64,PGI+").message == "text/html is not the type of an image"


# --- what is taken ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_an_image_becomes_the_file_of_its_bytes(store: UploadStore, kind: str) -> None:
    content = draw(kind)
    path = store.add(to_url(content), WHERE, 3)
    assert path.parent == store.folder / "3"
    assert path.stem == hashlib.sha256(content).hexdigest()
    assert path.read_bytes() == content
    assert load_image(path).size == (8, 6)
    assert store.folder.stat().st_mode & 0o777 == 0o700  # nobody else on this machine reads it
    assert path.suffix.removeprefix(".").replace("jpg", "jpeg") in FORMATS


def test_a_data_url_may_be_written_in_any_way(store: UploadStore) -> None:
    content = draw()
    text = base64.b64encode(content).decode()
    lines = "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    heads = (
        "data:image/png;base64,",
        "DATA:image/PNG;BASE64,",
        "data:;base64,",
        " data:image/png;charset=utf-8;base64,",
    )
    urls = [head + text for head in heads]
    urls += [heads[0] + lines, heads[0] + text + "\n", heads[0] + text.translate(str.maketrans("+/", "-_"))]
    urls += ["data:image/jpeg;base64," + text]  # the bytes tell the format, not the client
    assert len({store.add(url, WHERE, 0) for url in urls}) == 1


@pytest.mark.parametrize(
    "text", ["@@@", "iVBORw0KGgo", "iVBO=Rw0KGgo", "=", "", " ", "iVBORw0KGgo=\0", "ü" * 8, "%69VBORw0KGgo="]
)
def test_broken_base64_is_said(store: UploadStore, text: str) -> None:
    assert refuse(store, f"data:image/png;base64,{text}").code == "invalid_base64"


def test_blanks_cost_no_memory(store: UploadStore) -> None:
    """As many pieces as blanks: splitting 32 MiB at them takes half a gigabyte."""
    import tracemalloc

    url = "data:image/png;base64," + "AA " * 2**18
    tracemalloc.start()
    refuse(store, url)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(url)


# --- what is no image: SVG and HTML that a page would run (stored XSS: Jupyter's nbconvert, Gradio CVE-2024-51751) ---

NO_IMAGES = {
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>": "SVG",
    b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>": "SVG",
    b"<!doctype html><script>alert(1)</script>": "web page",
    b"%PDF-1.7": "PDF",
    b"hello": "not an image in a known format",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n": "not an image in a known format",  # starts Ghostscript
    b"\0" * 100: "zeros",
    b"P6 1 1 255\n\0\0\0": "PPM images are not taken",
    b"P3 1 1 255\n0 0 0": "not an image in a known format",
    b"#define a_width 9\n": "not an image in a known format",
    b"qoif\0\0\0\1\0\0\0\1\3\0": "not an image in a known format",
    b"II*\0\x08\0\0\0": "TIFF images are not taken",
    b"\0\0\1\0\1\0": "ICO images are not taken",
    b"\xff\x4f\xff\x51": "JP2 images are not taken",
    b"\x89PNG": "header is invalid",
    b"GIF8": "header is invalid",
    b"\xff\xd8\xff": "header is invalid",
    b"RIFF\0\0\0\0WEBP": "header is invalid",
    b"BM": "header is invalid",
}


@pytest.mark.parametrize("content", NO_IMAGES, ids=lambda content: repr(content[:12]))
def test_what_is_no_image_is_refused(store: UploadStore, content: bytes) -> None:
    for media_type in ("image/png", "image/svg+xml"):
        error = refuse(store, to_url(content, media_type))
        assert error.code == "invalid_image"
        assert NO_IMAGES[content] in error.message


def test_an_icon_that_hides_a_large_image_is_not_opened(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory says 16×16, and Pillow decodes the PNG inside as it opens the file."""
    inside = write_png(9_000, 9_000)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    assert "ICO images are not taken" in refuse(store, to_url(icon)).message


# --- bombs: vllm#47010, Pillow#515 ---


@pytest.mark.parametrize(
    "size", [(30_000, 30_000), (13_000, 13_000), (50_001, 1_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)]
)
def test_a_bomb_is_refused_by_its_header(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Also with EXIF behind the pixels, which Pillow decodes to find it."""
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for content in (write_png(*size), write_png(*size, (b"tEXt", b"a\0b")), write_png(*size, (b"eXIf", b"MM\0*"))):
        assert len(content) < 100
        error = refuse(store, to_url(content))
        assert error.code == "image_too_large"
        assert error.message.startswith("image is too large: ")
        assert error.message.endswith("; scale it down")


def test_other_formats_promise_sizes_too(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    jpeg, gif, bmp = draw("JPEG"), draw("GIF"), draw("BMP")
    start = jpeg.index(b"\xff\xc0") + 5  # the frame's height and width
    for content in (
        jpeg[:start] + struct.pack(">HH", 60_000, 60_000) + jpeg[start + 4 :],
        gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:],
        bmp[:18] + struct.pack("<ii", 60_000, 60_000) + bmp[26:],
    ):
        assert refuse(store, to_url(content)).code == "image_too_large"


def test_a_file_of_endless_parts_is_not_opened(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A progressive JPEG of 24 MB with a scan every 75 bytes would take hours."""
    content = draw("JPEG", progressive=True)
    monkeypatch.setattr("lorgnette.server.uploads.read_image_size", lambda *_, **__: pytest.fail("opened"))
    error = refuse(store, to_url(content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 100 + content[-2:]))
    assert error.code == "invalid_image"
    assert "far more parts than an image needs" in error.message


def test_the_limits_are_exact(store: UploadStore) -> None:
    assert MAX_PIXELS == 50_000 * 1_000
    assert store.add(to_url(write_png(50_000, 1_000)), WHERE, 0).exists()
    assert store.add(to_url(draw(size=(200, 1))), WHERE, 0).exists()
    for size in ((201, 1), (1, 201)):
        with pytest.raises(ApiError, match="is beyond 200:1; crop it") as raised:
            store.add(to_url(draw(size=size)), WHERE, 0)
        assert raised.value.code == "invalid_image"


def test_what_fails_later_keeps_the_folder_secret(store: UploadStore) -> None:
    """A header that is sound, and no pixels."""
    path = store.add(to_url(draw("JPEG", (64, 64))[:-40]), WHERE, 0)
    with pytest.raises(LorgnetteError) as raised:
        load_image(path)
    assert str(store.folder) in str(raised.value)  # as `train` says it
    error = explain_upload(raised.value, WHERE)
    assert (error.status, error.code, error.param) == (400, "invalid_image", WHERE)
    assert "truncated" in error.message
    assert str(store.folder) not in error.message


# --- the folder is bounded and ends ---


def test_the_images_used_longest_ago_leave() -> None:
    urls = [to_url(draw("BMP", color=color)) for color in range(4)]
    size = len(draw("BMP"))
    store = UploadStore(max_bytes=3 * size)
    paths = [store.add(url, WHERE, 0) for url in urls[:3]]
    assert store.add(urls[0], WHERE, 0) == paths[0]  # used again
    store.add(urls[3], WHERE, 0)
    assert [path.exists() for path in paths] == [True, False, True]
    assert store.num_bytes == 3 * size
    assert store.add(urls[1], WHERE, 0) == paths[1]  # written anew
    assert paths[1].read_bytes() == draw("BMP", color=1)
    store.close()
    assert not store.folder.exists()


def test_what_a_killed_server_left_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = UploadStore()
    path = first.add(to_url(draw("BMP")), WHERE, 0)
    left, new, other = (tmp_path / name for name in ("lorgnette-images-0", "lorgnette-images-1", "images-2"))
    for folder in (left, new, other):
        folder.mkdir()
        (folder / "a.jpg").touch()
    for folder in (left, other, first.folder):
        os.utime(folder, (0, 0))
    UploadStore().close()
    assert [folder.exists() for folder in (left, new, other)] == [False, True, True]
    assert path.exists()  # its server runs
    first.close()
    first.close()
    assert not first.folder.exists()


def test_files_in_use_stay() -> None:
    """A request's images stay until they are encoded, also if they are more than the folder may hold."""
    store = UploadStore(max_bytes=len(draw("BMP")))
    with store.keep():
        paths = [store.add(to_url(draw("BMP", color=color)), WHERE, 0) for color in range(8)]
        with ThreadPoolExecutor(1) as other:
            passing = [
                other.submit(store.add, to_url(draw("BMP", color=color)), WHERE, 0).result() for color in (100, 101)
            ]
        assert [path.exists() for path in paths] == [True] * 8
        assert not passing[0].exists()
    assert store.num_bytes <= len(draw("BMP"))
    assert sum(path.is_file() for path in store.folder.rglob("*")) == 1
    store.close()


def test_other_models_have_other_files(store: UploadStore) -> None:
    """Features are kept by file: two sizes of one image must not share them."""
    url = to_url(draw("BMP"))
    assert store.add(url, WHERE, 0) != store.add(url, WHERE, 1)
    assert store.num_bytes == 2 * len(draw("BMP"))


def test_threads_share_the_folder() -> None:
    urls = [to_url(draw("BMP", color=color)) for color in range(12)]
    store = UploadStore(max_bytes=4 * len(draw("BMP")))

    def use(seed: int) -> int:
        random, num_seen = Random(seed), 0
        for _ in range(60):
            with store.keep():
                color = random.randrange(12)
                path = store.add(urls[color], WHERE, color % 2)
                num_seen += load_image(path).getpixel((0, 0)) == (color, 0, 0)
        return num_seen

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(use, range(4))) == [60] * 4
    files = [path for path in store.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == store.num_bytes <= 4 * len(draw("BMP"))
    store.close()


def test_a_full_disk_is_the_servers_fault(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ApiError, match="cannot be stored: No space left on device") as raised:
        store.add(to_url(draw("BMP")), WHERE, 0)
    assert (raised.value.status, raised.value.type) == (500, "server_error")
    assert list(store.folder.iterdir()) == []
