import zipfile
from pathlib import Path
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.line import HttpClient, RetryPolicy
from lorgnette.hub.places import MissingImage, list_candidate_names, open_fallback

QUICK = RetryPolicy(max_attempts=2, connect_timeout=2, read_timeout=1, initial_pause=0.01)


def bring(where: str, missed: list[MissingImage]) -> tuple[list[str], int]:
    arrived: list[str] = []
    seen: list[int] = []
    with HttpClient(retry_policy=QUICK) as line:
        found = open_fallback(where, line)
        assert found.where == where
        found.provide(missed, lambda path: arrived.append(path.name), lambda files, count: seen.append(files))
    return arrived, sum(seen)


def test_official_names() -> None:
    official = ("COCO_train2014_000000011195.jpg", "000000011195.jpg")
    url = "https://dead/coco/2014/train2014/COCO_train2014_000000011195.jpg"
    assert list_candidate_names(url, 11195, "validation") == official
    assert list_candidate_names(url, None, "train") == official
    assert list_candidate_names("https://dead/x?id=3", 5, "val") == (
        "COCO_val2014_000000000005.jpg",
        "000000000005.jpg",
    )
    assert list_candidate_names("https://dead/x?id=3", None, "train") == ()
    assert list_candidate_names("https://dead/a%20b.png", None, "train") == ("a b.png",)


@pytest.mark.parametrize("kind", ["folder", "zip", "host"])
def test_pictures_are_brought_under_any_of_their_names(
    kind: str, hub: Any, tmp_path: Path, picture: Any, zipped: Any
) -> None:
    there = {"a.jpg": picture(1), "COCO_b.jpg": picture(2), "bad.jpg": b"<html>", "cut.jpg": picture(3)[:900]}
    where = tmp_path / "place"
    if kind == "folder":
        where.mkdir()
        for name, content in there.items():
            (where / name).write_bytes(content)
    elif kind == "zip":
        where.write_bytes(zipped(**{f"x/{name}": content for name, content in there.items()}))
    for name, content in there.items():
        hub.put(f"/base/{name}", content)
    out = tmp_path / "out"
    missed = [
        MissingImage(out / "1.jpg", ("none.jpg", "a.jpg")),
        MissingImage(out / "2.jpg", ("COCO_b.jpg",)),
        MissingImage(out / "3.jpg", ("bad.jpg", "cut.jpg")),
        MissingImage(out / "4.jpg", ("none.jpg",)),
        MissingImage(out / "5.jpg", ()),
    ]
    arrived, seen = bring(hub.url + "/base" if kind == "host" else str(where), missed)
    assert sorted(arrived) == ["1.jpg", "2.jpg"]
    assert seen == 2
    assert {path.name for path in out.iterdir()} == {"1.jpg", "2.jpg"}
    assert (out / "1.jpg").read_bytes() == picture(1)


def test_a_place_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(LorgnetteError, match="the zip file cannot be read"):
        bring(str(tmp_path / "text"), [])
    with pytest.raises(LorgnetteError, match="no such folder, zip file or address"):
        bring(str(tmp_path / "none"), [])


def test_a_zip_that_swells_or_leaves_is_refused(tmp_path: Path, zipped: Any) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"a.jpg": bytes(30 << 20)}))
    with pytest.raises(LorgnetteError, match="would unpack from"):
        bring(str(tmp_path / "a.zip"), [MissingImage(tmp_path / "x.jpg", ("a.jpg",))])
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../a.jpg", b"x")
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        bring(str(tmp_path / "b.zip"), [MissingImage(tmp_path / "x.jpg", ("a.jpg",))])
    assert not (tmp_path / "x.jpg").exists()
