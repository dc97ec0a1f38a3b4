"""The state of a `teach` run, between the page, the journal and the thread that owns the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.events import Event
from lorgnette.teaching.images import ImageList
from lorgnette.teaching.journal import Journal

Order = Literal["shuffled", "hardest"]


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """model: its title. given: image's name → an answer from before the run. every: answers between two rounds after the
    first two. blind: every so manyth image is shown without its suggestion; 0: none. reviewer: who reviews; None: no
    review. commands: what the user can run afterwards. write_report: called with all events at the end.
    """

    model: str
    prompt: str
    seed: int = 0
    version: str = ""
    labels: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    every: int = 8
    blind: int = 0
    order: Order = "shuffled"
    reviewer: str | None = None
    commands: tuple[str, ...] = ()
    write_report: Callable[[Sequence[Event]], None] | None = None


class Session:
    """Safe for several threads. A method that changes something returns the version of the state after it.

    Methods for the page raise ApiError: 409 "other_tab" from a tab that is no longer the newest, 409 "stale" for an id
    that is not current, 400 for a text that is no answer, 500 "disk" if the journal cannot be written.
    """

    def __init__(self, journal: Journal, images: ImageList, options: SessionOptions, run_dir: RunDir) -> None:
        """Replay the journal. Raises LorgnetteError if the run's files cannot be written."""
        raise NotImplementedError

    remarks: list[str]
    """What the user should know of the start: images that changed or are gone."""

    def view(self, tab: str) -> dict[str, Any]:
        raise NotImplementedError

    def wait_for_change(self, version: int, timeout: float) -> int:
        """Wait until the state is newer than `version`, at most `timeout` seconds. Returns its version."""
        raise NotImplementedError

    def claim(self, tab: str) -> int:
        raise NotImplementedError

    def answer(self, tab: str, id: str, text: str, keys: int, seconds: float) -> int:
        raise NotImplementedError

    def skip(self, tab: str, id: str) -> int:
        raise NotImplementedError

    def undo(self, tab: str) -> int:
        raise NotImplementedError

    def mend(self, tab: str, id: str, text: str) -> int:
        raise NotImplementedError

    def draft(self, tab: str, id: str, text: str) -> int:
        raise NotImplementedError

    def stop_text(self, tab: str, id: str) -> int:
        raise NotImplementedError

    def request_round(self, tab: str) -> int:
        raise NotImplementedError

    def finish(self, tab: str) -> int:
        raise NotImplementedError

    def close(self) -> None:
        """Wake everything that waits; the device thread ends."""
        raise NotImplementedError
