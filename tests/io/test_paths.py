"""The output path is checked before the work starts; a wrong path names the right one."""

import os
import unicodedata
from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import (
    check_writable,
    find_same_name,
    get_base_name,
    join_sources,
    split_sources,
    suggest_path,
)


def test_an_input_or_a_folder_is_refused(captions: Path) -> None:
    image, link = captions.with_name("red.png"), captions.with_name("link.csv")
    link.symlink_to(captions)
    for out in (captions, link, image):
        with pytest.raises(UsageError, match="would overwrite its own input · --out"):
            check_writable(out, captions, image, Path("gone"))
    with pytest.raises(UsageError, match="a folder, not a file"):
        check_writable(captions.parent, captions)


@pytest.mark.parametrize("name", ["page", "page.1"])
def test_a_page_has_its_suffix(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"a browser shows as text .*name it {tmp_path}/{name}\.html"):
        check_writable(tmp_path / name, is_page=True)
    check_writable(tmp_path / f"{name}.HTML", is_page=True)
    check_writable(tmp_path / name)


def test_a_device_is_refused(captions: Path, tmp_path: Path) -> None:
    """The file that is written beside it would take its place."""
    os.mkfifo(tmp_path / "pipe")
    for out in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UsageError, match="a device, not a file · --out"):
            check_writable(out, captions)


def test_a_path_that_cannot_be_written(captions: Path) -> None:
    with pytest.raises(LorgnetteError, match="cannot write"):
        check_writable(captions / "x")


def test_any_other_path_is_fine_and_stays_unchanged(captions: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    check_writable(page, captions)
    assert not any(page.parent.iterdir())
    page.write_text("old")
    check_writable(page, captions)
    assert page.read_text() == "old"


def test_an_input_in_a_list_is_refused(captions: Path) -> None:
    with pytest.raises(UsageError, match="would overwrite its own input"):
        check_writable(captions, join_sources([captions.with_name("red.png"), captions]))


def test_a_list_of_sources_has_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "b.csv", "one, two.csv", "old, new/c.csv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    for sources in (["a.csv"], ["a.csv", "b.csv"], ["one, two.csv"], ["a.csv", "one, two.csv", "old, new/c.csv"]):
        paths = [Path(source) for source in sources]
        assert list(split_sources(join_sources(paths))) == paths
    assert split_sources(Path("a.csv, b.csv,")) == (Path("a.csv"), Path("b.csv"))
    assert split_sources(Path("gone.csv,b.csv")) == (Path("gone.csv"), Path("b.csv"))
    assert split_sources(Path("hf:me/set")) == (Path("hf:me/set"),)


@pytest.mark.parametrize(
    ("there", "written"),
    [
        ("a.JPG", "A.jpg"),
        ("a b.png", "a%20b.png"),
        ("a%20b.png", "a b.png"),
        ("a&b.png", "a&amp;b.png"),
        (unicodedata.normalize("NFD", "café.png"), unicodedata.normalize("NFC", "café.png")),
        ("Images/Deep/a.png", "images/deep/a.PNG"),
    ],
)
def test_a_name_spelled_in_another_way_is_found(tmp_path: Path, there: str, written: str) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).touch()
    assert find_same_name(tmp_path / written) == tmp_path / there
    assert find_same_name(tmp_path / there) is None, "it is there as written"
    assert find_same_name(tmp_path / f"x{written}") is None
    assert find_same_name(tmp_path / there / "below.png") is None


def test_a_new_file_is_seen(tmp_path: Path) -> None:
    assert find_same_name(tmp_path / "A.png") is None
    (tmp_path / "a.png").touch()
    assert find_same_name(tmp_path / "A.png") == tmp_path / "a.png"


def test_the_nearest_name_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").touch()
    assert suggest_path(tmp_path / "captons.csv", "correct it") == f"did you mean {tmp_path / 'captions.csv'}?"
    assert suggest_path(tmp_path / "Captions.csv", "correct it") == f"did you mean {tmp_path / 'captions.csv'}?"
    for other in ("photographs.json", "none/captions.csv", "nul\0"):
        assert suggest_path(tmp_path / other, "correct it") == "correct it"


@pytest.mark.parametrize(
    "written", ["a.png", "x/a.png", "/x/a.png", "D:\\x\\a.png", "x\\y/a.png", "\\\\host\\x\\a.png"]
)
def test_the_base_name_of_a_path_of_any_system(written: str) -> None:
    assert get_base_name(written) == "a.png"
