"""The thread does what the session asks for, and ends with it; tests/teaching/test_session.py has its failures."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from taught_run import TAB, FakeLearner, open_images, open_run

from lorgnette.errors import LorgnetteError
from lorgnette.teaching import device_thread


def list_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "lorgnette teach"]


def wait_for_end() -> None:
    deadline = time.monotonic() + 5
    while list_threads():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_thread_ends_with_the_session(tmp_path: Path) -> None:
    with open_run(tmp_path, 6) as run:
        run.until_asked()
        assert list_threads() == ["lorgnette teach"]
    wait_for_end()
    assert run.learner.is_closed


def test_a_round_is_broken_off_and_begun_again(tmp_path: Path) -> None:
    learner = FakeLearner(20)
    with open_run(tmp_path, 20, learner=learner) as run:
        for _ in range(3):
            run.answer()
            run.until_idle()
        learner.gate.clear()
        run.answer()
        run.until(lambda view: view["round"] is not None and view["round"]["total"] > 0)
        run.session.close()
        wait_for_end()
    assert learner.rounds == []
    with open_run(tmp_path, 20) as again:
        again.until(lambda view: view["tuned_on"] == 4)


def test_a_wait_for_the_thread_hears_ctrl_c(
    tmp_path: Path, lost_signal: Callable[[], AbstractContextManager[None]]
) -> None:
    learner = FakeLearner(6)
    learner.open_gate.clear()
    with open_run(tmp_path, 6, learner=learner) as run:
        with lost_signal():
            run.thread.close()
        assert list_threads() == ["lorgnette teach"]


def test_texts_that_are_cut_off_by_the_end_are_no_suggestions(tmp_path: Path) -> None:
    learner = FakeLearner(6)
    learner.suggest_gate.clear()
    with open_run(tmp_path, 6, learner=learner) as run:
        run.until(lambda view: view["phase"] == "ready" and view["current"]["state"] == "waiting")
        run.session.close()
        learner.suggest_gate.set()
        wait_for_end()
        assert run.session.view(TAB)["current"]["text"] is None


def test_a_lack_of_memory_is_found_behind_an_error() -> None:
    shortage = LorgnetteError("short")
    shortage.__cause__ = LorgnetteError("inner")
    assert not device_thread._has_memory_cause(shortage)
    shortage.__cause__.__cause__ = MemoryError()
    assert device_thread._has_memory_cause(shortage)


def test_a_lack_of_memory_for_one_image_is_told(tmp_path: Path) -> None:
    learner = FakeLearner(3)

    def fail(images: object) -> BaseException:
        error = LorgnetteError("not enough memory", hint="use a smaller image_size")
        error.__cause__ = MemoryError()
        return error

    learner.suggest_error = fail
    with open_run(tmp_path, 3, learner=learner) as run:
        view = run.until(lambda view: view["notice"] is not None and view["notice"]["kind"] == "memory")
        assert view["phase"] == "ready"
        assert run.until_idle()["current"]["state"] == "no_model"


@pytest.mark.parametrize("num_images", [1, 2, 9])
def test_images_run_out(tmp_path: Path, num_images: int) -> None:
    open_images(tmp_path / "images", num_images)
    with open_run(tmp_path, num_images) as run:
        for _ in range(num_images):
            run.answer()
        view = run.until_idle()
        assert (view["current"], view["next_image"], view["counts"]["left"]) == (None, None, 0)
        run.session.finish(TAB)
        run.until(lambda view: view["phase"] == "finished")
        assert len(run.learner.rounds[-1]) == num_images
