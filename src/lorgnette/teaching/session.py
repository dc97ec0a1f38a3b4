"""The state of a `teach` run, between the page, the journal and the thread that owns the model.

    page ── answer, skip, undo, … ──▶ Session ── append ──▶ journal.jsonl ──▶ RunState
    page ◀── view ── Session ◀── suggestions, rounds ── device thread ◀── next_job ── Session

The journal comes first: a suggestion's event is on the disk before a view has its text. Only a text that still grows
is shown earlier, and it cannot be answered before its event. captions.csv follows from the journal, and is written
again after each change. Knows nothing about HTTP and models.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from lorgnette.data.images import read_image_size
from lorgnette.errors import LorgnetteError
from lorgnette.report.run_dir import RunDir
from lorgnette.server.api_errors import ApiError
from lorgnette.teaching import notices
from lorgnette.teaching.answer_text import clean_answer, find_label, normalize_text
from lorgnette.teaching.current_image import CurrentImage
from lorgnette.teaching.events import (
    Answered,
    Event,
    FailureKind,
    Finished,
    Mended,
    Opened,
    Reviewed,
    RoundBegun,
    RoundDone,
    RoundFailed,
    Skipped,
    Suggested,
    Undone,
    UntunedShown,
)
from lorgnette.teaching.image_order import LOW_QUEUE, MAX_QUEUED, NUM_SPREAD
from lorgnette.teaching.images import ImageList
from lorgnette.teaching.jobs import FinishJob, Job, RoundJob, SuggestJob
from lorgnette.teaching.journal import Journal
from lorgnette.teaching.notices import Notice
from lorgnette.teaching.run_files import write_suggestions
from lorgnette.teaching.run_record import RunRecord
from lorgnette.teaching.run_state import DEFAULT_EVERY
from lorgnette.teaching.state_view import StateView

if TYPE_CHECKING:
    from lorgnette.teaching.learner import ModelSuggestion, RoundResult

Order = Literal["shuffled", "hardest"]
_STREAM_SECONDS = 1.0
"""A suggestion that takes longer is shown while it grows."""
_LONG_ROUND_SECONDS = 4.0
"""A person who waits for a suggestion gets one before a round that may take longer."""
_RETRY_SECONDS = 2.0
"""Between two tries to write to a full disk."""
_MAX_SECONDS = 86_400.0
"""Of an answer: a page may be open for days."""
_MAX_SHOWN_ANSWER, _MAX_SHOWN_LABELS = 60, 12


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """model: its title. given: image's name → an answer from before the run. every: answers between two rounds after
    the first two. blind: 10 shows every tenth image without its suggestion; 0: none. reviewer: who reviews; None:
    no review. commands: what the user can run afterwards. write_report: called with all events at the end.
    """

    model: str
    prompt: str
    seed: int = 0
    version: str = ""
    labels: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)
    every: int = DEFAULT_EVERY
    blind: int = 0
    order: Order = "shuffled"
    reviewer: str | None = None
    commands: tuple[str, ...] = ()
    write_report: Callable[[Sequence[Event]], None] | None = None


@dataclass(eq=False, slots=True)
class _Ending:
    """What Finish has done so far. rest: images to caption; None: not listed yet. texts: image → (text, surety)."""

    start: float
    has_tried_round: bool = False
    rest: list[int] | None = None
    num_rest: int = 0
    texts: dict[int, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Progress:
    text: str
    start: float
    done: int = 0
    total: int = 0

    def to_view(self) -> dict[str, Any]:
        seconds = _count_seconds(self.start)
        return {"text": self.text, "seconds": seconds, "done": self.done, "total": self.total}


@dataclass(frozen=True, slots=True)
class _RunningRound:
    number: int
    answers: int
    start: float
    step: int = 0
    total: int = 0

    def to_view(self) -> dict[str, Any]:
        values = {"number": self.number, "answers": self.answers, "seconds": _count_seconds(self.start)}
        return {**values, "step": self.step, "total": self.total}


class Session:
    """Safe for several threads. A method that changes something returns the version of the state after it.

    Methods for the page raise ApiError: 409 "other_tab" from a tab that is no longer the newest, 409 "stale" for an id
    that is not current, 400 for a text that is no answer, 500 "disk" if the journal cannot be written. The same request
    once more changes nothing and is no error.

    remarks: what the user should know of the start, such as images that changed or are gone.
    """

    def __init__(self, journal: Journal, images: ImageList, options: SessionOptions, run_dir: RunDir) -> None:
        """Read the run's events and go on behind them. Raises LorgnetteError if the run's files cannot be written, for
        events that do not fit together, and for a given answer that is no answer."""
        self._images, self._options, self.run_dir = images, options, run_dir
        self._changed = threading.Condition(threading.RLock())  # guards everything below
        self._version = 1
        self._tab: str | None = None
        self._is_closed = False
        self._model: Literal["loading", "ready", "failed"] = "loading"
        self._progress: _Progress | None = _Progress(f"Reading {options.model}", time.monotonic())
        self._notice: Notice | None = None
        self._write_notice: Notice | None = None  # of the last file that could not be written
        self._has_old_captions = False  # captions.csv could not be written
        self._broken = dict(images.broken)
        self._sizes: dict[int, tuple[int, int]] = {}
        self._drafts: dict[str, str] = {}
        self._busy_fields: set[str] = set()  # ids: the person writes, and no suggestion may come
        self._without_suggestion: set[int] = set()  # images for which the model failed
        self._stream: tuple[str, str] | None = None  # (id, the text so far)
        self._untuned_id: str | None = None  # for which the untuned model's answer is to be made
        self._job_start, self._is_cut_off = 0.0, False  # of the suggestion for the current image
        self._round: _RunningRound | None = None
        self._model_round, self._model_digest = 0, ""  # of the model in memory
        self._is_round_wanted = self._is_round_first = False
        # Since a round is due: whether a suggestion was made for the person who waits, and some for the queue.
        self._has_helped = self._has_filled = False
        self._round_seconds = 0.0  # of the last round
        self._ending: _Ending | None = None
        self._is_finished = False
        self._record = RunRecord(journal, images, run_dir, options.every)
        self._state = self._record.state
        self._score = self._record.compute_score()  # of which the person was told
        self._num_needless = len(self._state.needless_rounds)
        self._current = CurrentImage(
            self._record, self._broken, seed=options.seed, use_hardest=options.order == "hardest",
            blind=options.blind, reviewer=options.reviewer,
        )  # fmt: skip
        self._state_view = StateView(self._record, self._current, options.reviewer)
        self.remarks = self._record.check_images()
        with self._changed:
            self._open_run()

    # What the page asks for.

    def view(self, tab: str) -> dict[str, Any]:
        """The state as the page shows it to this tab."""
        with self._changed:
            if self._tab is None:
                self._tab = tab
            id, good, next_image = self._current.id, self._state.good_round, self._current.find_next_image()
            return {
                "version": self._version,
                "tab": "own" if tab == self._tab else "other",
                "phase": "finishing" if self._ending else "finished" if self._is_finished else self._model,
                "model": self._options.model,
                "prompt": self._options.prompt,
                "progress": None if self._progress is None else self._progress.to_view(),
                "tuned_on": good.answers if good is not None and self._model_round else 0,
                "round": None if self._round is None else self._round.to_view(),
                "notice": None if self._notice is None else self._notice.to_view(),
                "current": None if id is None else self._view_current(id),
                "next_image": next_image,
                "counts": self._state_view.count(),
                "finished": self._state_view.count_results(),
                "labels": list(self._options.labels),
                "history": self._state_view.list_history(),
                "score": self._state_view.view_score(),
                "files": self._state_view.list_files(),
                "commands": list(self._options.commands),
            }

    def wait_for_change(self, version: int, timeout: float) -> int:
        """Wait until the state is newer than `version`, at most `timeout` seconds. Returns its version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > version or self._is_closed, timeout)
            return self._version

    def claim(self, tab: str) -> int:
        """From now on this tab alone may change something."""
        with self._changed:
            if tab != self._tab:
                self._tab = tab
                self._notify_change()
            return self._version

    def answer(self, tab: str, id: str, text: str, keys: int, seconds: float) -> int:
        """Take the answer, or in a review the second opinion, and show the next image.

        keys: how many were pressed. seconds: since the image was shown.
        """
        with self._changed:
            self._require_tab(tab)
            text = self._clean(text)
            if id != self._current.id:
                decision = self._state.decisions.get(id)
                return self._version if decision is not None and decision.text == text else _refuse_stale(id)
            suggested = self._state.suggested[id]
            self._require_readable(suggested)
            seconds = min(max(seconds, 0.0), _MAX_SECONDS)
            events, now = list[Event](), _read_clock()
            if self._stream is not None and self._stream[0] == id:
                suggested = self._complete_text(suggested, normalize_text(self._stream[1]), None)
                events.append(suggested)
            if self._options.reviewer is not None:
                reviewer = self._options.reviewer
                events.append(Reviewed(t=now, id=id, text=text, reviewer=reviewer, seconds=seconds))
            else:
                counts = self._may_count(suggested)
                events.append(Answered(t=now, id=id, text=text, seconds=seconds, keys=max(keys, 0), counts=counts))
            self._write_decision(events, id, text)
            return self._version

    def skip(self, tab: str, id: str) -> int:
        """Leave the image out, and show the next."""
        with self._changed:
            self._require_tab(tab)
            if id != self._current.id:
                decision = self._state.decisions.get(id)
                return self._version if decision is not None and decision.kind == "skipped" else _refuse_stale(id)
            problem = self._current.find_problem(self._state.suggested[id])
            reason = f"broken: {problem}" if problem else "user"
            self._write_decision([Skipped(t=_read_clock(), id=id, reason=reason)], id)
            return self._version

    def undo(self, tab: str) -> int:
        """Take back the last answer, review or skip: its image is shown again, with the answer as the draft."""
        with self._changed:
            self._require_tab(tab)
            id = next((id for id in reversed(self._state.decisions) if self._state_view.may_undo(id)), None)
            if id is None:
                raise ApiError(409, "There is nothing to take back.", code="nothing")
            decision = self._state.decisions[id]
            self._try_write([Undone(t=_read_clock(), id=id)])
            if decision.kind != "skipped":
                self._drafts[id] = decision.text
            self._stream = None
            self._update_after_change()
            return self._version

    def mend(self, tab: str, id: str, text: str) -> int:
        """Replace an earlier answer."""
        with self._changed:
            self._require_tab(tab)
            text, decision = self._clean(text), self._state.decisions.get(id)
            if decision is None or decision.kind == "skipped":
                return _refuse_stale(id)
            if self._state.answers.get(self._state.suggested[id].image) != text:
                self._try_write([Mended(t=_read_clock(), id=id, text=text)])
                self._update_after_change()
            return self._version

    def draft(self, tab: str, id: str, text: str) -> int:
        """Keep the text in the field, for a reload. No later suggestion replaces it."""
        with self._changed:
            self._require_tab(tab)
            if id == self._current.id and self._drafts.get(id) != text:
                self._drafts[id] = text
                if self._state.suggested[id].text is None:  # no longer waiting
                    self._notify_change()
            return self._version

    def stop_text(self, tab: str, id: str) -> int:
        """Keep the suggestion as far as it has come: the person writes."""
        with self._changed:
            self._require_tab(tab)
            if id != self._current.id:
                return _refuse_stale(id)
            suggested = self._state.suggested[id]
            if suggested.text is None and not self._current.find_problem(suggested):
                if self._stream is not None and self._stream[0] == id:
                    self._try_write([self._complete_text(suggested, normalize_text(self._stream[1]), None)])
                self._busy_fields.add(id)
                self._stream = None
                self._notify_change()
            return self._version

    def request_untuned(self, tab: str, id: str) -> int:
        """Show beside the current suggestion what the untuned model says. It is made when nothing else is to be done.

        ApiError 409 "blind" for an image that is shown without its suggestion: the comparison would be of no use.
        """
        with self._changed:
            self._require_tab(tab)
            if id != self._current.id:
                return _refuse_stale(id)
            suggested = self._state.suggested[id]
            self._require_readable(suggested)
            if suggested.blind:
                raise ApiError(409, "This image is shown without what a model says, to compare.", code="blind")
            self._require_model()
            if self._find_untuned(suggested) is None:
                self._untuned_id = id
                self._notify_change()
            return self._version

    def request_round(self, tab: str) -> int:
        """Tune now."""
        with self._changed:
            self._require_tab(tab)
            answers = self._record.list_answers()
            if not answers:
                raise ApiError(409, "There are no answers to tune on yet.", code="no_answers")
            self._require_model()
            if self._round is None and self._record.compute_digest(answers) == self._model_digest:
                self._notice = notices.describe_known_answers()
            else:
                self._is_round_wanted = True
            self._notify_change()
            return self._version

    def finish(self, tab: str) -> int:
        """Tune on all answers, caption the other images, and write the report. The person may go on meanwhile."""
        with self._changed:
            self._require_tab(tab)
            if self._model == "loading":
                raise ApiError(409, "The model is still being read.", code="loading")
            if self._ending is not None:
                return self._version
            self._ending, self._is_finished = _Ending(time.monotonic()), False
            if self._notice is self._write_notice:
                self._notice = None
            self._notify_change()
            has_model = self._model == "ready"
        if not has_model:
            self.complete_finish()
        return self._version

    def close(self) -> None:
        """Wake everything that waits; the device thread ends."""
        with self._changed:
            self._is_closed = True
            self._notify_change()

    # What the device thread asks for and reports.

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def model_round(self) -> int:
        """The round of the model in memory; 0: it is untuned."""
        return self._model_round

    @property
    def saved_round(self) -> int:
        """The round whose adapter lies in the run's folder; 0: none, or one that a killed process may have replaced."""
        with self._changed:
            good = self._state.good_round
            return good.number if good is not None and not self._state.has_cut_off_round else 0

    def show_loading(self, done: int, total: int) -> None:
        """Show how many images have features."""
        with self._changed:
            if self._progress is not None:
                self._progress = replace(self._progress, text="Reading the images", done=done, total=total)
                self._notify_change()

    def complete_loading(
        self, broken: Mapping[int, LorgnetteError], means: NDArray[np.float32], loaded_round: int
    ) -> None:
        """The model can be used.

        broken: image → what is wrong with it. means: of each image's features, [N, C]. loaded_round: whose adapter was
        read; 0: none. A round comes first if there are answers that the model does not know.
        """
        with self._changed:
            self._broken |= {number: error.message for number, error in broken.items()}
            self._current.queue.means, self._model, self._progress = means, "ready", None
            good = self._state.good_round
            if loaded_round and good is not None:
                self._model_round, self._model_digest = loaded_round, good.digest
            self._is_round_first = not loaded_round and (good is not None or self._state.is_round_due)
            self._notify_change()

    def fail(self, error: LorgnetteError) -> None:
        """There is no model any more."""
        with self._changed:
            self._model, self._stream, self._round, self._progress = "failed", None, None, None
            self._notice = notices.describe_lost_model(error)
            is_ending = self._ending is not None
            self._show_next()
            self._notify_change()
        if is_ending:
            self.complete_finish()

    def next_job(self) -> Job | None:
        """Wait for something to do; None: the session is closed."""
        with self._changed:
            while not self._is_closed:
                if self._record.has_pending:
                    self._retry_write()
                if self._has_old_captions:
                    self._write_captions()
                if self._current.id is None:
                    self._show_next()
                if not self._record.has_pending and (job := self._choose_job()) is not None:
                    self._job_start, self._is_cut_off = time.monotonic(), False
                    return job
                needs_retry = self._record.has_failed or self._has_old_captions
                self._changed.wait(_RETRY_SECONDS if needs_retry else None)
            return None

    def show_text(self, image: int, text: str) -> bool:
        """The suggestion for the current image has grown. Returns whether it is still wanted."""
        with self._changed:
            id = self._current.id
            if self._is_closed or id is None or self._record.find_number(id) != image or not self._wants_text(id):
                self._is_cut_off = True
                return False
            is_slow = self._stream is not None or time.monotonic() - self._job_start > _STREAM_SECONDS
            if is_slow and not self._state.suggested[id].blind:
                self._stream = id, text
                self._notify_change()
            return True

    def receive_suggestions(self, job: SuggestJob, suggestions: "Sequence[ModelSuggestion]") -> None:
        """Take what the model suggests for the images of a job, unless `show_text` has cut it off."""
        with self._changed:
            is_cut_off = job.purpose == "current" and self._is_cut_off
            for image, suggestion in zip(job.images, suggestions if not is_cut_off else (), strict=not is_cut_off):
                text = normalize_text(suggestion.text)
                text = find_label(text, self._options.labels) or text
                if job.purpose == "untuned":
                    self._receive_untuned(image, text)
                    continue
                if job.purpose == "queue":
                    self._current.queue.receive(image, text, suggestion.surety, self._model_round)
                elif job.purpose == "rest":
                    self._receive_rest(image, (text, suggestion.surety))
                for id in self._state.shown:
                    if self._record.find_number(id) == image and self._wants_text(id):
                        suggested = self._state.suggested[id]
                        self._write_later(self._complete_text(suggested, text, suggestion.surety))
            self._stream = None
            self._notify_change()

    def refuse_suggestion(self, job: SuggestJob, error: LorgnetteError, *, is_memory: bool) -> None:
        """The model cannot suggest anything for the one image of the job."""
        [image], is_untuned = job.images, job.purpose == "untuned"
        with self._changed:
            if is_untuned:
                self._receive_untuned(image, None)
            else:
                self._without_suggestion.add(image)
                self._current.queue.refuse(image)
                self._receive_rest(image, None)
            name = self._images.names[image]  # it may be one that comes later
            self._notice = notices.describe_missing_suggestion(name, error, is_memory=is_memory, is_untuned=is_untuned)
            self._stream = None
            self._notify_change()

    def show_step(self, step: int, total: int, _loss: float) -> None:
        """A round has come so far."""
        with self._changed:
            if self._round is not None:
                self._round = replace(self._round, step=step, total=total)
                self._notify_change()

    def complete_round(self, job: RoundJob, result: "RoundResult") -> None:
        """The round's adapter is in use and in the run's folder. Suggestions that nobody has seen are made anew."""
        num_answers, seed = len(job.answers), self._options.seed
        done = RoundDone(
            t=_read_clock(), round=job.number, answers=num_answers, steps=result.steps, loss=result.loss,
            seconds=result.seconds, end_reason=result.end_reason,
        )  # fmt: skip
        record = {"answers": num_answers, "digest": job.digest, "seed": seed, "steps": result.steps}
        record |= {"loss": result.loss, "seconds": round(result.seconds, 3), "end_reason": result.end_reason}
        with self._changed:
            self._model_round, self._model_digest, self._round = job.number, job.digest, None
            self._round_seconds = result.seconds
            if self._record.compute_digest(self._record.list_answers()) == job.digest:
                self._is_round_wanted = False  # it was asked for while this one ran
            self._current.queue.discard_texts()
            self._notice = notices.describe_round(done)
            self._write_round(job.number, record)
            self._write_later(done)
            self._update_score_notice()
            if self._score.unlearned:
                self._notice = notices.describe_no_learning(done)
            self._notify_change()

    def fail_round(self, job: RoundJob, error: LorgnetteError, kind: FailureKind, images: Sequence[int] = ()) -> None:
        """The model of the last good round goes on. images: those that the failure is about."""
        hint = error.hint or ""
        failed = RoundFailed(t=_read_clock(), round=job.number, message=error.message, hint=hint, kind=kind)
        record = {"answers": len(job.answers), "digest": job.digest, "seed": self._options.seed}
        with self._changed:
            self._round = None
            self._notice = notices.describe_failed_round(failed, self._model_round, images)
            self._write_round(job.number, {**record, "failed": kind, "message": error.message, "hint": hint})
            self._write_later(failed)
            self._notify_change()

    def complete_finish(self) -> None:
        """Write suggestions.csv, the report and the event. What cannot be written is told."""
        with self._changed:
            left = set(self._record.list_without_answer())
            texts = self._ending.texts if self._ending is not None else {}
            rows = [(self._images.paths[number], *pair) for number, pair in texts.items() if number in left]
            finished = Finished(t=_read_clock(), answers=len(self._record.list_answers()), suggestions=len(rows))
        notice, is_finished = None, False
        try:
            write_suggestions(self.run_dir.suggestions, rows)
            with self._changed:
                self._write([finished])
                events = self._record.events
            if self._options.write_report is not None:
                self._options.write_report(events)
            is_finished = True
        except LorgnetteError as error:
            notice = notices.describe_write_error(error)
        finally:  # also after a defect
            with self._changed:
                self._ending, self._progress, self._is_finished = None, None, is_finished
                self._write_captions()
                if notice is not None:
                    self._notice = self._write_notice = notice
                self._notify_change()

    # The start.

    def _open_run(self) -> None:
        options = self._options
        self._require_labels()
        opened = Opened(
            t=_read_clock(), folder=str(self._images.source), model=options.model, prompt=options.prompt,
            seed=options.seed, num_images=len(self._images), labels=list(options.labels), version=options.version,
        )  # fmt: skip
        self._write([opened, *self._build_given_events()])
        # The second to fourth image are chosen by features. Where a kill fell between two of them, they are waited for.
        if self._current.is_review or not 0 < self._current.num_shown < NUM_SPREAD:
            self._write(self._current.build_next(_read_clock()))
        self._write_captions()

    def _require_labels(self) -> None:
        """Raises LorgnetteError if an answer of the run is none of the labels, of which there may be others now."""
        labels = self._options.labels
        others = [(number, text) for number, text in self._record.list_answers() if labels and text not in labels]
        if others:
            number, text = others[0]
            shown = text if len(text) <= _MAX_SHOWN_ANSWER else f"{text[: _MAX_SHOWN_ANSWER - 1]}…"
            message = f"{len(others)} of the run's answers are none of the labels: {shown!r}"
            hint = f"name all labels: --labels A,B,…; or begin another run: --run {self.run_dir.path}-2"
            raise LorgnetteError(message, where=self._images.names[number], hint=hint)

    def _build_given_events(self) -> list[Event]:
        """The answers from before the run, of images that are not in the journal yet."""
        count = sum(suggested.pick == "given" for suggested in self._state.suggested.values())
        known = {suggested.image for suggested in self._state.suggested.values()}
        events: list[Event] = []
        for name, text in self._options.given.items():
            number = self._images.numbers.get(name)
            if number is None or name in known:
                continue
            try:
                answer = self._parse_answer(text)
            except LorgnetteError as error:
                message, hint = f"an answer given before cannot be used: {error.message}", error.hint
                raise LorgnetteError(message, where=name, hint=hint) from None
            count += 1
            now, id, sha = _read_clock(), f"g{count}", self._images.hash_image(number)
            events.append(Suggested(t=now, id=id, image=name, sha=sha, round=None, pick="given", text=None))
            events.append(Answered(t=now, id=id, text=answer, seconds=0.0, keys=0, counts=False))
        return events

    # Writing.

    def _write(self, events: Sequence[Event]) -> None:
        """Raises LorgnetteError if the disk takes no more."""
        if written := self._record.write(events):
            for event in written:
                self._current.apply(event)
            self._notify_change()

    def _try_write(self, events: Sequence[Event]) -> None:
        """For the page: raises ApiError "disk" if the disk takes no more."""
        try:
            self._write(events)
        except LorgnetteError as error:
            message = f"{notices.describe_write_error(error).text} Your words are kept here."
            raise ApiError(500, message, type="server_error", code="disk") from error

    def _write_later(self, event: Event) -> None:
        """For the device thread: now, or as soon as the disk takes it."""
        self._record.add_pending(event)
        self._retry_write()

    def _retry_write(self) -> None:
        had_failed = self._record.has_failed
        try:
            self._write([])
        except LorgnetteError as error:
            self._report_write_error(error)
            return
        if had_failed:
            self._write_captions()

    def _write_captions(self) -> None:
        """Once this works, the disk takes what it refused before."""
        try:
            self._record.write_captions()
        except LorgnetteError as error:
            self._has_old_captions = True
            self._report_write_error(error)
            return
        self._has_old_captions = False
        if self._notice is not None and self._notice is self._write_notice and not self._record.has_failed:
            self._notice = None
            self._notify_change()

    def _report_write_error(self, error: LorgnetteError) -> None:
        notice = notices.describe_write_error(error)
        if notice != self._notice:
            self._notice = self._write_notice = notice
            self._notify_change()

    def _write_round(self, number: int, record: Mapping[str, object]) -> None:
        try:
            self._record.write_round(number, record)
        except LorgnetteError as error:
            self._report_write_error(error)

    # Decisions.

    def _require_tab(self, tab: str) -> None:
        if self._tab is None:
            self._tab = tab
        if tab != self._tab:
            raise ApiError(409, "The page is open in another tab.", code="other_tab")

    def _require_readable(self, suggested: Suggested) -> None:
        if problem := self._current.find_problem(suggested):
            raise ApiError(409, f"The image cannot be read: {problem}. Skip it.", code="broken")

    def _require_model(self) -> None:
        if self._model == "failed":
            raise ApiError(409, "The model has stopped: start `lorgnette teach` again.", code="no_model")

    def _clean(self, text: str) -> str:
        """For the page: raises ApiError 400."""
        try:
            return self._parse_answer(text)
        except LorgnetteError as error:
            message = notices.join_sentences(error.message, error.hint)
            raise ApiError(400, message, param="text", code="no_answer") from None

    def _parse_answer(self, text: str) -> str:
        answer, labels = clean_answer(text), self._options.labels
        if not labels:
            return answer
        label = find_label(answer, labels)
        if label is None:
            shown = ", ".join(labels[:_MAX_SHOWN_LABELS]) + (", …" if len(labels) > _MAX_SHOWN_LABELS else "")
            raise LorgnetteError("The answer is none of the labels.", hint=f"choose one: {shown}")
        return label

    def _write_decision(self, events: Sequence[Event], id: str, text: str | None = None) -> None:
        """Write what was done about the current suggestion, and show the next image. The text becomes the draft if it
        cannot be written."""
        try:
            self._try_write([*events, *self._current.build_next(_read_clock(), id, text)])
        except ApiError:
            if text is not None:
                self._drafts[id] = text
            raise
        self._drafts.pop(id, None)
        self._busy_fields.discard(id)
        self._stream = None
        self._update_after_change()

    def _update_after_change(self) -> None:
        """After every change of an answer."""
        self._is_finished = False
        if len(self._state.needless_rounds) > self._num_needless:
            self._num_needless = len(self._state.needless_rounds)
            self._notice = notices.describe_needless_round(self._state.needless_rounds[-1])
        self._update_score_notice()
        self._write_captions()
        self._notify_change()

    def _update_score_notice(self) -> None:
        """Tell what the score says now, and did not before."""
        before, self._score = self._score, self._record.compute_score()
        score = self._score
        if score.unlearned and not before.unlearned:
            self._notice = notices.describe_no_learning()
        elif (enough := score.enough) is not None and not before.is_enough:
            left = [number for number in self._record.list_without_answer() if number not in self._broken]
            self._notice = notices.describe_enough(enough, len(left))
        elif (flat := score.flat) is not None and before.flat is None:
            numbers = [self._images.numbers.get(outcome.image) for outcome in score.wrong]
            self._notice = notices.describe_plateau(flat, [number for number in numbers if number is not None])

    def _may_count(self, suggested: Suggested) -> bool:
        """Whether the answer judges the model: of an image that is a fair sample, seen with the model's suggestion."""
        is_sample = suggested.pick in ("shuffled", "spread") and suggested.alike is None and not suggested.blind
        has_text = suggested.text is not None and suggested.round is not None
        return is_sample and has_text and not self._state.had_answer(suggested.image)

    def _show_next(self) -> None:
        """Show an image if none is shown and one is left, unless the disk takes no more."""
        try:
            self._write(self._current.build_next(_read_clock()))
        except LorgnetteError as error:
            self._report_write_error(error)

    # Work for the device thread.

    def _choose_job(self) -> Job | None:
        """A round comes once suggestions are in hand, unless the person waits for one anyway, and for a short round.

        Of a long round a person sees nothing but the suggestions in hand, also if the next one is due at its end.
        """
        if self._model != "ready":
            return None
        answers = self._record.list_answers()
        is_due = self._is_round_first or self._is_round_wanted or self._state.is_round_due
        is_due = is_due and bool(answers) and self._record.compute_digest(answers) != self._model_digest
        id, tuned = self._current.id, self._model_round > 0
        is_waiting = id is not None and self._wants_text(id)
        is_long = self._round_seconds > _LONG_ROUND_SECONDS and not self._is_round_first
        is_ending = self._ending is not None
        if is_waiting and id is not None and (not is_due or is_ending or (is_long and not self._has_helped)):
            self._has_helped = is_due  # once, and once many: a fast person would keep a slow model from learning
            return SuggestJob((self._images.numbers[self._state.suggested[id].image],), "current", tuned)
        if self._ending is not None:
            return self._choose_last_job(self._ending, answers)
        has_enough = is_waiting or self._is_round_first or self._has_filled
        if not (is_due and has_enough) and (missing := self._list_missing(is_due)):
            self._has_filled = is_due
            return SuggestJob(tuple(missing), "queue", tuned)
        return self._begin_round(answers) if is_due else self._choose_untuned()

    def _choose_untuned(self) -> SuggestJob | None:
        """What the untuned model says of the current image, if the person asks for it."""
        number = None if self._untuned_id is None else self._record.find_number(self._untuned_id)
        if number is None or self._untuned_id != self._current.id:
            return None
        return SuggestJob((number,), "untuned", tuned=False)

    def _list_missing(self, is_due: bool) -> list[int]:
        """The images that come soon and have no suggestion, if it is time to make some."""
        if self._current.is_review or (self._current.queue.num_ready > LOW_QUEUE and not is_due):
            return []
        return self._current.queue.fill(self._current.used)

    def _choose_last_job(self, ending: _Ending, answers: Sequence[tuple[int, str]]) -> Job | None:
        if not ending.has_tried_round and answers and self._record.compute_digest(answers) != self._model_digest:
            job = self._begin_round(answers)
            ending.has_tried_round = job is not None
            return job
        if ending.rest is None:
            ending.rest = [number for number in self._record.list_without_answer() if number not in self._broken]
            ending.num_rest = len(ending.rest)
        done, total = ending.num_rest - len(ending.rest), ending.num_rest
        self._progress = _Progress("Captioning the other images", ending.start, done, total)
        self._notify_change()
        if ending.rest:
            return SuggestJob(tuple(ending.rest[:MAX_QUEUED]), "rest", self._model_round > 0)
        return FinishJob()

    def _begin_round(self, answers: Sequence[tuple[int, str]]) -> RoundJob | None:
        """None if the disk takes no more."""
        number, digest = self._state.num_rounds + 1, self._record.compute_digest(answers)
        try:
            self._write([RoundBegun(t=_read_clock(), round=number, answers=len(answers), digest=digest)])
        except LorgnetteError as error:
            self._report_write_error(error)
            return None
        self._is_round_wanted = self._is_round_first = self._has_helped = self._has_filled = False
        self._round = _RunningRound(number, len(answers), time.monotonic())
        return RoundJob(number, tuple(answers), digest)

    def _wants_text(self, id: str) -> bool:
        """Whether the model is to suggest a text for an image that is shown already."""
        suggested, number = self._state.suggested[id], self._record.find_number(id)
        if suggested.text is not None or number is None or number in self._without_suggestion or number in self._broken:
            return False
        has_field = id in self._busy_fields or bool(self._drafts.get(id))
        return suggested.blind or not has_field

    def _complete_text(self, suggested: Suggested, text: str, surety: float | None) -> Suggested:
        """The event that gives a suggestion its text."""
        return replace(suggested, t=_read_clock(), round=self._model_round, text=text, surety=surety)

    def _receive_untuned(self, image: int, text: str | None) -> None:
        """text: None: there is none. One that comes after the answer has not been seen, and is dropped."""
        id = self._untuned_id
        if id is None or self._record.find_number(id) != image:
            return
        self._untuned_id = None
        if text is not None and id == self._current.id:
            self._write_later(UntunedShown(t=_read_clock(), id=id, text=text))

    def _receive_rest(self, image: int, pair: tuple[str, float] | None) -> None:
        """pair: (text, surety); None: there is none."""
        if self._ending is not None and self._ending.rest is not None:
            self._ending.rest = [number for number in self._ending.rest if number != image]
            if pair is not None:
                self._ending.texts[image] = pair

    # Facts.

    def _notify_change(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _read_size(self, number: int) -> tuple[int, int]:
        """(width, height); (0, 0) of an image that cannot be read, which is then known as broken."""
        if number not in self._sizes:
            try:
                self._sizes[number] = read_image_size(self._images.paths[number])
            except LorgnetteError as error:
                self._sizes[number] = (0, 0)
                self._broken.setdefault(number, error.message)
        return self._sizes[number]

    def _view_current(self, id: str) -> dict[str, Any]:
        suggested = self._state.suggested[id]
        number = self._images.numbers[suggested.image]
        width, height = self._read_size(number)
        state, text = self._describe_text(id)
        return {
            "id": id, "number": int(id[1:]), "image": number, "name": suggested.image, "width": width, "height": height,
            "text": text, "state": state, "problem": self._current.find_problem(suggested), "round": suggested.round,
            "tuned_on": self._state.round_answers.get(suggested.round or 0, 0), "alike": suggested.alike,
            "draft": self._drafts.get(id), "is_review": self._current.is_review,
            "untuned": self._find_untuned(suggested),
        }  # fmt: skip

    def _find_untuned(self, suggested: Suggested) -> str | None:
        """What the untuned model says, if it is known and may be shown. A suggestion without a surety was cut off."""
        if suggested.blind:
            return None
        if suggested.round == 0 and suggested.surety is not None:
            return suggested.text
        return self._state.untuned.get(suggested.image)

    def _describe_text(self, id: str) -> tuple[str, str | None]:
        """(the state of a suggestion, the text that may be shown)"""
        suggested = self._state.suggested[id]
        if self._current.find_problem(suggested):
            return "broken", None
        if suggested.text is not None:
            return ("blind", None) if suggested.blind else ("ready", suggested.text)
        if self._stream is not None and self._stream[0] == id:
            return "streaming", self._stream[1]
        return ("waiting" if self._model == "ready" and self._wants_text(id) else "no_model"), None


def _refuse_stale(id: str) -> NoReturn:
    raise ApiError(409, f"{id} is not the image that is asked about.", code="stale")


def _read_clock() -> float:
    return round(time.time(), 3)


def _count_seconds(start: float) -> float:
    return round(time.monotonic() - start, 1)
