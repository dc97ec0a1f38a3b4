"""A real browser for pages: Debian's Chromium, headless, through Playwright. Tests that need it skip without."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for one file. Not for the session: while Playwright runs, its event loop is the thread's, and
    asyncio.run fails in other tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def expect(locator: Any) -> Any:
    """Playwright's assertions: they wait until they hold."""
    from playwright.sync_api import expect

    return expect(locator)


def wait_until(view: Any, expression: str, seconds: float = 30) -> None:
    """Wait until an expression is true in the page. Playwright's own way needs `eval`, which our pages forbid."""
    deadline = time.monotonic() + seconds
    while not view.evaluate(expression):
        assert time.monotonic() < deadline, expression
        view.wait_for_timeout(20)


LOW_CONTRAST = """() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const findBackground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = new Set();
  const walker = document.createTreeWalker(document.querySelector('main').parentElement, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest('script, style')) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(findBackground(element))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) low.add(walker.currentNode.data.trim().slice(0, 40));
  }
  return [...low];
}"""
"""Texts whose contrast with their background is below 4.5 (WCAG 2.2, 1.4.3)."""
UNREACHABLE = """() => [...document.querySelectorAll('*')].filter(e =>
  e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === 'auto' && e.tabIndex < 0
).map(e => e.className)"""
"""Parts that scroll sideways, but not from the keyboard."""
HEADINGS = (
    "() => [...document.querySelectorAll('h1, h2, h3, h4')].filter(e => e.checkVisibility()).map(e => +e.tagName[1])"
)


class Opened:
    """The page in a window, with everything it asked for and complained about."""

    def __init__(self, browser: Any, page: Path | str, **window: Any) -> None:
        self.context = browser.new_context(**window)
        self.view = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.view.on("console", lambda message: self.complaints.append(message.text))
        self.view.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.view.on("request", lambda request: self.requests.append(request.url))
        self.view.goto(page if isinstance(page, str) else page.as_uri())

    def paper(self) -> str:
        return str(self.view.evaluate("getComputedStyle(document.body).backgroundColor"))

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture
def opened(browser: Any) -> Callable[..., Opened]:
    """opened(path or address, viewport=…) → the page in a window of its own."""
    return partial(Opened, browser)


def check_look(page: Opened) -> None:
    """On a wide screen and two narrow ones, light and dark: nothing to scroll sideways, no complaint, every image
    shown, every text readable, headings in order, headers with a scope."""
    papers = set()
    page.view.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    page.view.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.view.evaluate("Promise.all([...document.images].map(image => image.decode()))")
    levels = page.view.evaluate(HEADINGS)
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels)), levels
    assert page.view.locator("th:not([scope])").count() == 0
    for width in (1200, 390, 320):
        page.view.set_viewport_size({"width": width, "height": 900})
        assert page.view.evaluate("innerWidth") == width
        assert page.view.evaluate("document.documentElement.scrollWidth") <= width
        assert page.view.evaluate(UNREACHABLE) == []
        for scheme in ("light", "dark"):
            page.view.emulate_media(color_scheme=scheme)
            assert page.view.evaluate(LOW_CONTRAST) == []
            papers.add(page.paper())
    assert page.complaints == []
    assert len(papers) == 2


@pytest.fixture
def is_fit_to_look_at(opened: Callable[..., Opened]) -> Callable[[Path], None]:
    """`check_look` of a file that makes no request. It is loaded once: its styles follow the window and the scheme, and
    no script of ours reads them."""

    def look(path: Path) -> None:
        with opened(path, color_scheme="light") as page:
            check_look(page)
            assert len([url for url in page.requests if not url.startswith("data:")]) == 1

    return look
