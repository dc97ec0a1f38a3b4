"""The app of `teach` on loopback, with a session that has no model: every state of the page at will."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lorgnette.server.api_errors import ApiError
from lorgnette.server.guard import GuardSettings
from lorgnette.server.http_server import HttpServer, open_port
from lorgnette.teaching.app import build_app
from lorgnette.teaching.score import Outcome, Score

SUGGESTION = "A small red car to the left of a big green tree."
COMMAND = "lorgnette teach photos"
RUN = "/runs/teach-photos"
TOKEN = "token-of-this-test"


@dataclass
class FakeSession:
    """A Session whose `state` a test sets by `change`.

    Each answer or skip moves to the next image, whose suggestion is `text`. calls: (action, arguments) of the page.
    """

    names: Sequence[str]
    text: str | None = SUGGESTION
    sizes: Sequence[tuple[int, int]] = ()
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    owner: str = ""
    refusal: ApiError | None = None
    state: dict[str, Any] = field(default_factory=dict)
    _condition: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Image 0 is shown, with an untuned suggestion."""
        self.calls.clear()
        self.text, self.refusal, self.owner = SUGGESTION, None, ""
        version = self.state.get("version", 0)
        self.state = {
            "version": version, "phase": "ready", "model": "Qwen2-VL-2B-Instruct", "prompt": "COCO Yes:",
            "progress": None, "tuned_on": 0, "round": None, "notice": None, "current": None, "next_image": None,
            "counts": {"answered": 0, "skipped": 0, "left": len(self.names), "total": len(self.names)}, "labels": [],
            "finished": {"answered": 41, "suggested": 54, "total": 96},
            "history": [], "score": Score().to_view(), "files": {}, "commands": [],
        }  # fmt: skip
        self.move(0)

    def build_current(self, number: int, **changes: Any) -> dict[str, Any]:
        width, height = self.sizes[number] if self.sizes else (48, 36)
        return {
            "id": f"s{number + 1}", "number": number + 1, "image": number, "name": self.names[number], "width": width,
            "height": height, "text": self.text, "state": "ready", "problem": "", "round": 0, "alike": None,
            "tuned_on": 0, "draft": None, "is_review": False, "untuned": None, **changes,
        }  # fmt: skip

    def move(self, number: int, **changes: Any) -> None:
        """Show this image; none beyond the last one."""
        is_there = number < len(self.names)
        current = self.build_current(number, **changes) if is_there else None
        self.change(current=current, next_image=number + 1 if number + 1 < len(self.names) else None)

    def change(self, **changes: Any) -> int:
        with self._condition:
            self.state = {**self.state, **changes, "version": self.state["version"] + 1}
            self._condition.notify_all()
            return int(self.state["version"])

    def change_current(self, **changes: Any) -> None:
        self.change(current={**self.state["current"], **changes})

    def wait_for_call(self, action: str, count: int = 1) -> list[tuple[Any, ...]]:
        """The arguments of the page's calls of this action, without the tab, once there are `count`."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = [arguments for name, arguments in self.calls if name == action]
            if len(found) >= count:
                return found
            time.sleep(0.005)
        raise AssertionError(f"{action} was not called {count} times: {self.calls}")

    # ---- what the app calls

    def view(self, tab: str) -> dict[str, Any]:
        with self._condition:
            return {**self.state, "tab": "own" if tab == self.owner else "other"}

    def wait_for_change(self, version: int, timeout: float) -> int:
        with self._condition:
            self._condition.wait_for(lambda: self.state["version"] > version, timeout)
            return int(self.state["version"])

    def _call(self, action: str, tab: str, *arguments: Any) -> None:
        self.calls.append((action, arguments))
        if tab != self.owner:
            raise ApiError(409, "another tab is newer", code="other_tab")
        if self.refusal is not None:
            raise self.refusal

    def claim(self, tab: str) -> int:
        self.calls.append(("claim", ()))
        self.owner = tab
        return self.change()

    def answer(self, tab: str, id: str, text: str, keys: int, seconds: float) -> int:
        self._call("answer", tab, id, text, keys, seconds)
        current = self.state["current"]
        if current is None or current["id"] != id:
            raise ApiError(409, f"{id} is answered already", code="stale")
        shown = {name: current[name] for name in ("image", "name")}
        past = {"id": id, "text": text, "suggestion": current["text"], **shown}
        counts = self.state["counts"]
        answered = {**counts, "answered": counts["answered"] + 1, "left": counts["left"] - 1}
        self.change(history=[past, *self.state["history"]][:8], counts=answered)
        self.move(current["image"] + 1)
        return int(self.state["version"])

    def skip(self, tab: str, id: str) -> int:
        self._call("skip", tab, id)
        counts = self.state["counts"]
        self.change(counts={**counts, "skipped": counts["skipped"] + 1, "left": counts["left"] - 1})
        self.move(self.state["current"]["image"] + 1)
        return int(self.state["version"])

    def undo(self, tab: str) -> int:
        self._call("undo", tab)
        last, *rest = self.state["history"]
        self.change(history=rest)
        self.move(last["image"], draft=last["text"], text=last["suggestion"])
        return int(self.state["version"])

    def mend(self, tab: str, id: str, text: str) -> int:
        self._call("mend", tab, id, text)
        history = [{**past, "text": text} if past["id"] == id else past for past in self.state["history"]]
        return self.change(history=history)

    def draft(self, tab: str, id: str, text: str) -> int:
        self._call("draft", tab, id, text)
        return int(self.state["version"])

    def stop_text(self, tab: str, id: str) -> int:
        self._call("stop", tab, id)
        return int(self.state["version"])

    def request_untuned(self, tab: str, id: str) -> int:
        self._call("untuned", tab, id)
        return int(self.state["version"])

    def request_round(self, tab: str) -> int:
        self._call("train", tab)
        return self.change()

    def finish(self, tab: str) -> int:
        self._call("finish", tab)
        return self.change(phase="finishing")

    def close(self) -> None:
        self.change()


def build_score(taken: Sequence[bool], edit: float = 0.2) -> dict[str, Any]:
    """The score after these answers, as the page gets it."""
    outcomes = [
        Outcome(f"s{i}", f"{i}.png", 0, "a", "b", 4.0, 3, flag, 0.0 if flag else edit, 0 if flag else 1, 5, 20)
        for i, flag in enumerate(taken)
    ]
    return Score(tuple(outcomes)).to_view()


@dataclass
class Taught:
    """An app that answers. root: its URL without a slash at the end."""

    root: str
    session: Any
    settings: GuardSettings

    @property
    def page(self) -> str:
        return f"{self.root}/?token={self.settings.token}"


@contextmanager
def start_taught(
    session: Any, paths: Sequence[Path], port_number: int = 0, token: str = TOKEN, **options: Any
) -> Iterator[Taught]:
    """The app on a port. options: more of `build_app`."""
    images = SimpleNamespace(folder=paths[0].parent, paths=paths)
    with open_port("127.0.0.1", port_number) as port:
        settings = GuardSettings("127.0.0.1", port.getsockname()[1], token=token)
        app = build_app(session, images, settings, **{"run": RUN, "command": COMMAND, **options})
        with HttpServer(app, port, on_stop=session.close):
            yield Taught(f"http://127.0.0.1:{settings.port}", session, settings)
