"""What the page of `teach` asks its server, without a browser: a person's answers over HTTP."""

import json
import urllib.request
from collections.abc import Callable
from typing import Any


class Browser:
    """A page's requests, with the cookie of its address."""

    def __init__(self, url: str) -> None:
        self._root = url.partition("/?")[0]
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with self._opener.open(url, timeout=10) as page:
            self.html = page.read().decode()

    def get_state(self, after: int = -1) -> dict[str, Any]:
        with self._opener.open(f"{self._root}/state?tab=t&after={after}", timeout=30) as answer:
            return dict(json.load(answer))

    def post(self, path: str, **body: Any) -> None:
        content = json.dumps({"tab": "t", **body}).encode()
        request = urllib.request.Request(f"{self._root}{path}", content, {"Content-Type": "application/json"})
        self._opener.open(request, timeout=30).close()

    def wait_for(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        state = self.get_state()
        while not is_so(state):
            state = self.get_state(state["version"])
        return state

    def wait_for_suggestion(self) -> dict[str, Any]:
        """The image that is shown, once its suggestion is there."""
        state = self.wait_for(lambda state: state["current"] is not None and state["current"]["state"] == "ready")
        return dict(state["current"])

    def answer(self, text: str) -> str:
        """Answer the image that is shown, and return its name."""
        current = self.wait_for_suggestion()
        self.post("/answer", id=current["id"], text=text, keys=3, seconds=1.0)
        return str(current["name"])
