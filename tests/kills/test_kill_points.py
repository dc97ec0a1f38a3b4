"""A training that is killed at any file-system call, and started again, gives what it would have given.

`make test-kills` tries every point; here are some, spread over all, and the process really kills itself.
"""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("kill_points.py")


def run_harness(fork_command: Callable[..., list[str]], *words: object) -> dict[str, Any]:
    done = subprocess.run(fork_command(PROGRAM, *words), capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == bool(result["faults"])
    return result


def test_killed_anywhere_it_recovers(fork_command: Callable[..., list[str]], tmp_path: Path) -> None:
    result = run_harness(fork_command, tmp_path, "--sample", 3)
    assert result["faults"] == {}
    assert result["checked"] == 3
    assert all(count > 200 for count in result["points"].values()), result["points"]


def test_a_state_that_was_copied_is_that_after_a_kill(fork_command: Callable[..., list[str]], tmp_path: Path) -> None:
    """As `make test-kills` takes it. Negative control: a checkpoint that is written in its place does not survive."""
    words = ("--break", "--only", "write run/checkpoints/step-000002/state.pt 1 during")
    for sample in ([], ["--sample", 1]):
        faults = run_harness(fork_command, tmp_path / f"{len(sample)}", *words, *sample)["faults"]
        assert ["checkpoint cannot be read" in fault for fault in faults.values()] == [True]
