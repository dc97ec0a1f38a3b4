"""Starts a Python process that runs a module, with pipes to its standard input and from its standard output."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, NamedTuple


class ModuleProcess(NamedTuple):
    """requests: its standard input; answers: its standard output."""

    process: "subprocess.Popen[bytes]"
    requests: IO[bytes]
    answers: IO[bytes]


def start_module(
    name: str, *, environment: Mapping[str, str] | None = None, hides_errors: bool = False
) -> ModuleProcess:
    """Run the module as `python -m` does, found where this process finds its modules, but not in the current folder.

    environment: variables beside those of this process. hides_errors: its standard error goes nowhere. It leads a
    session and a process group of its own: Ctrl-C in the terminal does not reach it. Raises OSError if the system
    starts no process.
    """
    process = subprocess.Popen(  # noqa: S603 - a module of ours
        [sys.executable, "-P", "-m", name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if hides_errors else None,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    return ModuleProcess(process, process.stdin, process.stdout)
