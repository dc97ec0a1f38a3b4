"""The journal: whole lines count, a torn last one does not, a damaged one is named, and a full disk leaves no part."""

import errno
import os
from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.teaching.events import Mended, RoundBegun, Undone
from lorgnette.teaching.journal import Journal, read_events

FIRST = Mended(t=1.25, id="s1", text="a\nb\u2028c é 🎈")
SECOND = Undone(t=2.0, id="s1")
THIRD = RoundBegun(t=3.0, round=1, answers=4, digest="ab")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_events_are_there_when_it_is_opened_again(path: Path) -> None:
    first = Journal.open(path)
    assert first.events == []
    first.append(FIRST)
    first.append(SECOND, THIRD)
    assert read_events(path) == [FIRST, SECOND, THIRD] == first.events
    first.close()
    second = Journal.open(path)
    assert second.events == [FIRST, SECOND, THIRD]
    second.append(FIRST)
    assert len(read_events(path)) == 4
    second.close()


def test_a_torn_last_line_is_no_event(path: Path) -> None:
    """Whatever part of the last line a kill has left."""
    lines = f"{FIRST.to_json()}\n{SECOND.to_json()}\n".encode()
    first = lines.index(b"\n")
    for end in {0, 1, first - 1, first, first + 1, first + 2, *range(0, len(lines), 9), len(lines) - 1}:
        path.write_bytes(lines[:end])
        expected = [FIRST] if end > first else []
        assert read_events(path) == expected
        reopened = Journal.open(path)
        assert reopened.events == expected
        reopened.append(THIRD)
        reopened.close()
        assert read_events(path) == [*expected, THIRD]


@pytest.mark.parametrize("line", [b"{", b"", b'{"event": "guessed"}', b"\x00\x00", b'"\xff"', b"[1]"])
def test_a_damaged_line_is_named(path: Path, line: bytes) -> None:
    content = b"\n".join([FIRST.to_json().encode(), line, SECOND.to_json().encode(), b""])
    path.write_bytes(content)
    for read in (Journal.open, read_events):
        with pytest.raises(LorgnetteError, match="the journal cannot be read") as caught:
            read(path)
        assert caught.value.where == f"{path}, line 2"
    assert path.read_bytes() == content
    assert not any(os.readlink(f"/proc/self/fd/{name}") == str(path) for name in list_descriptors())


def list_descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_nothing_half_written(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    journal = Journal.open(path)
    journal.append(FIRST)
    size, write, num_calls = path.stat().st_size, os.write, iter(range(10))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def write_once(descriptor: int, content: bytes) -> int:
        return write(descriptor, content[:20]) if next(num_calls) == 0 else fail()  # type: ignore[func-returns-value]

    with monkeypatch.context() as patch:
        patch.setattr(os, call, write_once if call == "write" else fail)
        with pytest.raises(LorgnetteError, match="No space left on device") as caught:
            journal.append(SECOND, THIRD)
        assert caught.value.where == str(path)
    assert path.stat().st_size == size
    assert journal.events == [FIRST] == read_events(path)
    journal.append(SECOND)
    assert read_events(path) == [FIRST, SECOND]
    journal.close()


def test_what_could_not_be_cut_off_is_cut_off_by_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.open(path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(LorgnetteError, match="Input/output error"):
            journal.append(FIRST)
    journal.append(SECOND)
    assert read_events(path) == [SECOND]
    journal.close()
    with pytest.raises(LorgnetteError, match="cannot write"):
        journal.append(FIRST)
    journal.close()


def test_a_journal_that_cannot_be_opened(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("")
    (tmp_path / "link.jsonl").symlink_to(target)
    for path in (tmp_path / "no" / "journal.jsonl", tmp_path, tmp_path / "link.jsonl"):
        with pytest.raises(LorgnetteError):
            Journal.open(path)
    with pytest.raises(LorgnetteError, match="cannot be read"):
        read_events(tmp_path / "none.jsonl")


def test_a_journal_that_was_taken_away_takes_no_event(path: Path) -> None:
    journal = Journal.open(path)
    journal.append(FIRST)
    path.unlink()
    with pytest.raises(LorgnetteError, match="deleted or replaced"):
        journal.append(SECOND)
    assert journal.events == [FIRST]
    journal.close()
