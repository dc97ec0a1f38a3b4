"""The command `lorgnette`, and `python -m lorgnette`: what Ctrl-C does before the command has begun.

Imports nothing that takes time: an interrupt between two imports is a traceback of whatever was imported.
"""

import os
import signal
from types import FrameType

_EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command. Ctrl-C while its modules are imported ends the process as later: one line, exit status 130."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else who started it ignores Ctrl-C
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        from lorgnette.startup import note_command_start

        note_command_start()
        from lorgnette.cli import main as run_command

        run_command()
    finally:
        signal.signal(signal.SIGINT, before)


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    if "RANK" not in os.environ:  # the launcher of several ranks says it
        os.write(2, b"stopped\n")
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
