"""The page in a real browser, on a session without a model: each of its states, and what a person does in them."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from browser_pages import Opened, check_look
from taught_app import COMMAND, SUGGESTION, FakeSession, Taught, build_score, start_taught
from taught_run import FakeLearner, open_images, open_run, truth

from lorgnette.server.api_errors import ApiError
from lorgnette.server.page import read_static_files
from lorgnette.teaching.app import STATIC
from lorgnette.teaching.journal import read_events
from lorgnette.teaching.score import compute_score

OTHER_TEXT = "A big red car to the left of a big green tree."
MILLISECONDS = 20_000
SIZES = [(48, 36), (1600, 500), (300, 1400), (48, 36), (48, 36), (48, 36)]
FORGET = "if (performance.getEntriesByType('navigation')[0]?.type === 'navigate') sessionStorage.clear()"
"""Of the tests before in the same tab; a reload keeps it."""
HIDE = """hidden => {
  Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
}"""
SELECTED = "[field.selectionStart, field.selectionEnd]"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    paths = [folder / name for name in ("a.png", "wide.png", "tall.png", "it's <b>d.png", "صورة.png", "f.png")]
    for index, (path, size) in enumerate(zip(paths, SIZES, strict=True)):
        PIL.Image.new("RGB", size, (40 * index, 120, 80)).save(path)
    return paths


@pytest.fixture(scope="module")
def taught(paths: Sequence[Path]) -> Iterator[Taught]:
    with start_taught(FakeSession([path.name for path in paths], sizes=SIZES), paths) as server:
        yield server


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Opened]:
    from playwright.sync_api import expect

    expect.set_options(timeout=MILLISECONDS)
    with Opened(browser, "about:blank") as page:
        page.view.add_init_script(FORGET)
        yield page


class Teaching:
    """The page, with what a person sees and does."""

    def __init__(self, page: Opened, session: FakeSession) -> None:
        from playwright.sync_api import expect

        self.page, self.view, self.session, self.expect = page, page.view, session, expect
        self.field = self.view.locator("#field")
        self.image = self.view.get_by_test_id("picture")
        self.message = self.view.locator("#message-text")

    def button(self, name: str) -> Any:
        return self.view.get_by_role("button", name=name, exact=True)

    def wait_for(self, name: str, text: str | None = None) -> None:
        """This image is shown, and its text may be changed."""
        self.expect(self.image).to_have_attribute("alt", name)
        self.expect(self.field).to_have_js_property("readOnly", value=False)
        if text is not None:
            self.expect(self.field).to_have_value(text)

    def see(self, text: str | re.Pattern[str]) -> None:
        """The message under the title."""
        self.expect(self.message).to_have_text(text)

    def selection(self) -> list[int]:
        return list(self.view.evaluate(f"(({{field}}) => {SELECTED})({{field: document.getElementById('field')}})"))

    def announced(self) -> list[str]:
        return list(self.view.get_by_role("status").locator("p").all_text_contents())


@pytest.fixture
def open_page(tab: Opened, taught: Taught, opened: Callable[..., Opened]) -> Callable[..., Any]:
    """open_page(**state) → Teaching, in the tab that the tests share, or in one of its own with `window`.

    The session begins anew, with these parts of its state. At the end the browser has made `complaints` complaints, and
    no request outside the server.
    """

    @contextmanager
    def start(
        *, complaints: int = 0, window: dict[str, Any] | None = None, server: Taught = taught, **state: Any
    ) -> Iterator[Teaching]:
        with opened("about:blank", **window) if window is not None else nullcontext(tab) as page:
            page.view.set_default_timeout(MILLISECONDS)
            page.view.goto("about:blank")
            server.session.reset()
            if current := state.pop("current", None):
                server.session.change_current(**current)
            server.session.change(**state)
            page.complaints.clear()
            page.requests.clear()
            page.view.goto(server.page)
            page.view.locator("body[data-phase]").wait_for()
            try:
                yield Teaching(page, server.session)
            finally:
                page.view.unroute_all()
            assert len(page.complaints) == complaints, page.complaints
            own = (f"{server.root}/", "about:")
            assert [url for url in page.requests if not url.startswith(own)] == []

    return start


def test_enter_takes_and_the_keyboard_alone_is_enough(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        page.expect(page.view.get_by_label("Caption")).to_be_focused()
        page.expect(page.view.locator("#source")).to_have_text("Untuned model")
        page.expect(page.view.locator("#summary")).to_have_text("0 of 6 · untuned · Qwen2-VL-2B-Instruct")
        assert page.selection() == [0, len(SUGGESTION)]  # typing replaces the first suggestions
        page.view.keyboard.press("Enter")
        page.wait_for("wide.png", SUGGESTION)
        page.view.keyboard.type("Two")
        page.view.keyboard.press("Shift+Enter")
        page.view.keyboard.type("cats.")
        page.expect(page.field).to_have_value("Two\ncats.")
        for init in ({"isComposing": True}, {"keyCode": 229}):  # Enter ends a word of an input method
            page.field.dispatch_event("keydown", {"key": "Enter", **init})
        page.field.dispatch_event("keydown", {"key": "Enter", "repeat": True})  # it is held down
        assert not page.field.evaluate("field => field.readOnly")
        page.view.keyboard.press("Enter")
        page.wait_for("tall.png")
        first, second = page.session.wait_for_call("answer", 2)
        assert (*first[:3], *second[:3]) == ("s1", SUGGESTION, 0, "s2", "Two\ncats.", 3 + 1 + 5 + 2)
        assert 0 <= first[3] < 20
        page.view.keyboard.press("Alt+s")
        page.wait_for("it's <b>d.png")
        assert page.session.wait_for_call("skip") == [("s3",)]
        page.expect(page.view.locator("#summary")).to_contain_text("2 of 6 · 1 skipped")
        page.view.keyboard.press("Control+z")  # nothing is written yet
        page.wait_for("wide.png", "Two\ncats.")
        page.view.keyboard.press("Alt+t")
        page.session.wait_for_call("train")


def test_tuned_suggestions_are_not_selected_and_words_changed_are_shown(open_page: Callable[..., Any]) -> None:
    with open_page(current={"round": 2, "tuned_on": 16}, tuned_on=24) as page:
        page.wait_for("a.png", SUGGESTION)
        page.expect(page.view.locator("#source")).to_have_text("Tuned on 16 answers")
        page.expect(page.view.locator("#summary")).to_contain_text("tuned on 24")
        assert page.selection() == [len(SUGGESTION)] * 2
        changes = page.view.locator("#changes")
        page.expect(changes).to_have_text("")
        page.field.fill(OTHER_TEXT)
        page.expect(changes).to_have_text("You changed: A smallbig red car to the left of a big green tree.")
        assert changes.locator("del").all_text_contents() == ["small"]
        assert changes.locator("ins").all_text_contents() == ["big"]
        page.view.keyboard.press("Escape")
        page.expect(page.field).to_have_value(SUGGESTION)
        page.view.keyboard.press("Control+z")  # the field's own: the words are there again
        page.expect(page.field).to_have_value(OTHER_TEXT)
        page.view.keyboard.press("Escape")
        page.view.keyboard.press("Escape")
        page.expect(page.field).to_have_value("")
        page.view.keyboard.press("Enter")
        page.expect(page.view.get_by_role("alert")).to_have_text("Write something first, or skip the image.")
        page.view.keyboard.press("Escape")
        page.expect(page.field).to_have_value(SUGGESTION)
        page.expect(page.view.get_by_role("alert")).not_to_be_visible()
        assert [name for name, _ in page.session.calls if name in ("answer", "undo")] == []


def test_changes_are_found_word_by_word_in_any_script(open_page: Callable[..., Any]) -> None:
    find = """async pairs => {
      const { findChanges } = await import("/static/word_changes.js");
      const signs = { same: "", out: "-", in: "+" };
      return pairs.map(([a, b]) => findChanges(a, b).map(({ kind, text }) => signs[kind] + text).join("|"));
    }"""
    pairs = {
        ("a b c", "a b c"): "a b c",
        ("a b c", "a x c"): "a |-b|+x| c",
        ("a small red car", "a big blue car"): "a |-small red|+big blue| car",
        ("a b", "a b c"): "a b|+ c",
        ("x", ""): "-x",
        ("我爱北京", "我爱上海"): "我爱|-北京|+上海",
        ("word " * 1200, "text " * 1200): f"-{'word ' * 1200}|+{'text ' * 1200}",
    }
    with open_page() as page:
        assert page.view.evaluate(find, [list(pair) for pair in pairs]) == list(pairs.values())


def test_while_the_model_loads_the_user_writes_already(open_page: Callable[..., Any]) -> None:
    progress = {"text": "Reading Qwen2-VL-2B-Instruct", "seconds": 4.1, "done": 0, "total": 0}
    current = {"text": None, "round": None, "state": "no_model"}
    with open_page(phase="loading", progress=progress, current=current) as page:
        page.see(re.compile(r"^Reading Qwen2-VL-2B-Instruct … [4-9] s$"))
        page.wait_for("a.png", "")
        page.expect(page.view.locator("#source")).to_have_text("No model yet: write it yourself")
        page.expect(page.view.locator("#line")).to_have_attribute("data-state", "busy")
        page.view.keyboard.type("A cat.")
        page.session.change(progress={**progress, "done": 3, "total": 6, "text": "Looking at the images"})
        page.see(re.compile(r"^Looking at the images … 3 of 6 [4-9] s$"))
        page.expect(page.view.locator("#line")).to_have_attribute("data-state", "part")
        page.session.change(phase="ready", progress=None)
        page.see("")
        page.expect(page.field).to_have_value("A cat.")
        page.view.keyboard.press("Enter")
        assert page.session.wait_for_call("answer")[0][:3] == ("s1", "A cat.", 6)


def test_a_key_stops_a_suggestion_that_grows(open_page: Callable[..., Any]) -> None:
    with open_page(current={"text": None, "state": "waiting"}) as page:
        page.expect(page.view.locator("#source")).to_have_text("Suggesting …")
        page.expect(page.field).to_have_js_property("readOnly", value=True)
        page.expect(page.field).to_have_attribute("placeholder", "Suggesting …, or write it yourself")
        page.session.change(round={"number": 3, "answers": 24, "seconds": 1.2, "step": 7, "total": 28})
        page.expect(page.view.locator("#source")).to_have_text("Suggesting after this round …")
        page.session.change(round=None)
        for text in ("A small", "A small red"):
            page.session.change_current(text=text, state="streaming")
            page.expect(page.field).to_have_value(text)
        assert page.field.evaluate("field => field.readOnly")
        assert page.field.evaluate("field => field.form.getAttribute('aria-busy')") == "true"
        assert page.announced() == []  # a screen reader hears it once, whole
        page.view.keyboard.press("Shift")  # no text
        assert [name for name, _ in page.session.calls if name == "stop"] == []
        page.view.keyboard.type(" cat")
        page.expect(page.field).to_have_value("A small red cat")
        assert page.session.wait_for_call("stop") == [("s1",)]
        page.session.change_current(text="A small red car", state="ready")  # what there was when it stopped
        page.expect(page.view.locator("#changes")).to_have_text("You changed: A small red carcat")
        page.expect(page.field).to_have_value("A small red cat")
        page.session.text = None
        page.session.move(1, state="waiting")
        page.expect(page.image).to_have_attribute("alt", "wide.png")
        page.view.keyboard.press("Enter")  # takes nothing that is not there
        assert page.session.wait_for_call("stop", 2)[1] == ("s2",)
        page.session.change_current(text=SUGGESTION, state="ready")
        page.wait_for("wide.png", SUGGESTION)
        page.expect(page.view.get_by_role("status")).to_contain_text(f"wide.png. {SUGGESTION}")
        assert [name for name, _ in page.session.calls if name == "answer"] == []


def test_while_a_round_runs_the_words_stay(open_page: Callable[..., Any]) -> None:
    with open_page(counts={"answered": 24, "skipped": 0, "left": 2, "total": 26}) as page:
        page.wait_for("a.png", SUGGESTION)
        page.button("Tune now").click()
        page.session.wait_for_call("train")
        page.session.change(round={"number": 3, "answers": 24, "seconds": 1.2, "step": 7, "total": 28})
        page.see(re.compile(r"^Tuning on 24 answers … [1-9] s$"))
        assert page.view.locator("#line").evaluate("line => line.style.transform") == "scaleX(0.25)"
        page.expect(page.button("Tune now")).to_be_disabled()
        page.field.fill(OTHER_TEXT)
        notice = {"kind": "tuned", "text": "Tuned on 24 answers in 1.6 s.", "details": "28 steps", "images": []}
        page.session.change(round=None, notice=notice, tuned_on=24)
        page.see("Tuned on 24 answers in 1.6 s.")
        page.expect(page.view.locator("#message-note")).to_have_text("28 steps")
        page.expect(page.view.locator("#summary")).to_contain_text("24 of 26 · tuned on 24")
        page.expect(page.field).to_have_value(OTHER_TEXT)
        page.expect(page.view.get_by_role("status")).to_contain_text("Tuned on 24 answers in 1.6 s.")
        page.session.change(notice={**notice, "kind": "not_tuned", "text": "The last 8 were all right: not tuned."})
        page.see("The last 8 were all right: not tuned.")
        assert [text for text in page.announced() if "uned" in text] == [
            "Tuned on 24 answers in 1.6 s.", "The last 8 were all right: not tuned.",
        ]  # fmt: skip


@pytest.mark.parametrize("kind", ["failed", "memory"])
def test_a_round_that_fails_is_said_and_tried_again(open_page: Callable[..., Any], kind: str) -> None:
    text = "Round 4 did not finish: loss is not finite. The model of round 3 goes on."
    counts = {"answered": 24, "skipped": 0, "left": 2, "total": 26}
    notice = {"kind": kind, "text": text, "details": "step 7: <b>nan</b>", "images": [], "action": "train"}
    with open_page(notice=notice, counts=counts) as page:
        page.see(text)
        page.view.get_by_text("Details").click()
        page.expect(page.view.get_by_text("step 7: <b>nan</b>")).to_be_visible()
        page.button("Try again").click()
        page.session.wait_for_call("train")
        page.wait_for("a.png", SUGGESTION)
        page.session.change(notice={**notice, "text": "Cannot write: no space.", "action": ""})  # a round does not help
        page.see("Cannot write: no space.")
        page.expect(page.button("Try again")).not_to_be_visible()


def test_a_model_that_is_lost_leaves_the_field(open_page: Callable[..., Any]) -> None:
    with open_page(phase="failed", current={"text": None, "state": "no_model"}) as page:
        page.see("The model has stopped: the terminal says why. You can go on writing.")
        page.expect(page.button("Tune now")).to_be_disabled()
        page.wait_for("a.png", "")
        page.view.keyboard.type("A cat.")
        page.view.keyboard.press("Enter")
        page.wait_for("wide.png")


@pytest.mark.parametrize(
    ("kind", "text", "action"),
    [
        ("enough", "Right 16 times in a row. Finish and let it caption the other 212?", "finish"),
        ("flat", "More answers no longer help: 11 of 16, before 12. What it still gets wrong:", "finish"),
        ("unlearned", "The model does not learn this yet.", ""),
    ],
)
def test_what_the_answers_came_to_is_said(open_page: Callable[..., Any], kind: str, text: str, action: Any) -> None:
    images = [1, 3] if kind == "flat" else []
    with open_page(notice={"kind": kind, "text": text, "details": "", "images": images, "action": action}) as page:
        page.see(text)
        page.expect(page.view.locator("#message-images img")).to_have_count(len(images))
        button = page.view.locator("#message-button")
        if not action:
            page.expect(button).not_to_be_visible()
        else:
            button.click()
            page.session.wait_for_call(action)


def test_a_broken_image_is_skipped(open_page: Callable[..., Any], paths: Sequence[Path]) -> None:
    problem = {"text": None, "state": "broken", "problem": "image is cut off"}
    with open_page(current=problem, complaints=3) as page:  # the browser's own lines
        page.expect(page.view.get_by_text("Cannot be read: image is cut off.")).to_be_visible()
        page.expect(page.field).not_to_be_visible()
        page.expect(page.button("Take")).not_to_be_visible()
        page.button("Skip").click()
        page.wait_for("wide.png", SUGGESTION)
        # A file that was damaged since: the server cannot read it.
        page.view.route("**/image/2?*", lambda route: route.fulfill(status=422, json={"error": {"message": "torn"}}))
        page.view.reload()
        page.button("Skip").click()
        page.expect(page.view.get_by_text("Cannot be read: torn.")).to_be_visible()
        page.expect(page.image).not_to_be_visible()


def test_look_alikes_blind_images_and_reviews_are_named(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        source = page.view.locator("#source")
        for changes, words in (
            ({"alike": "b/a.jpg"}, "Like b/a.jpg"),
            ({"text": None, "state": "blind"}, "Without a suggestion, to compare"),
            ({"is_review": True}, "Review: the present answer"),
        ):
            page.session.change_current(**{"alike": None, "state": "ready", "text": SUGGESTION, **changes})
            page.expect(source).to_have_text(words)


def test_what_the_untuned_model_says_is_shown_while_keys_are_held(open_page: Callable[..., Any]) -> None:
    untuned = "The image depicts a car."
    tuned = {"round": 2, "tuned_on": 16}
    with open_page(tuned_on=16, current=tuned, window={}) as page:
        text, keyboard = page.view.locator("#untuned-text"), page.view.keyboard
        page.wait_for("a.png", SUGGESTION)
        page.expect(page.view.locator("#keys")).to_contain_text("Alt U held: the untuned model")
        page.field.press_sequentially(" Yes.")
        page.expect(text).not_to_be_visible()
        keyboard.down("Alt")
        keyboard.down("u")
        page.expect(text).to_have_text("The untuned model answers …")
        page.expect(page.view.locator("#source")).to_have_text("Untuned model")
        assert page.session.wait_for_call("untuned") == [("s1",)]
        page.session.change_current(untuned=untuned)
        page.expect(text).to_have_text(untuned)
        keyboard.down("u")  # the key repeats
        keyboard.up("u")
        page.expect(text).not_to_be_visible()
        keyboard.up("Alt")
        page.expect(page.view.locator("#source")).to_have_text("Tuned on 16 answers")
        page.expect(page.field).to_have_value(f"{SUGGESTION} Yes.")
        page.expect(page.field).to_be_focused()
        assert page.announced()[-1] == f"Untuned model: {untuned}"
        # It is there now: nothing is asked again. Alt Tab leaves the window with the keys down.
        keyboard.press("Alt+u", delay=1)
        keyboard.down("Alt")
        keyboard.down("u")
        page.expect(text).to_have_text(untuned)
        page.view.evaluate("dispatchEvent(new Event('blur'))")
        page.expect(text).not_to_be_visible()
        keyboard.up("u")
        keyboard.up("Alt")
        # The button does the same; the field keeps the focus.
        button = page.button("Untuned")
        button.hover()
        page.view.mouse.down()
        page.expect(text).to_have_text(untuned)
        page.expect(page.field).to_be_focused()
        check_look(page.page)
        page.view.mouse.up()
        page.expect(text).not_to_be_visible()
        assert len(page.session.wait_for_call("untuned")) == 1
        page.field.press("Enter")
        [(_, answer, keys, _)] = page.session.wait_for_call("answer")
        assert (answer, keys) == (f"{SUGGESTION} Yes.", 5)  # neither Alt nor U counts


def test_the_untuned_model_is_there_only_where_it_differs_and_spoils_nothing(open_page: Callable[..., Any]) -> None:
    with open_page(complaints=1) as page:  # of the browser, about the 409
        page.wait_for("a.png", SUGGESTION)
        button = page.button("Untuned")
        for state, changes, is_there in (
            ({"tuned_on": 0}, {}, False),
            ({"tuned_on": 8}, {}, True),
            ({"tuned_on": 8}, {"state": "blind", "text": None}, False),
            ({"tuned_on": 8}, {"state": "ready", "text": SUGGESTION, "untuned": ""}, True),
        ):
            page.session.change(**state)
            page.session.change_current(**changes)
            page.expect(button).to_be_visible(visible=is_there)
            page.view.keyboard.down("Alt")
            page.view.keyboard.down("u")
            page.expect(page.view.locator("#untuned-text")).to_be_visible(visible=is_there)
            page.view.keyboard.up("u")
            page.view.keyboard.up("Alt")
        page.view.keyboard.down("Alt")
        page.view.keyboard.down("u")
        page.expect(page.view.locator("#untuned-text")).to_have_text("The untuned model says nothing.")
        page.session.move(1)  # another image: what was asked is over
        page.expect(page.view.locator("#untuned-text")).not_to_be_visible()
        # What the server refuses is said, and nothing is waited for.
        page.session.refusal = ApiError(409, "The model has stopped.", code="no_model")
        page.view.keyboard.up("u")
        page.view.keyboard.down("u")
        page.expect(page.view.locator("#problem")).to_have_text("The model has stopped.")
        page.expect(page.view.locator("#untuned-text")).not_to_be_visible()
        page.view.keyboard.up("u")
        page.view.keyboard.up("Alt")


def test_another_tab_takes_over(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        page.field.fill(OTHER_TEXT)
        mine = page.session.owner
        page.session.claim("another tab")
        page.see("Open in another tab.")
        page.expect(page.field).to_have_js_property("readOnly", value=True)
        page.expect(page.field).to_have_value(OTHER_TEXT)
        for name in ("Take", "Skip", "Undo", "Tune now", "Finish"):
            page.expect(page.button(name)).to_be_disabled()
        page.field.press("Enter")
        page.button("Use it here").click()
        page.wait_for("a.png", OTHER_TEXT)
        assert page.session.owner == mine
        assert [name for name, _ in page.session.calls if name == "answer"] == []


def test_a_reload_keeps_the_draft(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        page.view.keyboard.press("End")
        page.view.keyboard.type(" At")
        page.view.reload()
        page.wait_for("a.png", f"{SUGGESTION} At")
        page.expect(page.field).to_be_focused()
        page.view.keyboard.press("Control+End")
        page.view.keyboard.type(" night.")
        assert page.session.wait_for_call("draft")[-1] == ("s1", f"{SUGGESTION} At night.")  # after half a second
        page.view.keyboard.press("Enter")
        page.wait_for("wide.png", SUGGESTION)
        id, text, keys, seconds = page.session.wait_for_call("answer")[0]
        assert (id, text, keys) == ("s1", f"{SUGGESTION} At night.", 1 + 3 + 1 + 7)
        assert seconds > 0.5
        # Without this tab's storage, the server's draft is taken.
        page.session.change_current(draft=OTHER_TEXT)
        page.view.evaluate("sessionStorage.clear()")
        page.view.reload()
        page.wait_for("wide.png", OTHER_TEXT)


def test_an_answer_is_sent_once_the_server_is_back(opened: Callable[..., Opened], paths: Sequence[Path]) -> None:
    """lorgnette ends, is started again with the page's token, and with another one."""
    session = FakeSession([path.name for path in paths], sizes=SIZES)
    with opened("about:blank") as window:
        window.view.set_default_timeout(MILLISECONDS)
        with start_taught(session, paths) as server:
            port = server.settings.port
            window.view.goto(server.page)
            page = Teaching(window, session)
            page.wait_for("a.png", SUGGESTION)
        page.see(f"lorgnette has stopped. Your words are kept here. Start {COMMAND} again.")
        page.field.fill("A cat.")
        page.field.press("Enter")
        page.wait_for("a.png", "A cat.")
        with start_taught(session, paths, port):
            page.button("Try now").click()
            page.wait_for("wide.png", SUGGESTION)
            assert [call[:2] for call in session.wait_for_call("answer")] == [("s1", "A cat.")]
            page.see("")
        page.see(re.compile("^lorgnette has stopped"))
        page.field.fill("A dog.")
        page.field.press("Enter")
        page.wait_for("wide.png", "A dog.")
        page.field.fill("A dog!")  # what is written afterwards counts, and is not sent by itself
        with start_taught(session, paths, port, token="another-token-of-this-test") as server:
            page.see(re.compile("^lorgnette was started again. Open the address that it printed last"))  # by itself
            page.expect(page.field).to_have_value("A dog!")
            other = window.context.new_page()
            other.goto(server.page)  # the cookie is the browser's
            other.close()
            page.button("Try now").click()
            page.see("Open in another tab.")
            page.button("Use it here").click()
            page.wait_for("wide.png", "A dog!")
            page.see("")
        assert len(session.wait_for_call("answer")) == 1
        own = f"http://127.0.0.1:{port}/"
        assert [url for url in window.requests if not url.startswith((own, "about:"))] == []


