"""A training that is killed at any file-system call, and started again, gives what it would have given.

`make test-kills` tries every point; here are some, spread over all.
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
    result = run_harness(fork_command, tmp_path, "--sample", 6)
    assert result["faults"] == {}
    assert result["checked"] == 6
    assert all(count > 200 for count in result["points"].values()), result["points"]


def test_a_checkpoint_that_is_not_atomic_is_found(fork_command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Negative control: a checkpoint that is written in its place does not survive."""
    [fault] = run_harness(
        fork_command, tmp_path, "--break", "--only", "checkpoints/step-000002/state.pt 1 during"
    )["faults"].values()  # fmt: skip
    assert "checkpoint cannot be read" in fault
