"""The output path is checked before the work starts."""

from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.paths import check_writable


def test_an_input_or_a_folder_is_refused(captions: Path) -> None:
    image, link = captions.with_name("red.png"), captions.with_name("link.csv")
    link.symlink_to(captions)
    for out in (captions, link, image):
        with pytest.raises(UsageError, match="would overwrite its own input · --out"):
            check_writable(out, captions, image, Path("gone"))
    with pytest.raises(UsageError, match="a folder, not a file"):
        check_writable(captions.parent, captions)


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
