"""Where a verb writes is looked at first."""

from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import check_writable


def test_a_place_that_is_taken(captions: Path) -> None:
    other, link = captions.with_name("red.png"), captions.with_name("link.csv")
    link.symlink_to(captions)
    for out in (captions, link, other):
        with pytest.raises(UsageError, match="would overwrite what it is made from · --out"):
            check_writable(out, captions, other, Path("gone"))
    with pytest.raises(UsageError, match="a folder, not a file"):
        check_writable(captions.parent, captions)


def test_a_place_that_cannot_be_written(captions: Path) -> None:
    with pytest.raises(LorgnetteError, match="cannot write"):
        check_writable(captions / "x")


def test_any_other_place_is_good_and_stays_as_it_is(captions: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    check_writable(page, captions)
    assert not any(page.parent.iterdir())
    page.write_text("old")
    check_writable(page, captions)
    assert page.read_text() == "old"
