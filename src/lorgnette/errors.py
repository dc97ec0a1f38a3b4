"""What went wrong, where, and what to do: one line each, for a person.

Everything a user can cause raises a `LorgnetteError`; the command line prints it without a traceback. Any other
exception is a defect of ours and keeps its traceback.
"""


class LorgnetteError(Exception):
    """A failure that a person can act on.

    what:   the fact, in one clause ("picture cannot be decoded: image file is truncated").
    where:  file, row, setting or folder it concerns.
    remedy: the next thing to do.
    """

    exit_status = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message, self.where, self.hint = message, where, hint
        super().__init__(" · ".join(part for part in (message, where, hint) if part))


class UsageError(LorgnetteError):
    """The command or a setting is wrong; nothing was started."""

    exit_status = 2
