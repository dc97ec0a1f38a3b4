"""The thread that uses the model of a `teach` run: it opens the learner, suggests, trains, and closes it."""

import math
import threading
import time
import traceback
from functools import partial

from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import is_out_of_memory
from lorgnette.teaching.jobs import FinishJob, RoundJob, SuggestJob
from lorgnette.teaching.learner import Answer, Learner, RoundError, RoundStopped
from lorgnette.teaching.session import Session

_REPORT_SECONDS = 0.1
"""Between two reports of a round's steps."""
_LOOK_SECONDS = 0.2
"""How long `close` may wait at once: a signal that comes just before a wait, or to another thread, does not end it, and
Python raises KeyboardInterrupt after it."""


class DeviceThread:
    """Starts at once. Nothing else uses the learner meanwhile."""

    def __init__(self, session: Session, learner: Learner) -> None:
        self._session, self._learner = session, learner
        self._last_report = 0.0
        self._has_ended = threading.Event()
        threading.Thread(target=self._run, name="lorgnette teach", daemon=True).start()

    def close(self, timeout: float | None = None) -> bool:
        """Close the session and wait for the thread, at most `timeout` seconds. Returns whether it has ended: a step is
        not broken off. Ctrl-C goes through at any time."""
        self._session.close()
        end = math.inf if timeout is None else time.monotonic() + timeout
        # Not Thread.join: after a KeyboardInterrupt there, Python 3.11 takes the thread for ended.
        while not self._has_ended.wait(max(0.0, min(_LOOK_SECONDS, end - time.monotonic()))):
            if time.monotonic() >= end:
                return False
        return True

    def _run(self) -> None:
        try:
            self._open()
            while (job := self._session.next_job()) is not None:
                match job:
                    case SuggestJob():
                        self._suggest(job)
                    case RoundJob():
                        self._train(job)
                    case FinishJob():
                        self._session.complete_finish()
        except LorgnetteError as error:
            self._session.fail(error)
        except Exception as error:  # a defect: it must not take the answers with it
            traceback.print_exc()
            message, hint = f"{type(error).__name__}: {error}", "this is a defect of lorgnette; the terminal says where"
            self._session.fail(LorgnetteError(message, hint=hint))
        finally:
            try:
                self._learner.close()
            finally:
                self._has_ended.set()

    def _open(self) -> None:
        broken, session = self._learner.open(self._session.show_loading), self._session
        loaded_round = session.saved_round
        if loaded_round:
            try:
                self._learner.load(session.run_dir.adapter)
            except LorgnetteError:
                loaded_round = 0  # the folder is gone or broken: a round over the answers makes it again
        session.complete_loading(broken, self._learner.feature_means, loaded_round)

    def _suggest(self, job: SuggestJob) -> None:
        """For all images at once. If that fails, for each alone, so that one cannot take the others with it."""
        session = self._session
        on_text = partial(self._show_text, job) if job.purpose == "current" else self._goes_on
        try:
            suggestions = self._learner.suggest(job.images, tuned=job.tuned, on_text=on_text)
        except LorgnetteError as error:
            if len(job.images) == 1:
                session.refuse_suggestion(job, error, is_memory=_has_memory_cause(error))
                return
        else:
            if not session.is_closed:  # else they are cut off
                session.receive_suggestions(job, suggestions)
            return
        for image in job.images:
            if not session.is_closed:
                self._suggest(SuggestJob((image,), job.purpose, job.tuned))

    def _goes_on(self, _position: int, _text: str) -> bool:
        """So that the end of the session does not wait for many long suggestions."""
        return not self._session.is_closed

    def _show_text(self, job: SuggestJob, _position: int, text: str) -> bool:
        return self._session.show_text(job.images[0], text)

    def _train(self, job: RoundJob) -> None:
        session, adapter = self._session, self._session.run_dir.adapter
        answers = [Answer(image, text) for image, text in job.answers]
        try:
            result = self._learner.train(answers, on_step=self._show_step, should_stop=lambda: session.is_closed)
        except RoundStopped:
            return  # the next start begins it again
        except RoundError as error:
            session.fail_round(job, error, error.kind, error.images)
            return
        except LorgnetteError as error:
            session.fail_round(job, error, "memory" if _has_memory_cause(error) else "other")
            return
        try:
            session.run_dir.check_in_place()
            self._learner.save(adapter)
        except LorgnetteError as error:
            if session.model_round:
                self._learner.load(adapter)
            session.fail_round(job, error, "other")
            return
        session.complete_round(job, result)

    def _show_step(self, step: int, total: int, loss: float) -> None:
        if step == 1 or time.monotonic() - self._last_report > _REPORT_SECONDS:
            self._last_report = time.monotonic()
            self._session.show_step(step, total, loss)


def _has_memory_cause(error: BaseException) -> bool:
    """Whether a lack of memory is behind an error."""
    cause: BaseException | None = error
    while cause is not None and not is_out_of_memory(cause):
        cause = cause.__cause__
    return cause is not None
