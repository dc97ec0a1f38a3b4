import zipfile
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.archive import check_member_size, list_members, open_zip


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_members_are_found_without_what_macos_leaves(tmp_path: Path, zipped: Any) -> None:
    content = zipped(**{"a/x.csv": "1", "__MACOSX/a/._x.csv": "2", "a/._y.csv": "3", "b.TXT": "4", "c.CSV": "5"})
    with open_zip(write(tmp_path / "a.zip", content)) as archive:
        assert [info.filename for info in list_members(archive, (".csv",))] == ["a/x.csv", "c.CSV"]


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "a/../../x.jpg", "C:/x.jpg", "..\\x.jpg"])
def test_a_path_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(LorgnetteError, match="leaves its folder"), open_zip(tmp_path / "a.zip"):
        pass


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, zipped: Any) -> None:
    content = zipped(**{"a.csv": bytes(50 << 20), "b.csv": b"x" * 100})
    assert len(content) < 100_000
    with open_zip(write(tmp_path / "a.zip", content)) as archive:
        bomb, small = archive.infolist()
        with pytest.raises(LorgnetteError, match=r"a\.csv would unpack from .* to 52,428,800 bytes: refused"):
            check_member_size(bomb, 1 << 40, where="a.zip")
        with pytest.raises(LorgnetteError, match="refused"):
            check_member_size(small, 99, where="a.zip")
        assert check_member_size(small, 100, where="a.zip") is small


def test_what_is_no_zip_is_named(tmp_path: Path, zipped: Any) -> None:
    whole = zipped(**{"a.csv": "x" * 1000})
    for content in (b"", b"no zip", whole[:-30]):
        with (
            pytest.raises(LorgnetteError, match="the zip file cannot be read"),
            open_zip(write(tmp_path / "a", content)),
        ):
            pass
    with pytest.raises(LorgnetteError, match="cannot be read: No such file"), open_zip(tmp_path / "none.zip"):
        pass
    damaged = bytearray(zipfile_stored(tmp_path))
    damaged[45] ^= 255
    with (
        pytest.raises(LorgnetteError, match="the zip file cannot be read: Bad CRC"),
        open_zip(write(tmp_path / "b", bytes(damaged))) as archive,
    ):
        archive.read("a.csv")


def zipfile_stored(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "s.zip", "w") as archive:
        archive.writestr("a.csv", "x" * 1000)
    return (folder / "s.zip").read_bytes()


def test_damage_inside_is_named(tmp_path: Path, zipped: Any) -> None:
    content = bytearray(zipped(**{"a.csv": bytes(range(256)) * 400}))
    content[45:60] = b"\xff" * 15
    with (
        pytest.raises(LorgnetteError, match="the zip file cannot be read: Error -3"),
        open_zip(write(tmp_path / "a.zip", bytes(content))) as archive,
    ):
        archive.read("a.csv")
