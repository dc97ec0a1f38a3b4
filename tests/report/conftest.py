"""A real browser for the pages: Debian's Chromium, headless, through Playwright. Tests that need it skip without."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Opened:
    """The page in a window, with everything it asked for and complained about."""

    def __init__(self, browser: Any, path: Path, **window: Any) -> None:
        self.context = browser.new_context(**window)
        self.view = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.view.on("console", lambda message: self.complaints.append(message.text))
        self.view.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.view.on("request", lambda request: self.requests.append(request.url))
        self.view.goto(path.as_uri())

    def paper(self) -> str:
        return str(self.view.evaluate("getComputedStyle(document.body).backgroundColor"))

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture
def opened(browser: Any) -> Callable[..., Opened]:
    """opened(path, viewport=…) → the page in a window of its own."""
    return partial(Opened, browser)


@pytest.fixture
def is_fit_to_look_at(opened: Callable[..., Opened]) -> Callable[[Path], None]:
    """A page on a wide screen and two narrow ones, light and dark: nothing to scroll sideways, nothing asked for, no
    complaint, every image shown."""

    def look(path: Path) -> None:
        papers = set()
        for width in (1200, 390, 320):
            for scheme in ("light", "dark"):
                with opened(path, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
                    page.view.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
                    page.view.evaluate("for (const image of document.images) image.loading = 'eager'")
                    page.view.wait_for_function(
                        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
                    )
                    assert page.view.evaluate("document.documentElement.scrollWidth") <= width
                    assert page.complaints == []
                    assert len([url for url in page.requests if not url.startswith("data:")]) == 1
                    papers.add(page.paper())
        assert len(papers) == 2

    return look
