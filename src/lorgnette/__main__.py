"""The command `lorgnette`, and `python -m lorgnette`: what Ctrl-C does before the command has begun, and how it ends.

Imports nothing that takes time: an interrupt between two imports is a traceback of whatever was imported.
"""

import atexit
import os
import signal
import sys
from types import FrameType

_EXIT_INTERRUPTED = 128 + signal.SIGINT
_PROFILER_VARIABLES = ("LD_PRELOAD", "CUDA_INJECTION64_PATH")
"""What is loaded so may write its file when C's exit calls it."""
_exit_status: int | None = None


def main() -> None:
    """Run the command. Ctrl-C while its modules are imported ends the process as later: one line, exit status 130."""
    global _exit_status  # noqa: PLW0603
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else who started it ignores Ctrl-C
        signal.signal(signal.SIGINT, _end_at_once)
    # What is registered first is called last.
    if _is_started_as_command() and "torch" not in sys.modules and not atexit._ncallbacks():
        atexit.register(_skip_teardown)
    try:
        from lorgnette.startup import keep_bytecode, note_command_start, set_missing_home

        note_command_start()
        set_missing_home()
        keep_bytecode()
        _start_processes(sys.argv[1:])
        from lorgnette.cli import main as run_command

        run_command()
        _exit_status = 0
    except SystemExit as exit_:
        if exit_.code is None or isinstance(exit_.code, int):
            _exit_status = exit_.code or 0
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _is_started_as_command() -> bool:
    """Whether Python was started for the command. Another program that calls `main` may go on after it, and end with
    its own status."""
    program = sys.modules["__main__"]
    is_module = getattr(getattr(program, "__spec__", None), "name", None) == "lorgnette.__main__"
    return is_module or os.path.basename(getattr(program, "__file__", "")) == "lorgnette"


def _start_processes(words: list[str]) -> None:
    """Start the processes that compile what this command would wait for. words: of the command line."""
    if not words or words[0].startswith("-") or not {"-h", "--help"}.isdisjoint(words):
        return
    from lorgnette.io.compile_modules import start_compiling_modules

    start_compiling_modules()
    # Where one is closed, a pipe to the process would get its number.
    if words[0] == "train" and None not in (sys.stdin, sys.stdout, sys.stderr):
        from lorgnette.kernels import compile_ahead

        compile_ahead.start("auto", "auto")  # before the settings are read; `train` stops it if they want none
        atexit.register(compile_ahead.stop)  # after an error in the words


def _skip_teardown() -> None:
    """End the process where Python would take everything apart: for torch, CUDA and their graphs that takes a while.

    Python has waited for threads and called what was registered for its exit. Does nothing without torch, after an
    error with a traceback, for one of several ranks, and where a profiler may write at the end.
    """
    is_alone = "RANK" not in os.environ and not any(name in os.environ for name in _PROFILER_VARIABLES)
    if _exit_status is None or "torch" not in sys.modules or not is_alone:
        return
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed by who started this
            stream.flush()
    except (OSError, ValueError):
        return  # Python says it
    os._exit(_exit_status & 0xFF)


def _end_at_once(_number: int, _frame: FrameType | None) -> None:
    if "RANK" not in os.environ:  # the launcher of several ranks says it
        os.write(2, b"stopped\n")
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
