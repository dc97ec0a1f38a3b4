from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Listed, Repository, checked, inside

FILE = Listed("a/b.csv", 3, "ff", "http://h/b")


def test_a_file_is_wanted_with_all_that_is_known_of_it() -> None:
    repository = Repository("hf", "me/set", "main", (FILE,), {"Authorization": "Bearer secret"})
    wanted = repository.wanted(FILE, Path("/d"))
    assert (wanted.path, wanted.size, wanted.sha256) == (Path("/d/a/b.csv"), 3, "ff")
    assert wanted.headers == {"Authorization": "Bearer secret"}
    assert repository.wanted(Listed("x", None, None, "http://other/x", outside=True), Path("/d")).headers == {}
    assert repository.named((".csv",)) == [FILE]
    assert repository.at("a/b.csv") is FILE
    assert repository.at("b.csv") is None
    assert "secret" not in repr(repository)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "", "C:\\x", "a\\..\\..\\x", "a\0b"])
def test_paths_that_leave_are_refused(path: str) -> None:
    assert not inside(path)
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        Repository("hf", "me/set", "main", ()).wanted(Listed(path, 1, None, "http://h/x"), Path("/d"))


def test_paths_that_stay_are_taken() -> None:
    assert inside("a/b..c/.d/e.jpg")


def test_names_are_checked() -> None:
    assert checked("Qwen/Qwen2-VL-2B-Instruct", "hf") == "Qwen/Qwen2-VL-2B-Instruct"
    for name in ("", "a/b/c", "a b", "../x", "a/..", "a?b"):
        with pytest.raises(LorgnetteError, match="is no repository's name"):
            checked(name, "hf")
