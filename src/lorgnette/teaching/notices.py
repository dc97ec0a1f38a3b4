"""What the page tells about rounds and about the score, in words."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lorgnette.errors import LorgnetteError
from lorgnette.teaching.events import RoundDone, RoundFailed
from lorgnette.teaching.score import WINDOW, Plateau, Share

NoticeKind = Literal["tuned", "not_tuned", "failed", "memory", "unlearned", "enough", "flat"]
NoticeAction = Literal["", "train", "finish"]


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence or two. details: more, for those who ask. images: their numbers. action: what helps; "" is none."""

    kind: NoticeKind
    text: str
    details: str = ""
    images: tuple[int, ...] = ()
    action: NoticeAction = ""

    def to_view(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "images": list(self.images)}


def describe_round(done: RoundDone) -> Notice:
    """Say on how many answers a good round trained. details: its steps and loss."""
    steps = f"{done.steps} step{'s' * (done.steps != 1)}, loss {done.loss:.2f}"
    return Notice("tuned", f"Tuned on {_count(done.answers)} in {done.seconds:.1f} s.", steps)


def describe_needless_round(num_answers: int) -> Notice:
    """Say why a round that was due is left out: all of these answers were right."""
    last = "last answer was" if num_answers == 1 else f"last {num_answers} were all"
    return Notice("not_tuned", f"The {last} right: not tuned.")


def describe_known_answers() -> Notice:
    """Say why a round that was asked for is left out: the model has been trained on all answers."""
    return Notice("not_tuned", "Nothing is new since the last round: not tuned.")


def describe_failed_round(failed: RoundFailed, good_round: int, images: Sequence[int] = ()) -> Notice:
    """Say why a round failed, and which model goes on. good_round: whose it is; 0: the untuned one. images: those that
    the failure is about."""
    if failed.kind == "memory":
        text = join_sentences(failed.message, failed.hint, "Your answers are safe")
        return Notice("memory", text, action="train")
    goes_on = f"The model of round {good_round} goes on." if good_round else "The untuned model goes on."
    text = f"Round {failed.round} did not finish: {_end(failed.message)} {goes_on}"
    return Notice("failed", text, failed.hint, tuple(images), action="train")


def describe_lost_model(error: LorgnetteError) -> Notice:
    """Say that there are no suggestions any more, and that the person can go on."""
    text = f"The model has stopped: {_end(error.message)} You can go on writing; your answers are safe."
    return Notice("failed", text, " · ".join(part for part in (error.where, error.hint) if part))


def describe_missing_suggestion(
    name: str, error: LorgnetteError, *, is_memory: bool, is_untuned: bool = False
) -> Notice:
    """Say why one image has no suggestion; is_untuned: or no answer of the untuned model beside it."""
    text = f"No {'answer of the untuned model' if is_untuned else 'suggestion'} for {name}: {_end(error.message)}"
    return Notice("memory" if is_memory else "failed", text, error.hint or "")


def describe_write_error(error: LorgnetteError) -> Notice:
    """Say what the disk did not take."""
    return Notice("failed", join_sentences(error.message, error.hint), error.where or "")


def describe_enough(share: Share, num_left: int) -> Notice:
    """Say that the model is right often enough. share: of the last answers. num_left: images that have no answer."""
    right = (
        f"Right {share.taken} times in a row."
        if share.taken == share.count
        else (f"Right {share.taken} of the last {share.count} times.")
    )
    rest = (
        f" Finish and let it caption the other {num_left}?"
        if num_left > 1
        else (" Finish and let it caption the last one?" if num_left else "")
    )
    return Notice("enough", right + rest, action="finish")


def describe_plateau(flat: Plateau, wrong: Sequence[int]) -> Notice:
    """Say that more answers no longer help. wrong: numbers of images whose suggestions were changed lately."""
    text = f"More answers no longer help: {flat.taken} of {WINDOW}, before {flat.taken_before}."
    return Notice("flat", text + (" What it still gets wrong:" if wrong else ""), images=tuple(wrong), action="finish")


def describe_no_learning(done: RoundDone | None = None) -> Notice:
    """Say that the last rounds learned nothing. done: the one that has just ended."""
    text = "It does not learn this yet: hardly any suggestion of the last rounds was taken."
    if done is not None:
        text = f"{describe_round(done).text} {text}"
    hint = "More answers may help. So may answers that follow one rule, and a rule that can be seen in the image."
    return Notice("unlearned", text, hint)


def join_sentences(*texts: str | None) -> str:
    """The texts as sentences: each begins with a capital and has an end."""
    return " ".join(_end(text[:1].upper() + text[1:]) for text in texts if text)


def _count(num_answers: int) -> str:
    return f"{num_answers} answer{'s' * (num_answers != 1)}"


def _end(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
