"""Errors for users: what is wrong, where, and what to do, in one line.

Everything that a user can cause raises a `LorgnetteError`; the command line prints it without a traceback. Any other
exception is a defect of lorgnette and keeps its traceback.
"""


class LorgnetteError(Exception):
    """A failure that the user can fix.

    message: the fact, in one clause ("cannot decode the image: image file is truncated").
    where:   the file, row, setting or folder.
    hint:    the next thing to do.
    """

    exit_status = 1

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.message, self.where, self.hint = message, where, hint
        super().__init__(" · ".join(part for part in (message, where, hint) if part))


class UsageError(LorgnetteError):
    """The command or a setting is wrong; nothing has started."""

    exit_status = 2


class SourceError(LorgnetteError):
    """A URL or its host does not give a file; another source may."""
