"""The page in a real browser, on a server whose scheduler says what a test wants; and on the built-in model."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from browser_pages import Opened, check_look, expect, wait_until
from served_app import FakeScheduler, start_server

from lorgnette.server.page import MAX_IMAGE_BYTES, read_static_files, render_page

BASE_TEXT = "The image shows a small red car to the left of a big green tree."
LINE_ANIMATION = "getComputedStyle(document.querySelector('.answer'), '::before').animationName"
API_KEY = "key-of-this-test"
TUNED_TEXT = "A small red car to the left of a big green tree."
ODD_PROMPT = "Say `id` \"$HOME\" 'x' \\n {y}\nNew line: é 新 🎈"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "it's a $photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (36, 48, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(path)
    return path


class Asking:
    """The page, with what a person does on it."""

    def __init__(self, page: Any) -> None:
        self.page, self.view = page, page.view
        self.prompt = self.view.get_by_label("Prompt")

    def choose(self, path: Path, field: str = "#file") -> None:
        """Choose a file and wait until it is the image that is shown. The same file gets another address."""
        before = self.view.locator("#image").get_attribute("src")
        self.view.set_input_files(field, str(path))
        other = self.view.locator(f"#image:not([src='{before}'])")
        self.view.get_by_role("img", name=path.name).and_(other).wait_for()
        other.evaluate("image => image.decode()")

    def give(self, event: str, name: str, media_type: str, content: bytes) -> None:
        """Drop or paste a file."""
        self.view.evaluate(
            """([event, name, type, bytes]) => {
              const files = new DataTransfer(), options = {bubbles: true, cancelable: true};
              files.items.add(new File([new Uint8Array(bytes)], name, {type}));
              document.body.dispatchEvent(event === "paste"
                ? new ClipboardEvent(event, {...options, clipboardData: files})
                : new DragEvent(event, {...options, dataTransfer: files}));
            }""",
            [event, name, media_type, list(content)],
        )

    def card(self, name: str) -> Any:
        return self.view.locator(f".answer[data-model='{name}']")

    def wait(self, state: str, num_cards: int = 2) -> None:
        self.view.locator(f".answer:visible[data-state={state}]").nth(num_cards - 1).wait_for()

    def wait_for_words(self) -> None:
        """Both answers have begun."""
        self.view.locator(".progress:visible", has_text=re.compile(r"[1-9] words?$")).nth(1).wait_for()

    def text(self, name: str) -> str:
        return str(self.card(name).locator(".text").text_content())

    def facts(self, name: str) -> str:
        return str(self.card(name).locator(".progress").text_content())

    def problem(self) -> str:
        """The first problem that is shown."""
        shown = self.view.locator(".problem:visible").first
        shown.wait_for()
        return str(shown.text_content())

    def announced(self) -> list[str]:
        return list(self.view.get_by_role("status").locator("p").all_text_contents())


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Opened]:
    with Opened(browser, "about:blank") as page:
        yield page


@pytest.fixture
def open_page(tab: Opened, opened: Callable[..., Opened]) -> Callable[..., Any]:
    """open_page(server) → Asking, in the tab that the tests share: a new one takes twice as long.

    window: options of a tab of its own. At the end the browser has made `complaints` complaints, and no request outside
    the server.
    """

    @contextmanager
    def start(server: Any, *, complaints: int = 0, **window: Any) -> Iterator[Asking]:
        with opened("about:blank", **window) if window else nullcontext(tab) as page:
            page.view.goto("about:blank")
            page.complaints.clear()
            page.requests.clear()
            page.view.goto(server.page)
            try:
                yield Asking(page)
            finally:
                page.view.unroute_all()
            deadline = time.monotonic() + 5
            while len(page.complaints) < complaints and time.monotonic() < deadline:  # they come in their own time
                page.view.wait_for_timeout(10)
            assert len(page.complaints) == complaints, page.complaints
            own = (f"{server.root}/", f"blob:{server.root}/")
            assert [url for url in page.requests if not url.startswith(own)] == []

    return start


def test_both_answers_stream_beside_each_other(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    fake_server.scheduler.step_seconds = 0.5
    with open_page(fake_server) as page:
        assert page.prompt.input_value() == "COCO Yes:"
        assert page.view.title() == "captions and cats/v2:best, beside their base · served models · lorgnette"
        page.choose(photo)
        page.view.keyboard.press("Enter")  # the prompt has the focus
        page.wait_for_words()
        assert page.view.get_by_role("button", name="Stop").is_visible()
        assert page.card("base").get_attribute("aria-busy") == "true"
        assert page.view.evaluate(LINE_ANIMATION) == "busy"
        assert page.announced() == []  # while it comes, a screen reader says nothing
        assert [page.text("base") in BASE_TEXT[:-1], page.text("captions") in TUNED_TEXT[:-1]] == [True, True]
        fake_server.scheduler.step_seconds = 0.0
        page.wait("done")
        assert (page.text("base"), page.text("captions")) == (BASE_TEXT, TUNED_TEXT)
        assert re.fullmatch(r"\d\.\d s · 15 words · ✓ done", page.facts("base"))
        assert page.card("base").get_attribute("aria-busy") == "false"
        assert not page.view.get_by_role("button", name="Stop").is_visible()
        assert [text.partition(": ")[0] for text in sorted(page.announced())] == ["Untuned", "captions"]
        assert sum(TUNED_TEXT in text for text in page.announced()) == 1
    first, second = fake_server.scheduler.rows
    assert {first.adapter, second.adapter} == {None, 0}
    assert first.prompt.input_ids.tolist() == second.prompt.input_ids.tolist()
    assert first.sampling.temperature is None


def test_images_are_dropped_pasted_chosen_and_photographed(
    open_page: Callable[..., Any], fake_server: Any, photo: Path
) -> None:
    window = {"viewport": {"width": 390, "height": 664}, "has_touch": True, "is_mobile": True}
    with open_page(fake_server, **window) as phone:
        assert phone.view.get_by_text("Take a photo").is_visible()
        assert phone.view.locator("#camera").get_attribute("capture") == "environment"
        assert not phone.view.get_by_text("Drop an image").is_visible()
        phone.choose(photo, "#camera")
        below = "document.querySelector('.answer').getBoundingClientRect().bottom > innerHeight"
        assert phone.view.evaluate(below)
        phone.prompt.press("Enter")
        phone.wait("done")
        wait_until(phone.view, f"!({below})")  # the page scrolls to the answers
        assert phone.view.evaluate("document.activeElement.id") != "prompt"  # the keyboard is closed
    with open_page(fake_server) as page:
        assert not page.view.get_by_text("Take a photo").is_visible()
        for event, name in (("drop", "a.png"), ("paste", "b.png")):
            page.give(event, name, "image/png", photo.read_bytes())
            page.view.get_by_role("img", name=name).wait_for()
            assert page.view.locator("#file-facts").text_content() == f"{name} · 48 × 36"
            page.view.get_by_role("button", name="Ask").click()
            page.wait("done")
        page.choose(photo)
        assert (page.text("base"), page.facts("base")) == ("", "")  # they are of another image
        page.view.get_by_role("button", name="Ask").click()
        page.wait("done")
    images = [{grid.image.path.name for grid in pixels} for pixels in fake_server.scheduler.pixels]
    assert len(images) == 8
    assert all(names == images[0] for names in images)  # the bytes of the file, however they came


def test_what_is_no_image_is_said_in_words(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    with open_page(fake_server) as page:
        page.view.keyboard.press("Enter")
        assert page.problem().startswith("There is no image yet")
        assert page.announced() == [page.problem()]
        page.give("drop", "notes.txt", "text/plain", b"notes")
        page.view.get_by_text("notes.txt is no image.").first.wait_for()
        page.view.evaluate("dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
        page.view.get_by_text("That is no file.").first.wait_for()
        page.give("drop", "torn.png", "image/png", photo.read_bytes()[:40])
        page.view.get_by_text("torn.png cannot be shown").first.wait_for()
        page.view.evaluate(
            """bytes => { const files = new DataTransfer();
              files.items.add(new File([new Uint8Array(bytes)], "large.png", {type: "image/png"}));
              dispatchEvent(new DragEvent("drop", {dataTransfer: files})); }""",
            MAX_IMAGE_BYTES + 1,
        )
        page.view.get_by_text("large.png has 23 MiB; at most 23 can be sent").first.wait_for()
        page.choose(photo)
        assert page.view.locator(".problem:visible").count() == 0
    assert fake_server.scheduler.rows == []


def test_escape_and_the_button_stop(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    fake_server.scheduler.step_seconds = 0.5
    with open_page(fake_server) as page:
        page.choose(photo)
        for stop in (
            lambda: page.view.keyboard.press("Escape"),
            lambda: page.view.get_by_role("button", name="Stop").click(),
        ):
            page.view.keyboard.press("Enter")
            page.wait_for_words()
            stop()
            page.wait("stopped")
            assert page.facts("base").endswith("stopped")
            assert BASE_TEXT.startswith(page.text("base"))
            assert page.view.evaluate("document.activeElement.id") == "prompt"
        page.view.keyboard.press("Enter")
        page.wait_for_words()
        page.view.keyboard.press("Enter")  # anew: only the last question's answers are shown
        deadline = time.monotonic() + 20
        while len(fake_server.scheduler.cancelled) < 6 and time.monotonic() < deadline:
            page.view.wait_for_timeout(10)
        fake_server.scheduler.step_seconds = 0.0
        page.wait("done")
        assert (page.text("base"), page.text("captions")) == (BASE_TEXT, TUNED_TEXT)
    assert len(fake_server.scheduler.rows) == 8
    assert set(fake_server.scheduler.cancelled) == set(fake_server.scheduler.rows[:6])


def test_errors_are_shown_in_words(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    scheduler = fake_server.scheduler
    with open_page(fake_server, complaints=5) as page:  # the browser's own lines about failed requests
        page.choose(photo)
        scheduler.num_refusals = 1
        page.view.keyboard.press("Enter")
        page.wait("failed", 1)
        assert "64 requests wait already" in page.problem()
        page.wait("done", 1)  # the other answer comes all the same
        scheduler.fails_after = 3
        page.view.keyboard.press("Enter")
        page.wait("failed")
        assert page.problem() == "The device is lost: test."
        assert 0 < len(page.text("base")) < len(BASE_TEXT)
        scheduler.reset()
        urls = "**/v1/chat/completions"
        answers = {
            "The server does not answer. Start it again": lambda route: route.abort(),
            "Open the address": lambda route: route.fulfill(status=401, json={"error": {"message": "no"}}),
            "The answer broke off: the server has gone.": lambda route: route.fulfill(
                content_type="text/event-stream", body='data: {"cho'
            ),
        }
        said = ""
        page.view.route(urls, lambda route: answers[said](route))  # noqa: PLW0108 - `said` changes
        page.view.reload()  # a page that has asked before may ask past a new route
        page.choose(photo)
        for said in answers:
            page.view.keyboard.press("Enter")
            page.wait("failed")
            assert said in page.problem()
        assert any(page.problem() in text for text in page.announced())


def run_example(page: Asking, name: str, folder: Path) -> str:
    """What the page's example prints, copied by its button and run in the folder of the image."""
    region = page.view.locator(".example", has=page.view.get_by_role("heading", name=name, exact=True))
    region.get_by_role("button", name="Copy").click()
    region.get_by_text("Copied").wait_for()
    prompt = page.prompt.input_value()
    page.prompt.fill("")
    page.prompt.press("Control+V")  # text is pasted as text
    expect(page.prompt).not_to_have_value("")
    command = page.prompt.input_value()
    page.prompt.fill(prompt)
    program = ["sh", "-c", command] if name == "curl" else [sys.executable, "-c", command]
    environment = {**os.environ, "LORGNETTE_API_KEY": API_KEY}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def test_the_examples_ask_the_same_question(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    """curl and Python, copied and run: the tokens and the image are the page's own. They send the key; it has none."""
    scheduler = FakeScheduler(fake_server.scheduler.encode)
    with start_server(fake_server.models, scheduler, api_key=API_KEY) as server, open_page(server) as page:
        page.choose(photo)
        page.prompt.fill(ODD_PROMPT)
        page.view.keyboard.press("Enter")
        page.wait("done")
        assert API_KEY not in page.view.content()
        assert page.view.get_by_text("LORGNETTE_API_KEY is the key of this server").is_visible()
        assert run_example(page, "Python", photo.parent) == f"{TUNED_TEXT}\n"
        page.view.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without TLS
        assert read_text(run_example(page, "curl", photo.parent)) == TUNED_TEXT
    rows, pixels = scheduler.rows, scheduler.pixels
    texts = [fake_server.models.models[0].processor.tokenizer.decode(row.prompt.input_ids.tolist()) for row in rows]
    assert len(texts) == 4
    assert ODD_PROMPT in texts[0]
    assert set(texts) == {texts[0]}
    assert len({grid.image.path.name for each in pixels for grid in each}) == 1


def test_an_empty_prompt_is_the_models_own(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    with open_page(fake_server) as page:
        page.choose(photo)
        page.view.keyboard.press("Enter")
        page.wait("done")
        page.prompt.fill(" ")
        assert '"text"' not in str(page.view.locator("#curl").text_content())
        compile(str(page.view.locator("#python").text_content()), "example", "exec")
        assert read_text(run_example(page, "curl", photo.parent)) == TUNED_TEXT  # without a key
        page.view.keyboard.press("Enter")
        page.view.locator(".answer[data-state=busy]").first.wait_for(state="detached")
        page.wait("done")
    rows = fake_server.scheduler.rows
    assert len(rows) == 5
    assert len({tuple(row.prompt.input_ids.tolist()) for row in rows}) == 1


def read_text(events: str) -> str:
    """The answer in a stream."""
    assert events.endswith("data: [DONE]\n\n")
    chunks = [json.loads(line[6:]) for line in events.split("\n\n")[:-2]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_the_keyboard_alone_is_enough(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    with open_page(fake_server, reduced_motion="reduce") as page:
        page.choose(photo)
        page.prompt.fill("one")
        page.view.keyboard.press("Shift+Enter")
        page.view.keyboard.type("two")
        assert page.prompt.input_value() == "one\ntwo"
        for init in ({"isComposing": True}, {"keyCode": 229}):  # Enter ends a word of an input method
            page.prompt.dispatch_event("keydown", {"key": "Enter", **init})
        assert fake_server.scheduler.rows == []
        name = "(({id, value, textContent}) => id || value || textContent)(document.activeElement)"
        reached = []
        while "prompt" not in reached and len(reached) < 20:
            page.view.keyboard.press("Tab")
            reached.append(page.view.evaluate(name).strip())
        code = [str(page.view.locator(f"#{name}").text_content()) for name in ("curl", "python")]
        parts = ["base", "captions", "cats/v2:best", "Ask", "Copy", code[0], "Copy", code[1], "theme", "file", "prompt"]
        assert [text for text in reached if text in parts] == parts
        page.view.evaluate("document.activeElement.blur()")
        page.view.keyboard.press("Enter")  # nothing has the focus
        page.wait("done")
        assert page.view.get_by_role("heading", name="Untuned", level=3).is_visible()
        assert page.view.get_by_role("article", name="captions").is_visible()
        assert len(fake_server.scheduler.rows) == 2
        fake_server.scheduler.step_seconds = 0.5
        page.view.keyboard.press("Enter")
        page.wait("busy")
        assert page.view.evaluate(LINE_ANIMATION) == "none"


def test_the_page_fits_every_window(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    with open_page(fake_server, color_scheme="light") as page:
        fake_server.scheduler.answers[0] = "word " * 50 + "donaudampfschifffahrt" * 9
        page.choose(photo)
        page.view.keyboard.press("Enter")
        page.wait("cut", 1)
        page.wait("done", 1)
        assert page.facts("captions").endswith("cut at 128 tokens")
        check_look(page.page)
        page.view.get_by_role("button", name="Use light colors").click()
        light = page.page.paper()
        page.view.reload()
        assert page.page.paper() == light  # remembered


def test_answers_and_names_enter_as_text(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    text = "<img src=x onerror=alert(1)> & <b>bold</b>"
    fake_server.scheduler.answers = {None: text, 0: text}
    with open_page(fake_server) as page:
        page.choose(photo)
        page.view.keyboard.press("Enter")
        page.wait("done")
        assert page.text("captions") == text
        assert page.view.locator(".answer img, .answer b").count() == 0
    name = "</script><script>alert(1)</script>"
    html = render_page(build_models(name), has_api_key=False)
    assert "<script>alert" not in html
    assert name in unescape(html)


def test_boxes_are_drawn_over_the_image(open_page: Callable[..., Any], fake_server: Any, photo: Path) -> None:
    """In pixels of the file: 48 × 36 here, and the model counts thousandths."""
    fake_server.scheduler.answers = {None: '{"bbox_2d": [100, 250, 500, 750], "label": "<b>"}', 0: "[500, 500]"}
    with open_page(fake_server) as page:
        page.choose(photo)
        page.view.keyboard.press("Enter")
        page.wait("done")
        assert page.view.locator("#boxes .boxes2 .line").get_attribute("d") == "M4.8 9H24V27H4.8Z"
        assert page.view.locator("#boxes .boxes2 text").text_content() == "<b>"
        assert page.view.locator("#boxes .boxes1 .line.point").get_attribute("d") == "M24 18h0"
        assert page.card("base").locator(".box-key").text_content() == "1 box"
        same = "['image', 'boxes'].map(id => JSON.stringify(document.getElementById(id).getBoundingClientRect()))"
        assert len(set(page.view.evaluate(same))) == 1
        page.choose(photo)
        assert page.view.locator("#boxes g").count() == 0
    with open_page(fake_server, complaints=2) as page:
        ask = """body => fetch("/boxes", {method: "POST", headers: {"Content-Type": "application/json"},
          body: JSON.stringify(body)}).then(async response => [response.status, await response.text()])"""
        answer = {"model": "base", "text": "[1,2,3,4]" * 200, "width": 9, "height": 9}
        status, text = page.view.evaluate(ask, answer)
        assert (status, len(json.loads(text)["boxes"])) == (200, 100)
        assert page.view.evaluate(ask, {**answer, "width": 0})[0] == 400
        assert page.view.evaluate(ask, {**answer, "model": "none"})[0] == 404


def build_models(*names: str, sizes: tuple[Any, ...] = ((280, 308),)) -> Any:
    """A ModelSet of a base model and these adapters, as far as the page looks."""
    models = [
        SimpleNamespace(
            name=name, parent=parent, prompt="COCO Yes:", max_new_tokens=64,
            processor=SimpleNamespace(settings=SimpleNamespace(image_size=sizes[i % len(sizes)])),
        )
        for i, (name, parent) in enumerate([*((name, "base") for name in names), ("base" if names else "cats", None)])
    ]  # fmt: skip
    return SimpleNamespace(models=models, base_model="Qwen/Qwen2-VL-2B-Instruct")


@pytest.mark.parametrize(
    ("names", "title", "summary"),
    [
        ((), "cats", "Qwen2-VL-2B-Instruct · 308 × 280 · greedy"),
        (("a",), "a, beside its base", "Qwen2-VL-2B-Instruct · 308 × 280 · greedy"),
        (("a", "b"), "a and b, beside their base", "Qwen2-VL-2B-Instruct · 308 × 280 · greedy"),
        (("a", "b", "c"), "a, b and c, beside their base", "Qwen2-VL-2B-Instruct · 308 × 280 · greedy"),
        (tuple("abcd"), "4 adapters, beside their base", "Qwen2-VL-2B-Instruct · 308 × 280 · greedy"),
    ],
)
def test_the_title_says_what_is_served(names: tuple[str, ...], title: str, summary: str) -> None:
    html = render_page(build_models(*names), has_api_key=False)
    assert f">{title}</h1>" in html
    assert f">{summary}</p>".replace(" × ", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}") in html
    assert html.count("<article") == len(names) + 1
    assert html.count(" checked") == (2 if len(names) > 1 else 0)
    assert "LORGNETTE_API_KEY" not in html


def test_a_size_is_said_if_all_have_it() -> None:
    for sizes in (((280, 280), (560, 560)), (None,)):
        assert "Qwen2-VL-2B-Instruct · greedy" in render_page(build_models("a", sizes=sizes), has_api_key=True)
    assert "LORGNETTE_API_KEY" in render_page(build_models("a"), has_api_key=True)


def test_every_file_that_a_page_names_is_served() -> None:
    files = {name: content.decode() for name, content, _ in read_static_files()}
    html = render_page(build_models("a"), has_api_key=False)
    named = set(re.findall(r'(?:href|src)="/static/([^"]+)"', html))
    for name in sorted(files):
        named |= set(re.findall(r'from "\./([^"]+)"', files[name]))
    assert named == set(files)
    assert not re.search(
        r"""<style|style=|\son\w+=|<script(?! type="application/json"| type="module" src="/static/)""", html
    )


def test_streams_are_read_however_they_are_cut(open_page: Callable[..., Any], fake_server: Any) -> None:
    events = b': ping\n\ndata: {"a": "\xf0\x9f\x8e\x88"}\n\nevent: x\ndata:one\r\ndata: two\r\n\r\ndata: cut off'
    read = """async ([bytes, size]) => {
      const { readEvents } = await import("/static/chat_stream.js"), found = [];
      const stream = new ReadableStream({ start(to) {
        for (let i = 0; i < bytes.length; i += size) to.enqueue(new Uint8Array(bytes.slice(i, i + size)));
        to.close();
      } });
      for await (const data of readEvents(stream)) found.push(data);
      return found;
    }"""
    with open_page(fake_server) as page:
        for size in (1, 2, 5, 1000):
            assert page.view.evaluate(read, [list(events), size]) == ['{"a": "🎈"}', "one\ntwo"]


def test_requests_elsewhere_are_blocked_and_seen(open_page: Callable[..., Any], fake_server: Any) -> None:
    """The control of `open_page`: what the page may not do is no silent success."""
    with pytest.raises(AssertionError, match="Content Security Policy"), open_page(fake_server) as page:
        assert page.view.evaluate("fetch('http://127.0.0.1:9/x').then(() => 'sent', () => 'blocked')") == "blocked"
    with pytest.raises(AssertionError, match=r"example\.invalid"), open_page(fake_server) as page:
        leave(page)


def leave(page: Asking) -> None:
    page.view.route("http://example.invalid/", lambda route: route.fulfill(body="elsewhere"))
    page.view.goto("http://example.invalid/")


def test_several_adapters_are_a_choice(
    open_page: Callable[..., Any], fake_server: Any, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is asked the same question when it is chosen; one that is left out stops."""
    (tuned, other, base), scheduler = fake_server.models.models, fake_server.scheduler
    monkeypatch.setattr(fake_server.models, "models", (tuned, replace(other, prompt="Which cats?"), base))
    html = render_page(fake_server.models, has_api_key=False)
    with open_page(fake_server) as page:
        page.view.route(f"{fake_server.root}/", lambda route: route.fulfill(body=html, content_type="text/html"))
        page.view.goto(f"{fake_server.root}/")
        assert page.prompt.input_value() == ""  # each has its own
        assert "each model was tuned with" in page.prompt.get_attribute("placeholder")
        page.choose(photo)
        page.view.keyboard.press("Enter")
        page.wait("done")
        third = page.view.get_by_role("checkbox", name=other.name)
        third.check()
        page.wait("done", 3)
        assert [page.text(each.name) for each in (base, tuned, other)] == [BASE_TEXT, TUNED_TEXT, "Two cats."]
        scheduler.step_seconds, scheduler.answers[1] = 0.5, BASE_TEXT
        page.prompt.press("Enter")
        page.wait("busy", 3)
        for name in ("Untuned", "captions", other.name):
            page.view.get_by_role("checkbox", name=name).click()
        assert third.is_checked()  # one at least
        assert page.view.locator(".answer:visible").count() == 1
        page.view.get_by_role("checkbox", name="captions").check()  # it was left out: asked again
        page.wait("busy", 2)
        page.view.get_by_role("checkbox", name="captions").uncheck()
        assert f'"model": "{other.name}"' in str(page.view.locator("#curl").text_content())
        page.view.keyboard.press("Escape")
        page.wait("stopped", 1)
    decode = tuned.processor.tokenizer.decode
    asked = {row.adapter: decode(row.prompt.input_ids.tolist()) for row in scheduler.rows}
    assert ["Which cats?" in asked[adapter] for adapter in (None, 0, 1)] == [False, False, True]
