"""A `teach` run whose process is killed at an event of its journal, and started again, ends as it would have ended.

`make test-kills` tries every event; here are some, spread over all.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("teach_kills.py")


def run_harness(fork_command: Callable[..., list[str]], *words: object) -> dict[str, Any]:
    done = subprocess.run(fork_command(PROGRAM, *words), capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(result["faults"])
    return result


def test_killed_anywhere_it_loses_nothing(fork_command: Callable[..., list[str]], tmp_path: Path) -> None:
    result = run_harness(fork_command, tmp_path, "--sample", 6)
    assert result["faults"] == {}
    assert result["checked"] == 6
    assert result["points"] > 150


def test_a_lost_answer_is_noticed(fork_command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Negative control: the journal loses an answer between the kill and the next start."""
    faults = run_harness(fork_command, tmp_path, "--break", "--only", "answered 12 after")["faults"]
    assert list(faults) == ["answered 12 after"]
    assert "different: captions.csv" in faults["answered 12 after"]
