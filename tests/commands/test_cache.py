"""`cache`: what is kept is listed; only what is ours, and used by no process, is deleted."""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from lorgnette.commands.cache import CacheItem, clear_cache, format_size, list_cache
from lorgnette.data import read, read_images
from lorgnette.data.download_journal import Journal, JournalRow
from lorgnette.features.cache_folder import ENTRY
from lorgnette.resolve import DATA_FOLDER

FEATURES = Path("home/lorgnette/features")
BLOBS = Path("hf/models--Qwen--a/blobs")


def make_set(name: str, *, num_images: int = 2, num_days: float = 0) -> Path:
    """A set of features that was last opened this number of days ago."""
    folder = FEATURES / name
    folder.mkdir(parents=True)
    (folder / "index").write_bytes(b"\0" * num_images * ENTRY.size)
    (folder / "rows").write_bytes(b"\0" * 1000 * num_images)
    (folder / "lock").touch()
    (folder / "in_use").touch()
    os.utime(folder / "in_use", (time.time() - num_days * 86400,) * 2)
    return folder


def make_download(folder: Path, *images: str) -> Path:
    """A data set that was downloaded into the folder, with images of 10 bytes."""
    with Journal.open(folder, {"source": "hf:a/b"}, "first") as journal:
        (folder / "images").mkdir()
        for number, name in enumerate(images):
            (folder / "images" / name).write_bytes(b"0123456789")
            journal.add_row(JournalRow(f"row {number}", 0, [number, number], [], {name: ["", "", 0, ""]}))
        journal.complete()
    (folder / "data.jsonl").write_text("".join(f'{{"image": "images/{name}", "caption": "x"}}\n' for name in images))
    (folder / "download.json").write_text("{}")
    return folder


def make_part(name: str = "a1") -> Path:
    """What a killed download of a model left beside a finished file."""
    BLOBS.mkdir(parents=True, exist_ok=True)
    (BLOBS / "finished").write_bytes(b"weights")
    (BLOBS / f".{name}.part").write_bytes(b"x" * 100)
    (BLOBS / f".{name}.part.tag").write_text('"v1"')
    return BLOBS / f".{name}.part"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All caches are in this test's folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def run_beside() -> Any:
    """run_beside(code) → a process that runs the code and then waits; it has printed a line."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.communicate()


def make_bytecode() -> Path:
    folder = Path("home/lorgnette/bytecode/usr/lib/torch")
    folder.mkdir(parents=True)
    (folder / "__init__.cpython-311.pyc").write_bytes(b"0" * 100)
    return folder


def find(kind: str) -> list[CacheItem]:
    return [item for item in list_cache() if item.kind == kind]


def test_everything_is_listed_with_size_entries_and_last_use() -> None:
    make_set("old", num_images=3, num_days=10)
    make_download(DATA_FOLDER / "a-b", "1.jpg", "2.jpg")
    make_part()
    (Path("ms") / "models" / "Qwen--a").mkdir(parents=True)
    [features] = find("features")
    assert (features.size, features.num_entries, features.unit) == (3 * (1000 + ENTRY.size), 3, "images")
    assert features.last_use == pytest.approx(time.time() - 10 * 86400, abs=60)
    part, data = sorted(find("downloads"), key=lambda item: item.unit, reverse=True)
    assert (part.path, part.size, part.num_entries, part.hint) == (BLOBS.absolute(), 104, 1, "")
    assert data.path == (DATA_FOLDER / "a-b").absolute()
    assert data.num_entries == 8  # 2 images, data.jsonl, download.json; state, rows and two locks in .source
    assert data.hint == ""
    make_bytecode()
    [bytecode] = find("bytecode")
    assert (bytecode.size, bytecode.num_entries, bytecode.unit, bytecode.hint) == (100, 1, "files", "")
    hf, modelscope = find("shared")
    assert (hf.size, hf.num_entries, hf.hint) == (111, 1, "to clear: hf cache ls, hf cache rm")
    assert (modelscope.num_entries, modelscope.hint) == (1, "to clear: modelscope clear-cache")
    assert json.loads(json.dumps(features.as_dict()))["last_use"].endswith("Z")


def test_without_yes_nothing_is_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [make_set("one"), make_download(DATA_FOLDER / "a-b", "1.jpg")]
    assert len(clear_cache("all", older_than=0)) == 2
    assert all(folder.is_dir() for folder in folders)
    assert "can be freed; to delete: lorgnette cache clear all --older-than 0 --yes\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        ("features", {"data", "part", "bytecode"}),
        ("downloads", {"features", "bytecode"}),
        ("bytecode", {"features", "data", "part"}),
        ("all", set()),
    ],
)
def test_only_the_named_kind_is_deleted(what: Any, kept: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    paths = {"features": make_set("one"), "data": make_download(DATA_FOLDER / "a-b", "1.jpg"), "part": make_part()}
    paths["bytecode"] = make_bytecode()
    size = sum(item.size for name, item in zip(paths, list_cache(), strict=False) if name not in kept)
    removed = clear_cache(what, yes=True)
    assert {name for name, path in paths.items() if path.exists()} == kept
    assert capsys.readouterr().out.endswith(f"{format_size(sum(item.size for item in removed))} freed\n")
    assert size > 0
    assert (BLOBS / "finished").read_bytes() == b"weights"  # of the hub's own cache
    assert clear_cache(what, yes=True) == []


def test_what_was_used_lately_stays() -> None:
    old, new = make_set("old", num_days=10), make_set("new", num_days=2)
    clear_cache("features", older_than=5, yes=True)
    assert (old.exists(), new.exists()) == (False, True)


def test_features_that_a_process_has_open_stay(
    run_beside: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    used, free = make_set("used"), make_set("free")
    run_beside(f"import fcntl; file = open({str(used / 'in_use')!r}, 'ab'); fcntl.flock(file, fcntl.LOCK_SH)")
    assert [item.hint for item in find("features") if item.path.name == "used"] == ["a process uses it"]
    clear_cache("features", yes=True)
    assert (used.exists(), free.exists()) == (True, False)
    assert f"{used.absolute()} stays: a process uses it" in capsys.readouterr().err


def test_a_set_that_was_opened_since_it_was_listed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_set("one")
    items = list_cache()
    monkeypatch.setattr("lorgnette.commands.cache.list_cache", lambda: items)
    with (folder / "in_use").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert clear_cache("features", yes=True) == []
    assert (folder / "rows").exists()


def test_other_files_in_a_set_and_links_stay(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("in_use", "rows", "photo.jpg"):
        (mine / name).write_text("mine")
    folder = make_set("one")
    (folder / "notes.txt").write_text("mine")
    (folder / "rows").unlink()
    (folder / "rows").symlink_to(mine / "photo.jpg")
    (FEATURES / "link").symlink_to(mine)
    clear_cache("features", yes=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert {path.name for path in mine.iterdir()} == {"in_use", "rows", "photo.jpg"}
    assert (FEATURES / "link").is_symlink()


def test_a_data_set_that_a_process_reads_stays(
    run_beside: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Until that process ends; also while another one downloads into it."""
    folder = make_download(DATA_FOLDER / "a-b", "1.jpg")
    lock = str(folder / ".source" / "in_use")
    reader = run_beside(f"import fcntl; file = open({lock!r}, 'ab'); fcntl.flock(file, fcntl.LOCK_SH)")
    assert clear_cache("downloads", yes=True) == []
    assert "stays: a process uses it" in capsys.readouterr().err
    reader.communicate()
    with filelock.FileLock(folder / ".source" / "lock"):
        assert clear_cache("downloads", yes=True) == []
    assert folder.exists()
    clear_cache("downloads", yes=True)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("read_part", "part"), [(read, "data.jsonl"), (read_images, "images"), (read_images, "images/1.jpg")]
)
def test_whatever_is_read_of_a_data_set_holds_it(read_part: Callable[[Path], object], part: str) -> None:
    folder = make_download(DATA_FOLDER / "a-b", "1.jpg")
    read_part(folder / part)
    assert clear_cache("downloads", yes=True) == []