def test_a_word_of_an_input_method_is_no_answer(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        devtools = page.page.context.new_cdp_session(page.view)
        devtools.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
        page.expect(page.field).to_have_value("にほん")
        page.view.keyboard.press("Enter")  # chooses the word; without an input method behind it, it breaks the line
        devtools.send("Input.insertText", {"text": "日本"})
        page.wait_for("a.png", "日本\n")
        page.view.keyboard.press("Enter")
        page.wait_for("wide.png")
        assert [call[:2] for call in page.session.wait_for_call("answer")] == [("s1", "日本")]


def test_what_the_server_refuses_is_said(open_page: Callable[..., Any]) -> None:
    with open_page(complaints=2) as page:
        page.wait_for("a.png", SUGGESTION)
        page.session.refusal = ApiError(400, "no label has this name")
        page.view.keyboard.press("Enter")
        page.expect(page.view.get_by_role("alert")).to_have_text("No label has this name.")
        page.wait_for("a.png", SUGGESTION)
        page.session.refusal = ApiError(500, "the disk is full", type="server_error", code="disk")
        page.button("Skip").click()
        page.expect(page.view.get_by_role("alert")).to_have_text("The disk is full.")
        page.session.refusal = None
        page.view.keyboard.press("Enter")
        page.wait_for("wide.png", SUGGESTION)
        page.expect(page.view.get_by_role("alert")).not_to_be_visible()


def test_answers_of_before_are_mended(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        for name in ("a.png", "wide.png"):
            page.wait_for(name, SUGGESTION)
            page.view.keyboard.press("Enter")
        page.wait_for("tall.png", SUGGESTION)
        page.view.keyboard.press("Control+End")
        page.view.keyboard.type(" Half")
        page.view.keyboard.press("PageUp")
        page.wait_for("wide.png", SUGGESTION)
        page.expect(page.view.locator("#source")).to_have_text("An earlier answer")
        page.view.keyboard.press("PageUp")
        page.wait_for("a.png")
        page.view.keyboard.press("PageUp")  # there is none before
        page.expect(page.view.locator("#history [aria-pressed=true]")).to_have_text(re.compile("A small"))
        page.field.fill(OTHER_TEXT)
        page.view.keyboard.press("Enter")
        page.wait_for("tall.png", f"{SUGGESTION} Half")  # where the user was
        assert page.session.wait_for_call("mend") == [("s1", OTHER_TEXT)]
        page.expect(page.view.locator("#history button").nth(1)).to_contain_text(OTHER_TEXT)
        page.expect(page.view.locator("#history .sign").first).to_have_text("✓")
        page.view.locator("#history button").first.click()
        page.wait_for("wide.png")
        page.button("Back").click()
        page.wait_for("tall.png", f"{SUGGESTION} Half")
        page.button("Undo").click()
        page.wait_for("wide.png", SUGGESTION)
        page.expect(page.view.locator("#history button")).to_have_count(1)
        assert len(page.session.wait_for_call("mend")) == 1


def test_labels_are_keys_and_buttons(open_page: Callable[..., Any]) -> None:
    labels = ["car", "tree", *(f"label {i}" for i in range(3, 12))]
    with open_page(labels=labels, prompt="What is it?", current={"text": "Tree."}) as page:
        page.expect(page.view.get_by_role("radio", name="tree")).to_be_checked()
        page.expect(page.view.get_by_role("radio", name="tree")).to_be_focused()
        page.expect(page.view.locator("#label")).to_have_text("Answer")
        page.expect(page.view.locator("#prompt")).to_have_text("What is it?")
        page.expect(page.field).not_to_be_visible()
        page.session.text = "I do not know"
        page.view.keyboard.press("Enter")
        page.expect(page.image).to_have_attribute("alt", "wide.png")
        page.expect(page.view.locator("#labels :checked")).to_have_count(0)
        page.view.keyboard.press("Enter")
        page.expect(page.view.get_by_role("alert")).to_have_text("Choose one, or skip the image.")
        page.view.keyboard.press("1")
        page.expect(page.view.get_by_role("radio", name="car")).to_be_checked()
        page.view.keyboard.press("Enter")
        page.expect(page.image).to_have_attribute("alt", "tall.png")
        page.view.get_by_text("label 11").click()
        page.button("Take").click()
        page.expect(page.image).to_have_attribute("alt", "it's <b>d.png")
        answers = page.session.wait_for_call("answer", 3)
        assert [answer[1:3] for answer in answers] == [("tree", 0), ("car", 1), ("label 11", 0)]


def test_the_score_is_drawn_and_read(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.expect(page.view.locator("#score")).not_to_be_visible()
        page.session.change(score=build_score([False] * 8 + [True] * 12))
        page.expect(page.view.locator("#score-text")).to_have_text("12 of the last 16")
        page.expect(page.view.locator("#effort")).to_have_text(
            "5 % of the letters changed · 85 % of key presses saved · 4.0 s an image"
        )
        plot = page.view.locator("#plot")
        page.expect(plot).to_have_attribute("aria-label", re.compile("the share is 75 % after 20 answers"))
        assert str(plot.locator(".line").get_attribute("d")).endswith("L1000.0 250.0")
        plot.focus()
        page.view.keyboard.press("ArrowLeft")
        page.view.keyboard.press("ArrowLeft")
        page.expect(page.view.locator("#readout")).to_have_text(re.compile("^after 19: 69 %, with 90 % confidence 4"))
        page.expect(page.view.locator("#anchoring")).not_to_be_visible()
        page.field.focus()
        page.expect(page.view.locator("#anchoring")).to_contain_text("--blind 10")
        page.session.change(score=build_score([False] * 16, edit=0.1))
        page.expect(page.view.locator("#score-text")).to_have_text("90 % of the letters stay")
        page.expect(page.view.locator("#effort")).to_contain_text("0 of 16 taken as they stand")


def test_finish_shows_where_everything_is(open_page: Callable[..., Any]) -> None:
    files = {"captions": "runs/t/captions.csv", "report": "runs/t/report.html", "adapter": "runs/t/adapter"}
    with open_page(counts={"answered": 41, "skipped": 1, "left": 54, "total": 96}) as page:
        page.button("Finish").click()
        page.session.wait_for_call("finish")
        page.session.change(progress={"text": "Captioning the others", "seconds": 2, "done": 3, "total": 54})
        page.see(re.compile("^Captioning the others … 3 of 54"))
        page.expect(page.button("Finish")).to_be_disabled()
        commands = ["lorgnette predict 'new photos' --run runs/t", "lorgnette serve runs/t"]
        page.session.change(phase="finished", progress=None, files=files, commands=commands)
        words = "41 images captioned by you, 54 by the model, 1 without a caption."
        page.expect(page.view.locator("#finished-text")).to_contain_text(words)
        shown = page.view.locator("#files dd").all_text_contents()
        assert shown == [files[name] for name in ("captions", "adapter", "report")]
        assert page.view.locator("#commands code").all_text_contents() == commands
        page.expect(page.field).not_to_be_visible()
        page.button("Go on teaching").click()
        page.wait_for("a.png", SUGGESTION)
        page.expect(page.field).to_be_focused()
        page.view.keyboard.press("Enter")
        page.wait_for("wide.png")
        page.session.change(phase="loading", current=None)
        page.expect(page.view.get_by_text("The next image comes as soon as")).to_be_visible()
        page.session.change(phase="ready", counts={"answered": 95, "skipped": 1, "left": 0, "total": 96})
        page.expect(page.view.get_by_text("Every image is answered.")).to_be_visible()
        page.expect(page.field).not_to_be_visible()
        page.view.keyboard.press("Control+z")
        page.wait_for("a.png", SUGGESTION)
        # An end while the user writes does not take the field away.
        page.field.fill(OTHER_TEXT)
        page.session.change(phase="finished")
        page.see("Finished: the report is written, and so are the captions of the other images.")
        page.expect(page.field).to_have_value(OTHER_TEXT)
        page.button("Show").click()
        page.expect(page.view.locator("#finished-text")).to_be_visible()


@pytest.mark.parametrize(
    "window",
    [
        {"viewport": {"width": 1280, "height": 800}},
        {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
    ],
    ids=["desk", "phone"],
)
def test_the_image_and_its_field_fit_without_scrolling(open_page: Callable[..., Any], window: dict[str, Any]) -> None:
    bottom = "element => element.getBoundingClientRect().bottom"
    current = {"text": f"{SUGGESTION} {OTHER_TEXT}", "untuned": OTHER_TEXT, "round": 2, "tuned_on": 16}
    with open_page(window=window, tuned_on=16, current=current) as page:
        is_phone = "is_mobile" in window
        for name in ("a.png", "wide.png", "tall.png"):
            page.wait_for(name)
            page.expect(page.image).not_to_have_class("loading")
            box = page.image.bounding_box()
            assert box["height"] > 200
            for element in (page.image, page.field, page.button("Take"), page.button("Skip")):
                assert element.evaluate(bottom) <= window["viewport"]["height"]
            assert page.view.evaluate("document.documentElement.scrollWidth") == window["viewport"]["width"]
            if is_phone:
                for button in page.view.locator("button:visible").all():
                    assert button.bounding_box()["height"] >= 44, button.text_content()
                assert page.view.evaluate("document.activeElement.id") != "field"  # its keyboard would open
            if name == "a.png":
                hold = page.button("Untuned").dispatch_event
                place = page.field.bounding_box()
                hold("pointerdown", {"button": 0})
                page.expect(page.view.locator("#untuned-text")).to_have_text(OTHER_TEXT)
                assert page.field.bounding_box() == place  # nothing moves under the finger
                hold("pointerup", {"bubbles": True})
                page.expect(page.view.locator("#untuned-text")).not_to_be_visible()
            page.button("Take").click()
        page.wait_for("it's <b>d.png")
        page.image.click()
        page.expect(page.view.get_by_role("dialog")).to_be_visible()
        page.view.keyboard.press("Escape")
        page.expect(page.view.get_by_role("dialog")).not_to_be_visible()
        page.wait_for("it's <b>d.png", SUGGESTION)


def test_every_state_is_fit_to_look_at(open_page: Callable[..., Any]) -> None:
    past = [
        {"id": f"s{i}", "image": i, "name": "a.png", "text": "donaudampfschifffahrt" * 9, "suggestion": suggestion}
        for i, suggestion in enumerate((None, "A cat.", "donaudampfschifffahrt" * 9))
    ]
    notice = {"kind": "failed", "text": "Round 4 did not finish.", "details": "word" * 100, "images": [1, 2]}
    with open_page(history=past, score=build_score([True, False] * 10), notice=notice, window={}) as page:
        page.wait_for("a.png", SUGGESTION)
        page.field.fill(OTHER_TEXT + "donaudampfschifffahrt" * 9)
        check_look(page.page)
        files, commands = {"captions": "c" * 90}, ["lorgnette " + "x" * 90]
        page.session.change(phase="finished", files=files, commands=commands, notice=None)
        page.button("Show").click()
        page.expect(page.view.locator("#finished-text")).to_be_visible()
        check_look(page.page)
        page.session.change(phase="ready", round={"number": 3, "answers": 24, "seconds": 1.2, "step": 7, "total": 28})
        page.session.text = None
        page.session.move(4, state="waiting")
        page.expect(page.field).to_have_js_property("readOnly", value=True)
        check_look(page.page)
        page.session.change(round=None, labels=["cat", "donaudampfschifffahrt" * 3])
        page.session.move(5, text="Cat.")
        page.expect(page.view.locator("#labels :checked")).to_have_value("cat")
        check_look(page.page)
        page.session.owner = "another"
        page.session.change()
        page.see("Open in another tab.")
        check_look(page.page)


def test_texts_and_names_are_text_in_any_direction(open_page: Callable[..., Any]) -> None:
    name = "it's <b>d.png"
    with open_page() as page:
        page.session.text = "<img src=x onerror=alert(1)> & سيارة"
        page.session.move(3)
        page.wait_for(name, page.session.text)
        page.session.text = "سيارة حمراء"
        page.view.keyboard.press("Enter")
        page.wait_for("صورة.png", "سيارة حمراء")
        assert page.field.evaluate("field => getComputedStyle(field).direction") == "rtl"
        page.field.fill("سيارة زرقاء")
        changed = page.view.locator("#changes bdi")
        assert changed.evaluate("changed => getComputedStyle(changed).direction") == "rtl"
        page.expect(page.view.locator("#history .text")).to_have_text("<img src=x onerror=alert(1)> & سيارة")
        assert page.view.locator("#history b, #name b, [onerror]").count() == 0


def test_the_next_image_is_there_before_it_is_asked_about(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        for number in (0, 1):
            deadline = time.monotonic() + 20
            while not any(f"/image/{number}?" in url for url in page.page.requests) and time.monotonic() < deadline:
                page.view.wait_for_timeout(10)
        assert sorted({url.partition("?")[0][-1] for url in page.page.requests if "/image/" in url}) == ["0", "1"]


def test_time_is_counted_while_the_window_is_seen(open_page: Callable[..., Any]) -> None:
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        page.view.evaluate(HIDE, True)
        page.view.wait_for_timeout(1500)
        page.view.evaluate(HIDE, False)
        page.view.keyboard.press("Enter")
        assert page.session.wait_for_call("answer")[0][3] < 1.4


def test_a_hidden_page_asks_for_nothing(open_page: Callable[..., Any]) -> None:
    """A browser has six connections for all pages of the server."""
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        page.view.evaluate(HIDE, True)
        page.session.change(tuned_on=4)  # ends the request that waits
        page.expect(page.view.locator("#summary")).to_contain_text("tuned on 4")
        page.session.change(tuned_on=8)
        page.view.wait_for_timeout(300)
        page.expect(page.view.locator("#summary")).to_contain_text("tuned on 4")
        page.view.evaluate(HIDE, False)
        page.expect(page.view.locator("#summary")).to_contain_text("tuned on 8")


def test_another_run_at_the_address_gets_no_answer(open_page: Callable[..., Any], taught: Taught) -> None:
    """Its ids may be the same: the page of one folder must not answer for another."""
    with open_page() as page:
        page.wait_for("a.png", SUGGESTION)
        other = {**taught.session.view("t"), "run": "/runs/b"}
        other["current"] = {**other["current"], "id": "s9", "text": "Another."}
        page.view.route("**/state?*", lambda route: route.fulfill(json=other))
        page.session.change()
        page.see(
            "Another run is taught at this address now. Your words are kept here: copy them, then reload the page."
        )
        page.expect(page.field).to_have_value(SUGGESTION)


def test_a_run_is_taught(opened: Callable[..., Opened], tmp_path: Path) -> None:
    """The real session, with a learner that is right after eight answers; it is started anew in between."""
    images = open_images(tmp_path / "images", 24)
    learner = FakeLearner(24)
    learner.open_gate.clear()
    with opened("about:blank") as window:
        window.view.set_default_timeout(MILLISECONDS)
        with (
            open_run(tmp_path, learner=learner, images=images) as run,
            start_taught(run.session, images.paths) as server,
        ):
            window.view.goto(server.page)
            page = Teaching(window, run.session)
            page.see(re.compile("^Reading the images … 0 of 24"))
            page.expect(page.field).to_have_js_property("readOnly", value=False)
            page.field.fill("A first answer.")
            page.field.press("Enter")
            page.expect(page.view.locator("#summary")).to_contain_text("1 of 24")
            learner.open_gate.set()
            page.see("")
            for number in range(1, 12):
                teach_image(page, images.names)
                page.expect(page.view.locator("#summary")).to_contain_text(f"{number + 1} of 24")
                run.until_idle()
            page.see("Tuned on 8 answers in 0.5 s.")
            page.expect(page.view.locator("#score-text")).to_have_text(f"{count_taken(run.folder)} of 11")
            assert count_taken(run.folder) >= 2
            page.button("Skip").click()
            page.expect(page.view.locator("#summary")).to_contain_text("1 skipped")
            page.button("Undo").click()
            page.expect(page.view.locator("#summary")).not_to_contain_text("skipped")
            name = page.image.get_attribute("alt")
            page.wait_for(name, truth(images.names.index(name)))
            page.field.fill("Half a")
        page.see(re.compile("^lorgnette has stopped"))
        port = server.settings.port
        with open_run(tmp_path, images=images) as run, start_taught(run.session, images.paths, port):
            page.session = run.session
            page.field.press("End")
            page.view.keyboard.type(" word")
            page.button("Try now").click()
            page.expect(page.view.locator("#summary")).to_contain_text("12 of 24 · tuned on 8")
            page.wait_for(name, "Half a word")
            page.field.press("Enter")
            page.expect(page.view.locator("#summary")).to_contain_text("13 of 24")
            page.button("Finish").click()
            page.expect(page.view.locator("#finished-text")).to_contain_text(
                "13 images captioned by you, 11 by the model"
            )


def teach_image(page: Teaching, names: Sequence[str]) -> None:
    """As a person does: the truth, typed or taken."""
    page.expect(page.field).to_have_js_property("readOnly", value=False)
    text = truth(names.index(page.image.get_attribute("alt")))
    if page.field.input_value() != text:
        page.field.fill(text)
    page.field.press("Enter")


def count_taken(folder: Path) -> int:
    """From the journal."""
    return sum(compute_score(read_events(folder / "journal.jsonl")).taken)


def test_every_file_that_the_page_names_is_served() -> None:
    files = {name: content.decode() for name, content, _ in read_static_files(STATIC)}
    html = (STATIC / "teach.html.j2").read_text(encoding="utf-8")
    named = {"teach.js", "teach.css"}
    for name in sorted(files):
        named |= set(re.findall(r'from "\./([^"]+)"', files[name]))
    assert named <= set(files)
    assert {path.name for path in STATIC.iterdir() if path.suffix != ".j2"} <= named
    assert not re.search(r"""<style|style=|\son\w+=|<script""", html)
