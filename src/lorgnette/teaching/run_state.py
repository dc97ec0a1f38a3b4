"""What the events of a `teach` run amount to: answers, decisions, what is shown, when a round is due.

    state.apply(event), event by event: the same for a run that goes on and for one that is read again

Knows nothing about files, threads and models.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lorgnette.errors import LorgnetteError
from lorgnette.teaching.events import (
    Answered,
    Event,
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
from lorgnette.teaching.score import find_suggested, is_taken

FIRST_ROUNDS = (4, 8)
"""Answers of the first two rounds."""
DEFAULT_EVERY = 8
"""Answers between two later rounds."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person did about a suggestion.

    text: the answer, or why the image was skipped. before, reviewer: of a review, the answer that it looked at, and
    who did.
    """

    kind: Literal["answered", "reviewed", "skipped"]
    text: str
    before: str | None = None
    reviewer: str | None = None


@dataclass(frozen=True, slots=True)
class GoodRound:
    """A round that ended well. digest: of its answers."""

    number: int
    answers: int
    digest: str


class RunState:
    """suggested: id → the suggestion, with its text once there is one. untuned: image's name → what the untuned model
    says of it, if a person asked. answers: image's name → the present answer. decisions: id → what was done, the newest
    last. shown: ids that were shown and wait for an answer; the last one is the one to go on with. reviewed: reviewer →
    names of the images. good_round: the last that ended well; None before there is one. num_rounds: begun ones.
    needless_rounds: of each round that was due although all new answers were right, the number of these answers.
    """

    def __init__(self, events: Iterable[Event] = (), every: int = DEFAULT_EVERY) -> None:
        """every: answers between two rounds after FIRST_ROUNDS. Raises LorgnetteError as `apply`."""
        self.suggested: dict[str, Suggested] = {}
        self.untuned: dict[str, str] = {}
        self.answers: dict[str, str] = {}
        self.decisions: dict[str, Decision] = {}
        self.shown: list[str] = []
        self.reviewed: dict[str, set[str]] = {}
        self.good_round: GoodRound | None = None
        self.round_answers: dict[int, int] = {}
        """Round that ended well → how many answers it was trained on."""
        self.finished: Finished | None = None
        """The last end of the run."""
        self.num_rounds = 0
        self.needless_rounds: list[int] = []
        self._every = every
        self._places: dict[str, int] = {}  # name → place of its first answer
        self._running: RoundBegun | None = None
        self._is_cut_off = False  # a killed process was in a round
        self._considered = 0  # answers when a round was last begun, or needless
        self._changes: dict[str, bool] = {}  # name → whether it is a correction; since then
        self._has_untrained = False  # corrections of a round that failed
        self._trained: dict[str, str] = {}
        self._well_trained: dict[str, str] = {}
        for event in events:
            self.apply(event)

    @property
    def is_round_due(self) -> bool:
        """Whether there is enough that is new, with something to learn among it."""
        return self._is_cut_off or self._has_enough_changes

    @property
    def has_cut_off_round(self) -> bool:
        """Whether a process was killed in a round, and none was begun since: its adapter may lie on the disk."""
        return self._is_cut_off

    @property
    def _has_enough_changes(self) -> bool:
        next_round = next((count for count in FIRST_ROUNDS if count > self._considered), self._considered + self._every)
        return len(self.answers) >= FIRST_ROUNDS[0] and len(self._changes) >= next_round - self._considered

    def list_answers(self) -> list[tuple[str, str]]:
        """(image's name, answer) in the order of the first answers."""
        return sorted(self.answers.items(), key=lambda pair: self._places[pair[0]])

    def had_answer(self, name: str) -> bool:
        """Whether the image ever had an answer, also one that was taken back."""
        return name in self._places

    def apply(self, event: Event) -> None:
        """Take an event into account. Raises LorgnetteError if it does not fit those before it."""
        match event:
            case Opened():
                self._is_cut_off = self._is_cut_off or self._running is not None
                self._running = None
            case Suggested():
                if event.id not in self.suggested:
                    self.shown.append(event.id)
                self.suggested[event.id] = event
            case UntunedShown():
                self.untuned[find_suggested(self.suggested, event.id).image] = event.text
            case RoundBegun() | RoundDone() | RoundFailed():
                self._apply_round(event)
            case Finished():
                self.finished = event
            case _:
                self._apply_decision(event)
                self._drop_needless_round()

    def _apply_decision(self, event: Answered | Mended | Reviewed | Skipped | Undone) -> None:
        suggested = find_suggested(self.suggested, event.id)
        name, is_correction = suggested.image, True
        match event:
            case Answered():
                is_correction = suggested.text is None or not is_taken(suggested.text, event.text)
                self._set_decision(event.id, Decision("answered", event.text))
                self._set_answer(name, event.text)
            case Reviewed():
                self._set_decision(event.id, Decision("reviewed", event.text, self.answers.get(name), event.reviewer))
                self.reviewed.setdefault(event.reviewer, set()).add(name)
                self._set_answer(name, event.text)
            case Mended():
                self._set_answer(name, event.text)
            case Skipped():
                self._set_decision(event.id, Decision("skipped", event.reason))
                return
            case Undone():
                if self._take_back(event.id, name).kind == "skipped":
                    return
        if self.answers.get(name) == self._trained.get(name):
            self._changes.pop(name, None)
        else:
            self._changes[name] = is_correction

    def _set_decision(self, id: str, decision: Decision) -> None:
        self.decisions[id] = decision
        if id in self.shown:
            self.shown.remove(id)

    def _set_answer(self, name: str, text: str) -> None:
        self.answers[name] = text
        self._places.setdefault(name, len(self._places))

    def _take_back(self, id: str, name: str) -> Decision:
        decision = self.decisions.pop(id, None)
        if decision is None:
            raise LorgnetteError(f"an event takes {id} back, which was not done", where="journal.jsonl")
        self.shown.append(id)
        if decision.kind == "answered":
            self.answers.pop(name, None)
        if decision.kind == "reviewed":
            for names in self.reviewed.values():
                names.discard(name)
            if decision.before is not None:
                self.answers[name] = decision.before
        return decision

    def _drop_needless_round(self) -> None:
        """A round that is due has nothing to learn if all that is new was right."""
        if self._has_enough_changes and not self._has_untrained and not any(self._changes.values()):
            self.needless_rounds.append(len(self._changes))
            self._considered = len(self.answers)
            self._changes.clear()

    def _apply_round(self, event: RoundBegun | RoundDone | RoundFailed) -> None:
        match event:
            case RoundBegun():
                self._running, self._is_cut_off = event, False
                self.num_rounds = max(self.num_rounds, event.round)
                self._considered, self._trained = len(self.answers), dict(self.answers)
                self._changes.clear()
            case RoundDone():
                digest = self._running.digest if self._running is not None else ""
                self.good_round = GoodRound(event.round, event.answers, digest)
                self.round_answers[event.round] = event.answers
                self._well_trained, self._has_untrained, self._running = self._trained, False, None
            case RoundFailed():
                self._trained, self._has_untrained, self._running = self._well_trained, True, None


def compute_digest(answers: Iterable[tuple[str, str]]) -> str:
    """A short hash of names and texts, in order."""
    content = json.dumps(list(answers), ensure_ascii=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]
