from pathlib import Path

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.repository import Repository, RepositoryFile, is_safe_path, validate_name

FILE = RepositoryFile("a/b.csv", 3, "ff", "http://h/b")


def test_a_task_has_all_that_is_known_of_its_file() -> None:
    repository = Repository("hf", "me/set", "main", (FILE,), {"Authorization": "Bearer secret"})
    task = repository.build_task(FILE, Path("/d"))
    assert (task.path, task.size, task.sha256) == (Path("/d/a/b.csv"), 3, "ff")
    assert task.headers == {"Authorization": "Bearer secret"}
    assert (
        repository.build_task(RepositoryFile("x", None, None, "http://other/x", is_external=True), Path("/d")).headers
        == {}
    )
    assert repository.find_by_suffix((".csv",)) == [FILE]
    assert repository.find_file("a/b.csv") is FILE
    assert repository.find_file("b.csv") is None
    assert "secret" not in repr(repository)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "", "C:\\x", "a\\..\\..\\x", "a\0b"])
def test_paths_that_leave_are_refused(path: str) -> None:
    assert not is_safe_path(path)
    with pytest.raises(LorgnetteError, match="leaves its folder"):
        Repository("hf", "me/set", "main", ()).build_task(RepositoryFile(path, 1, None, "http://h/x"), Path("/d"))


def test_safe_paths_are_accepted() -> None:
    assert is_safe_path("a/b..c/.d/e.jpg")


def test_names_are_checked() -> None:
    assert validate_name("Qwen/Qwen2-VL-2B-Instruct", "hf") == "Qwen/Qwen2-VL-2B-Instruct"
    for name in ("", "a/b/c", "a b", "../x", "a/..", "a?b"):
        with pytest.raises(LorgnetteError, match="is not the name of a repository"):
            validate_name(name, "hf")
