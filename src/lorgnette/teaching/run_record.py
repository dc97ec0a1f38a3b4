"""The events of a `teach` run, what they amount to, and the files that follow from them."""

from collections.abc import Mapping, Sequence

from lorgnette.errors import LorgnetteError
from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.events import Event, Suggested
from lorgnette.teaching.images import ImageList
from lorgnette.teaching.journal import Journal
from lorgnette.teaching.run_files import write_captions, write_round
from lorgnette.teaching.run_state import RunState, compute_digest
from lorgnette.teaching.score import Score, compute_score

_MAX_NAMED = 3


class RunRecord:
    """Writes events and what follows from them, and knows images by their numbers. For one thread at a time.

    state: what the events amount to. has_failed: the disk did not take the last events. The answers of images that are
    gone stay in the state, and nothing here lists them.
    """

    def __init__(self, journal: Journal, images: ImageList, run_dir: RunDir, every: int) -> None:
        """Raises LorgnetteError for events that do not fit together."""
        self.images, self.run_dir = images, run_dir
        self.state = RunState(journal.events, every)
        self.has_failed = False
        self._journal = journal
        self._pending: list[Event] = []  # that the disk did not take
        self._score, self._num_scored = compute_score(journal.events), len(journal.events)

    @property
    def events(self) -> list[Event]:
        return list(self._journal.events)

    @property
    def has_pending(self) -> bool:
        """Whether events wait for room on the disk."""
        return bool(self._pending)

    def write(self, events: Sequence[Event] = ()) -> list[Event]:
        """Append events to the journal, behind those that wait; then they count. Returns all that were written.

        Raises LorgnetteError if the disk takes no more; nothing has changed then.
        """
        written = [*filter(self._is_wanted, self._pending), *events]
        if written:
            try:
                self.run_dir.check_in_place()
                self._journal.append(*written)
            except LorgnetteError:
                self.has_failed = True
                raise
        self._pending, self.has_failed = [], False
        for event in written:
            self.state.apply(event)
        return written

    def add_pending(self, event: Event) -> None:
        """The next `write` writes this event too."""
        self._pending.append(event)

    def _is_wanted(self, event: Event) -> bool:
        """False for the text of a suggestion that was answered without it."""
        return not isinstance(event, Suggested) or event.id in self.state.shown

    def write_captions(self) -> None:
        """Write captions.csv. Raises LorgnetteError; the answers are in the journal in any case."""
        rows = [(self.images.paths[number], text) for number, text in self.list_answers()]
        write_captions(self.run_dir.captions, rows)

    def write_round(self, number: int, record: Mapping[str, object]) -> None:
        """Write rounds/NNNN.json. Raises LorgnetteError."""
        write_round(self.run_dir.rounds, number, {"round": number, **record})

    def compute_score(self) -> Score:
        """The score of all events."""
        if self._num_scored != len(self._journal.events):
            self._score, self._num_scored = compute_score(self._journal.events), len(self._journal.events)
        return self._score

    def find_number(self, id: str) -> int | None:
        """The image of a suggestion; None if it is gone."""
        return self.images.numbers.get(self.state.suggested[id].image)

    def list_answers(self) -> list[tuple[int, str]]:
        """(image's number, answer) in the order of the first answers."""
        numbers: dict[int, str] = {}
        for name, text in self.state.list_answers():
            if (number := self.images.numbers.get(name)) is not None:
                numbers.setdefault(number, text)
        return list(numbers.items())

    def list_without_answer(self) -> list[int]:
        """The numbers of the other images."""
        answered = {number for number, _ in self.list_answers()}
        return [number for number in range(len(self.images)) if number not in answered]

    def compute_digest(self, answers: Sequence[tuple[int, str]]) -> str:
        """Of the answers' names and texts."""
        return compute_digest((self.images.names[number], text) for number, text in answers)

    def check_images(self) -> list[str]:
        """Remarks about answered images that are gone, or changed since."""
        hashes = {suggested.image: suggested.sha for suggested in self.state.suggested.values()}
        gone, changed = list[str](), list[str]()
        for name in self.state.answers:
            number = self.images.numbers.get(name)
            if number is None:
                gone.append(name)
            elif hashes[name] and self.images.hash_image(number) != hashes[name]:
                changed.append(name)
        remarks = []
        if gone:
            used = "has an answer that is" if len(gone) == 1 else "have answers that are"
            remarks.append(f"{_list_names(gone)} cannot be found, and {used} not used")
        if changed:
            remarks.append(f"changed since the answer was given: {_list_names(changed)}")
        return remarks


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"
