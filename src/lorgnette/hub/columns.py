"""Which column holds the pictures and which the captions: by type first, then by name; in doubt nothing is guessed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorgnette.errors import LorgnetteError

PICTURE_NAMES = (
    ("image", "picture", "img", "jpg", "png", "webp"),
    ("image_url", "coco_url", "img_url", "url"),
    ("image_path", "img_path", "file_name", "filename", "path"),
)
CAPTION_NAMES = (
    ("caption", "captions"),
    ("sentences_raw", "sentences", "text", "texts", "description"),
    ("answer", "answers"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """picture: bytes with a path. bytes: bytes alone. text, texts: one or a list. other: numbers and so on."""

    name: str
    kind: Literal["picture", "bytes", "text", "texts", "other"]


@dataclass(frozen=True, slots=True)
class Pair:
    image: str
    caption: str


def choose(columns: Sequence[Column], *, image: str | None, caption: str | None, where: str) -> Pair:
    """The two columns, as asked for or as found."""
    picked = _given(columns, image, "image", where) or _image(columns, where)
    rest = [column for column in columns if column.name != picked]
    return Pair(picked, _given(columns, caption, "caption", where) or _caption(rest, columns, where))


def _given(columns: Sequence[Column], name: str | None, what: str, where: str) -> str | None:
    if name is not None and name not in [column.name for column in columns]:
        raise _doubt(f"there is no column {name!r}", columns, what, where)
    return name


def _image(columns: Sequence[Column], where: str) -> str:
    for kind in ("picture", "bytes"):
        if found := [column.name for column in columns if column.kind == kind]:
            return _one(found, PICTURE_NAMES) or _fail("picture", columns, "image", where)
    texts = [column.name for column in columns if column.kind == "text"]
    return _named(texts, PICTURE_NAMES) or _fail("picture", columns, "image", where)


def _caption(rest: Sequence[Column], columns: Sequence[Column], where: str) -> str:
    texts = [column.name for column in rest if column.kind in ("text", "texts")]
    return _one(texts, CAPTION_NAMES) or _fail("caption", columns, "caption", where)


def _one(names: Sequence[str], known: Sequence[Sequence[str]]) -> str | None:
    return names[0] if len(names) == 1 else _named(names, known)


def _named(names: Sequence[str], known: Sequence[Sequence[str]]) -> str | None:
    """The one name of the first group that has any; None where a group has two."""
    for group in known:
        if found := [name for name in names if name.lower() in group]:
            return found[0] if len(found) == 1 else None
    return None


def _fail(what: str, columns: Sequence[Column], option: str, where: str) -> str:
    raise _doubt(f"which column holds the {what}s is not clear", columns, option, where)


def _doubt(what: str, columns: Sequence[Column], option: str, where: str) -> LorgnetteError:
    there = ", ".join(f"{column.name} ({column.kind})" for column in columns[:30])
    return LorgnetteError(f"{what}; there are {there}", where=where, hint=f"name it with --{option}-column")
