import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorgnette.data import read
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example


def test_a_zipped_table_and_the_images_beside_it(tmp_path: Path, zipped: Callable[..., bytes], jpeg: Any) -> None:
    table = "image_path,caption\nx/a.jpg,one\nb.jpg,two\n"
    path = tmp_path / "a.zip"
    members = {"t/c.csv": table, "x/a.jpg": jpeg(1), "y/b.jpg": jpeg(2), "__MACOSX/t/._c.csv": "1", "t/._d.csv": "2"}
    path.write_bytes(zipped(**members, **{"README.txt": "hello"}))
    rows = [row for row in read(path) if isinstance(row, Example)]
    assert [(row.source, row.row, row.reference) for row in rows] == [(path, 2, "one"), (path, 3, "two")]
    assert [row.images[0].path.read_bytes() for row in rows] == [jpeg(1), jpeg(2)]
    assert {row.images[0].path.parent for row in rows} == {tmp_path / "a.zip.images"}


def test_every_text_format_may_be_zipped(tmp_path: Path, zipped: Callable[..., bytes]) -> None:
    record = {"image_path": "/a.jpg", "caption": "é\nb"}
    contents = {
        "a.csv": 'image_path,caption\n/a.jpg,"é\nb"\n',
        "a.tsv": 'image_path\tcaption\n/a.jpg\t"é\nb"\n',
        "a.jsonl": json.dumps(record) + "\n",
        "a.json": json.dumps([record]),
    }
    for name, content in contents.items():
        (tmp_path / "a.zip").write_bytes(zipped(**{name: content}))
        [row] = read(tmp_path / "a.zip")
        assert isinstance(row, Example)
        assert (row.reference, row.images[0].path) == ("é\nb", Path("/a.jpg"))


def test_no_or_two_tables_are_refused(tmp_path: Path, zipped: Callable[..., bytes]) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"a.csv": "x", "b.csv": "y"}))
    with pytest.raises(LorgnetteError, match=r"holds 2 data files \(a\.csv, b\.csv\), not one"):
        list(read(tmp_path / "a.zip"))
    (tmp_path / "b.zip").write_bytes(zipped(**{"a.txt": "x"}))
    with pytest.raises(LorgnetteError, match=r"holds 0 data files \(none\), not one"):
        list(read(tmp_path / "b.zip"))


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, zipped: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = zipped(**{"a.csv": bytes(50 << 20)})
    assert len(content) < 100_000
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(LorgnetteError, match=r"a\.csv would unpack from .* to 52,428,800 bytes: refused"):
        list(read(tmp_path / "a.zip"))
    monkeypatch.setattr("lorgnette.data.formats.zip_archive.MAX_TABLE_BYTES", 99)
    (tmp_path / "b.zip").write_bytes(zipped(**{"a.csv": b"x" * 100}))
    with pytest.raises(LorgnetteError, match="refused"):
        list(read(tmp_path / "b.zip"))


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:/x.jpg", "..\\x.jpg"])
def test_a_path_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.csv", "image_path,caption\n")
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        list(read(tmp_path / "a.zip"))


def test_a_broken_zip_is_named(tmp_path: Path, zipped: Callable[..., bytes]) -> None:
    path = tmp_path / "a.zip"
    whole = zipped(**{"a.csv": "x" * 1000})
    for content in (b"", b"no zip", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(LorgnetteError, match="the zip file cannot be read"):
            list(read(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", "image_path,caption\n" + "a.jpg,x\n" * 200)
    damaged = bytearray(path.read_bytes())
    damaged[145] ^= 255
    path.write_bytes(bytes(damaged))
    with pytest.raises(LorgnetteError, match="the zip file cannot be read: Bad CRC"):
        list(read(path))
    packed = bytearray(zipped(**{"a.csv": "image_path,caption\n" + "".join(f"{i}.jpg,{i * 7}\n" for i in range(900))}))
    packed[45:60] = b"\xff" * 15
    path.write_bytes(bytes(packed))
    with pytest.raises(LorgnetteError, match="the zip file cannot be read: Error -3"):
        list(read(path))


def test_a_zipped_index_of_files_is_refused_in_one_line(tmp_path: Path, zipped: Callable[..., bytes]) -> None:
    """Paths in a zip are none of the system."""
    (tmp_path / "a.zip").write_bytes(zipped(**{"t/i.json": json.dumps({"a": {"file_name": "i.json"}})}))
    with pytest.raises(LorgnetteError, match="the keys 'a', not a list of examples"):
        list(read(tmp_path / "a.zip"))
