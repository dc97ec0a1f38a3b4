"""A process that runs a module finds it where this process does, and is not reached by the terminal's signals."""

import os
import sys
from pathlib import Path

import pytest

from lorgnette.io.module_process import start_module

TELLS = "import os, sys; print(sys.stdin.read(), os.environ['WHAT'], os.getpgid(0), '{}', flush=True)"


def test_a_module_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("ours", "current"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "tells_where.py").write_text(TELLS.format(folder))
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setattr(sys, "path", ["", *sys.path, str(tmp_path / "ours")])
    process, requests, answers = start_module("tells_where", environment={"WHAT": "value"})
    requests.write(b"request")
    requests.close()
    text, value, group, folder = answers.read().decode().split()
    assert (text, value, folder) == ("request", "value", "ours")
    assert int(group) == process.pid != os.getpgid(0)
    assert process.wait() == 0
    answers.close()


@pytest.mark.parametrize("hides_errors", [False, True])
def test_errors_are_shown_or_not(hides_errors: bool, capfd: pytest.CaptureFixture[str]) -> None:
    process, requests, answers = start_module("no_such_module", hides_errors=hides_errors)
    assert process.wait() == 1
    requests.close()
    answers.close()
    assert ("No module named no_such_module" in capfd.readouterr().err) is not hides_errors


def test_a_process_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/none/python")
    with pytest.raises(FileNotFoundError):
        start_module("json")
