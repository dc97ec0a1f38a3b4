"""Hostile values, damage to files, and a watch over time and memory.

A few cases of each kind run always; LORGNETTE_FUZZ=all (make test-fuzz) runs all of them.
"""

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNS_ALL = os.environ.get("LORGNETTE_FUZZ") == "all"
MAX_SECONDS, MAX_GROWTH = 60, 2**20
"""Of a case on a busy machine, and in KiB of memory."""
NAN, INFINITY = float("nan"), float("inf")
DEEP: list[Any] = []
for _ in range(500):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 3, 10**9, 10**30, -(2**63), 0.5, 1e-320, NAN, INFINITY, "", "x", "\ud800", "a\0b",
    "../x", "\x1b[2J", "x" * 100_000, [], [[]], {}, {"a": {}}, DEEP, [1] * 1000, [-1, 0, 1], ["x"], [None],
    {"x": 10**9},
]  # fmt: skip


class TookTooLong(BaseException):
    """Not an Exception: nothing may swallow it."""


@contextmanager
def limits() -> Iterator[None]:
    """Raises TookTooLong after MAX_SECONDS; fails if the process grew by more than MAX_GROWTH."""

    def stop(*_: object) -> None:
        raise TookTooLong

    before, previous = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, signal.signal(signal.SIGALRM, stop)
    signal.alarm(MAX_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH


def change_json(rng: random.Random, tree: Any) -> str:
    """The JSON text of the tree with one value changed, removed or repeated, at a random place."""
    places = list(_list_places(tree))
    parent, key = rng.choice(places)
    action = rng.choice(["change", "change", "change", "remove", "repeat"])
    if action == "change":
        parent[key] = rng.choice(VALUES)
    elif action == "remove":
        del parent[key]
    text = json.dumps(tree)
    if action == "repeat" and isinstance(parent, dict):
        name = json.dumps(key)
        text = text.replace(f"{name}: ", f"{name}: 1, {name}: ", 1)
    return text


def _list_places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """(parent, key) of each value."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _list_places(value)


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """The content after one to three random edits."""
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([1, 1, 2, 8, 100, 5000]))
        piece = rng.choice(PIECES)
        content = rng.choice([
            content[:start],
            content[:start] + content[end:],
            content[:start] + piece + content[start:],
            content[:start] + piece + content[end:],
            content[:start] + content[start:end] * 3 + content[end:],
            content[:start] + bytes(255 - byte for byte in content[start:end]) + content[end:],
        ])  # fmt: skip
    return content


PIECES = [
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"\r\n\r\n", b'"', b'""', b"'", b",", b";", b"\t", b"{", b"}",
    b"[", b"]", b"[" * 2000, b'{"a":' * 2000, b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"9" * 5000, b"1e999",
    b"null", b"true", b"\x1b[2J", b"\xed\xa0\x80", b"x" * 70_000, b"../../etc/passwd", b"<image>",
    b"PK\x03\x04", b"\xff" * 8,
]  # fmt: skip


def replace_file(rng: random.Random, path: Path) -> str:
    """Replace a whole file by what is none of its kind; returns what."""
    content = path.read_bytes()
    path.unlink()
    kinds: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "an empty file": path.touch,
        "a folder": path.mkdir,
        "a link to itself": lambda: path.symlink_to(path.name),
        "a pipe": lambda: os.mkfifo(path),
        "zeros": lambda: path.write_bytes(bytes(1000)),
        "deep lists": lambda: path.write_bytes(b"[" * 100_000),
        "deep objects": lambda: path.write_bytes(b'{"a":' * 100_000),
        "UTF-16": lambda: path.write_bytes(content.decode("latin-1").encode("utf-16")),
        "a number": lambda: path.write_bytes(b"9" * 10_000),
        "text": lambda: path.write_bytes(b'"x"'),
        "null": lambda: path.write_bytes(b"null"),
        "a list": lambda: path.write_bytes(b"[1]"),
        "its half": lambda: path.write_bytes(content[: len(content) // 2]),
        "its double": lambda: path.write_bytes(content * 2),
    }
    kind = rng.choice(list(kinds))
    kinds[kind]()
    return kind