def test_an_unfinished_download_that_goes_on_stays(run_beside: Callable[[str], Any]) -> None:
    part = make_part()
    run_beside(f"import filelock; lock = filelock.FileLock({str(BLOBS / '.lorgnette.lock')!r}); lock.acquire()")
    assert [item.hint for item in find("downloads")] == ["a process downloads it"]
    assert clear_cache("downloads", yes=True) == []
    assert part.exists()


@pytest.mark.parametrize("name", ["data_vl_train.json", "images/mine.jpg", "images/folder/x", "link", "images/link"])
def test_a_data_set_with_files_of_the_user_stays(name: str, tmp_path: Path, capsys: Any) -> None:
    folder = make_download(DATA_FOLDER / "a-b", "1.jpg")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.name == "link":
        path.symlink_to(tmp_path)
    else:
        path.write_text("mine")
    assert clear_cache("downloads", yes=True) == []
    assert (folder / "images" / "1.jpg").exists()
    assert f"such as {name.split('/')[1] if '/' in name else name}" in capsys.readouterr().err


def test_a_link_to_a_data_set_stays(tmp_path: Path) -> None:
    elsewhere = make_download(tmp_path / "elsewhere", "1.jpg")
    DATA_FOLDER.mkdir()
    (DATA_FOLDER / "link").symlink_to(elsewhere)
    (DATA_FOLDER / "own").mkdir()
    (DATA_FOLDER / "own" / "captions.csv").write_text("mine")
    assert [item.hint for item in find("downloads")] == ["a symbolic link: clear what it points to where it is"]
    clear_cache("all", yes=True)
    assert (elsewhere / "images" / "1.jpg").exists()
    assert (DATA_FOLDER / "own" / "captions.csv").exists()


def test_an_interrupted_removal_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_download(DATA_FOLDER / "a-b", "1.jpg", "2.jpg")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            clear_cache("downloads", yes=True)
    assert [item.path for item in find("downloads")] == [folder.absolute()]
    clear_cache("downloads", yes=True)
    assert not folder.exists()


def test_listing_needs_no_torch(cli: Callable[..., Any]) -> None:
    make_set("one")
    code = "import sys; from lorgnette.commands.cache import list_cache; list_cache(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
    listed = cli("cache", "--json")
    assert [item["kind"] for item in json.loads(listed.out)["items"]] == ["features"]
    assert "2 images" in cli("cache").out
    assert cli("cache", "clear", "features", "--yes").out.endswith("2.1 kB freed\n")
