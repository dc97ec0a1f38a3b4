"""Which image of a `teach` run is asked about now, and the event that shows the next one."""

from collections.abc import Mapping
from dataclasses import replace

from lorgnette.teaching.events import Event, Suggested
from lorgnette.teaching.image_order import ImageQueue, shuffle
from lorgnette.teaching.run_record import RunRecord


class CurrentImage:
    """The suggestion that waits for an answer, and the choice of the next one.

    queue: images that were not shown, with the suggestions in hand. used: those that were shown or are answered.

    In a review the answered images are shown once more, in an order that depends on the reviewer, and without a queue.
    """

    def __init__(
        self, record: RunRecord, broken: Mapping[int, str], *, seed: int, use_hardest: bool, blind: int,
        reviewer: str | None,
    ) -> None:  # fmt: skip
        """broken: number → what is wrong with the image; more may come. The others: as in `SessionOptions`."""
        self.queue = ImageQueue(len(record.images), seed, broken, use_hardest=use_hardest)
        self.is_review = reviewer is not None
        self._record, self._broken, self._blind = record, broken, blind
        numbers = {record.images.numbers.get(suggested.image) for suggested in record.state.suggested.values()}
        self.used = {number for number in numbers if number is not None}
        self._to_review: list[str] = []
        if reviewer is not None:
            answered = shuffle([number for number, _ in record.list_answers()], seed, f"{reviewer} ")
            seen = record.state.reviewed.get(reviewer, set())
            seen = seen | {record.state.suggested[id].image for id in self._list_waiting()}
            self._to_review = [name for name in map(record.images.names.__getitem__, answered) if name not in seen]

    @property
    def id(self) -> str | None:
        """The suggestion that is asked about; None if there is no image left, or none is shown yet."""
        return next(reversed(self._list_waiting()), None)

    @property
    def num_shown(self) -> int:
        """How many suggestions were shown so far; an answer from before the run is none."""
        return sum(suggested.pick != "given" for suggested in self._record.state.suggested.values())

    @property
    def num_left(self) -> int:
        """Of a review: images to come, and the one that is shown."""
        return len(self._to_review) + (self.id is not None)

    def apply(self, event: Event) -> None:
        """Take an event into account that was written."""
        if isinstance(event, Suggested):
            self.used.add(self._record.images.numbers[event.image])
            self._to_review = [name for name in self._to_review if name != event.image]

    def find_problem(self, suggested: Suggested) -> str:
        """Why the image cannot be shown; "" if it can. "" in a review: there the answer alone can be looked at."""
        number = self._record.images.numbers.get(suggested.image)
        return "" if self.is_review or number is None else self._broken.get(number, "")

    def find_next_image(self) -> int | None:
        """The image behind the current one, as far as it is known; a page may read it ahead."""
        others = self._list_waiting()[:-1]
        if others:
            return self._record.find_number(others[-1])
        if self.is_review:
            return next((self._record.images.numbers[name] for name in self._to_review), None)
        item = self.queue.peek(self.used)
        return None if item is None else item.image

    def build_next(self, now: float, done: str | None = None, text: str | None = None) -> list[Suggested]:
        """The event that shows the next image; [] if one is shown already, or if there is none.

        now: the event's time. done: what is answered at the same time, with this text.
        """
        if any(id != done for id in self._list_waiting()):
            return []
        return self._build_review(now) if self.is_review else self._build_new(now, done, text)

    def _build_new(self, now: float, done: str | None, text: str | None) -> list[Suggested]:
        item = self.queue.peek(self.used)
        if item is None:
            return []
        images, state, number = self._record.images, self._record.state, self.num_shown + 1
        is_broken = item.image in self._broken
        is_blind = self._blind > 0 and number % self._blind == 0 and item.pick != "hardest" and not is_broken
        event = Suggested(
            t=now, id=f"s{number}", image=images.names[item.image], sha=images.hash_image(item.image),
            round=item.round, pick=item.pick, text=item.text, surety=item.surety, blind=is_blind,
        )  # fmt: skip
        answers = state.answers
        if done is not None and text is not None:
            answers = {**answers, state.suggested[done].image: text}
        alike = None if is_broken else self._find_look_alike(item.image, answers)
        if alike is not None:
            event = replace(event, round=None, text=answers[alike], surety=None, blind=False, alike=alike)
        return [event]

    def _build_review(self, now: float) -> list[Suggested]:
        """An answer that was taken back meanwhile is not reviewed."""
        images, answers = self._record.images, self._record.state.answers
        name = next((name for name in self._to_review if name in answers), None)
        if name is None:
            return []
        id, sha = f"s{self.num_shown + 1}", images.hash_image(images.numbers[name])
        return [Suggested(t=now, id=id, image=name, sha=sha, round=None, pick="review", text=answers[name])]

    def _list_waiting(self) -> list[str]:
        """What was shown and can be answered now, the current one last. A review leaves out what waits for a first
        answer, and the other way round."""
        return [id for id in self._record.state.shown if self._is_here(id)]

    def _is_here(self, id: str) -> bool:
        suggested = self._record.state.suggested[id]
        answer = self._record.state.answers.get(suggested.image)
        if suggested.image not in self._record.images.numbers or (suggested.pick == "review") != self.is_review:
            return False
        return answer is not None and answer == suggested.text if self.is_review else answer is None

    def _find_look_alike(self, number: int, answers: Mapping[str, str]) -> str | None:
        """The name of an answered image that looks like this one."""
        images = self._record.images
        group = images.alike.get(number, number)
        if number not in images.alike and group not in images.alike.values():
            return None
        numbers = ((name, images.numbers.get(name)) for name in answers)
        return next(
            (name for name, other in numbers if other is not None and images.alike.get(other, other) == group), None
        )
