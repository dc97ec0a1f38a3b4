"""A server stays right and whole while users ask, leave and attack it all at once; soak.py, of which this is a sample.

`make test-soak` asks ten thousand times.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import soak

NUM_QUESTIONS, NUM_REQUESTS, NUM_CROWD = 8, 60, 12


def test_users_of_every_kind(fork_command: Callable[..., list[str]], tmp_path: Path) -> None:
    adapter = soak.write_adapter(tmp_path / "adapter")
    command = fork_command("lorgnette", "serve", f"tuned={adapter}", "--device", "cpu")
    questions = random.Random(0).sample(soak.list_questions(), NUM_QUESTIONS)
    report = soak.soak(
        command, tmp_path / "server", questions, num_requests=NUM_REQUESTS, num_users=8, num_crowd=NUM_CROWD
    )
    assert report["wrongs"] == []
    assert report["requests"] == NUM_REQUESTS + NUM_CROWD
    assert {"whole", "streamed", "bad", "gone", "half"} <= report["counts"].keys()


def test_what_has_grown_is_told() -> None:
    usage = soak.Usage(memory=10**8, files=9, threads=5, upload_bytes=10**6)
    assert soak.explain_growth(usage, replace(usage, upload_bytes=2 * 10**6)) == []
    grown = replace(usage, memory=10**9, files=10, threads=9, upload_bytes=10**9)
    assert len(soak.explain_growth(usage, grown)) == 4


def build_chunk(text: str) -> str:
    return f'data: {{"choices": [{{"delta": {{"content": "{text}"}}}}]}}\n\n'


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, build_chunk("A blue car.") + "data: [DONE]\n\n", "instead of 'A red car.'"),
        (200, build_chunk("A red car."), "breaks off"),
        (200, build_chunk("A red car.") + 'data: {"error": {}}\n\n', "breaks off"),
        (500, "{}", "500"),
    ],
)
def test_a_wrong_answer_is_told(monkeypatch: pytest.MonkeyPatch, status: int, body: str, reason: str) -> None:
    question = soak.Question("tuned", 0, 8)
    users = soak.Users(0, soak.draw_images(), [question], seed=0)
    users.answers = {question: "A red car."}
    right = soak.Answer(200, (build_chunk("A red car.") + "data: [DONE]\n\n").encode())
    monkeypatch.setattr(users, "send", lambda request: right)
    users.check_answer(question, is_streamed=True)
    monkeypatch.setattr(users, "send", lambda request: soak.Answer(status, body.encode()))
    with pytest.raises(soak.WrongError, match=reason):
        users.check_answer(question, is_streamed=True)


def test_a_bad_request_that_is_answered_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    users = soak.Users(0, soak.draw_images(), [], seed=0)
    monkeypatch.setattr(users, "send", lambda request: soak.Answer(200, b"{}"))
    users.do_one(random.Random(0), users.send_bad)
    assert "200 b'{}', not 4" in users.wrongs[0]
    monkeypatch.setattr(users, "send", lambda request: None)
    users.do_one(random.Random(0), users.look)
    assert "'NoneType' object has no attribute 'status'" in users.wrongs[1]
    assert users.counts.total() == 2
