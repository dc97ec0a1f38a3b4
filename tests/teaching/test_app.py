"""The app's routes over HTTP, on a session without a model."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import PIL.Image
import pytest
from taught_app import RUN, FakeSession, Taught, start_taught

from lorgnette.server.api_errors import ApiError
from lorgnette.teaching.image_bytes import THUMBNAIL_SIDE


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / "a.png", folder / "b.tif", folder / "torn.png"]
    for path in paths[:2]:
        PIL.Image.new("RGB", (400, 300), "red").save(path)
    paths[2].write_bytes(b"\x89PNG")
    with start_taught(FakeSession([path.name for path in paths]), paths) as server:
        yield server


@pytest.fixture
def client(taught: Taught) -> Iterator[Any]:
    """A browser that has opened the page."""
    taught.session.reset()
    with httpx.Client(base_url=taught.root, follow_redirects=True) as client:
        assert ">photos</h1>" in client.get(taught.page).text
        yield client


def test_without_the_cookie_nothing_is_told(taught: Taught) -> None:
    for path in ("/state?tab=t&after=-1", "/image/0", "/static/teach.js"):
        assert httpx.get(taught.root + path).status_code == 401
    assert httpx.post(f"{taught.root}/claim", json={"tab": "t"}).status_code == 401
    assert taught.session.calls == []


def test_another_sites_page_may_do_nothing(taught: Taught, client: Any) -> None:
    headers = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    assert client.post("/claim", json={"tab": "t"}, headers=headers).status_code == 403
    assert client.post("/claim", data={"tab": "t"}).status_code == 415
    assert taught.session.calls == []


def test_a_state_is_sent_once_it_is_new(taught: Taught, client: Any) -> None:
    first = client.get("/state", params={"tab": "t", "after": -1}).json()
    assert (first["tab"], first["run"], first["current"]["id"]) == ("other", RUN, "s1")
    timer = threading.Timer(0.2, lambda: taught.session.change(tuned_on=4))
    begin = time.monotonic()
    timer.start()
    second = client.get("/state", params={"tab": "t", "after": first["version"]}).json()
    assert (second["tuned_on"], second["version"]) == (4, first["version"] + 1)
    assert 0.1 < time.monotonic() - begin < 5
    for query in ("", "?tab=t&after=x", "?tab=&after=1", f"?tab={'t' * 65}&after=1"):
        assert client.get(f"/state{query}").status_code == 400


def test_a_state_that_stays_is_sent_at_the_end(taught: Taught, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.teaching.app.WAIT_SECONDS", 0.3)
    version = taught.session.state["version"]
    begin = time.monotonic()
    assert client.get("/state", params={"tab": "t", "after": version}).json()["version"] == version
    assert time.monotonic() - begin >= 0.3
    # A session that is closed does not wait, and the app does not ask it for 20 seconds.
    monkeypatch.setattr("lorgnette.teaching.app.WAIT_SECONDS", 20)
    num_waits: list[float] = []
    monkeypatch.setattr(taught.session, "wait_for_change", lambda _, timeout: num_waits.append(timeout) or version)
    client.get("/state", params={"tab": "t", "after": version})
    assert len(num_waits) == 1


def test_actions_reach_the_session(taught: Taught, client: Any) -> None:
    own = {"tab": "t", "run": RUN}
    assert client.post("/claim", json=own).json() == {"version": taught.session.state["version"]}
    for action, body in (
        ("draft", {"id": "s1", "text": "A"}),
        ("stop", {"id": "s1"}),
        ("answer", {"id": "s1", "text": "A red\nimage.", "keys": 3, "seconds": 1.5}),
        ("mend", {"id": "s1", "text": "Red."}),
        ("undo", {}),
        ("skip", {"id": "s1"}),
        ("train", {}),
        ("finish", {}),
    ):
        answer = client.post(f"/{action}", json={**own, **body})
        assert answer.json() == {"version": taught.session.state["version"]}, action
    assert [(name, *arguments) for name, arguments in taught.session.calls[1:]] == [
        ("draft", "s1", "A"), ("stop", "s1"), ("answer", "s1", "A red\nimage.", 3, 1.5), ("mend", "s1", "Red."),
        ("undo",), ("skip", "s1"), ("train",), ("finish",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        {"id": "s1", "text": "A"},
        {"id": "s1", "text": "A", "keys": -1, "seconds": 1},
        {"id": "s1", "text": "A", "keys": 1, "seconds": 1, "more": 1},
        {"id": "s1", "text": "A" * 70_000, "keys": 1, "seconds": 1},
        [],
    ],
)
def test_an_odd_action_is_refused(taught: Taught, client: Any, body: Any) -> None:
    answer = client.post("/answer", json={"tab": "t", **body} if isinstance(body, dict) else body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_action")
    assert taught.session.calls == []


def test_what_the_session_refuses_is_an_error_of_the_api(taught: Taught, client: Any) -> None:
    answer = client.post("/skip", json={"tab": "t", "id": "s1"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "other_tab")
    client.post("/claim", json={"tab": "t"})
    taught.session.refusal = ApiError(500, "the disk is full", type="server_error", code="disk")
    answer = client.post("/skip", json={"tab": "t", "id": "s1"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the disk is full")


def test_a_page_of_another_run_changes_nothing(taught: Taught, client: Any) -> None:
    answer = client.post("/claim", json={"tab": "t", "run": "/runs/another"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "other_run")
    assert taught.session.calls == []


def test_images_are_numbers_of_the_list(client: Any) -> None:
    shown = client.get("/image/0")
    assert (shown.headers["content-type"], shown.content[:4]) == ("image/png", b"\x89PNG")
    assert shown.headers["cache-control"].startswith("private")
    assert client.get("/image/1").headers["content-type"] == "image/jpeg"
    small = client.get("/image/0", params={"side": THUMBNAIL_SIDE})
    assert len(small.content) > 0
    assert small.headers["content-type"] == "image/jpeg"
    assert client.get("/image/0", params={"side": 10_000}).status_code == 400
    torn = client.get("/image/2")
    assert (torn.status_code, torn.json()["error"]["code"]) == (422, "broken_image")
    assert "photos" not in torn.text  # no path
    for path in ("3", "-1", "a.png", "..%2f..%2fetc%2fpasswd", "%2e%2e/app.py", "0/../../secret", "9" * 40, "9" * 5000):
        assert client.get(f"/image/{path}").status_code == 404, path


def test_what_is_not_there_is_an_error_of_the_api(client: Any) -> None:
    for method, path, status in (("GET", "/answer", 405), ("GET", "/runs", 404), ("GET", "/static/app.py", 404)):
        assert client.request(method, path).status_code == status
