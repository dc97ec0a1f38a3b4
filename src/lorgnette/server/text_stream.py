"""The text of an answer while its tokens come, up to the first of the client's stop texts."""

from collections.abc import Iterable, Sequence

from lorgnette.processing.processor import Processor
from lorgnette.processing.tokenizer import END_OF_THOUGHT_TOKEN, THINK_TOKEN, AnswerDecoder


class TextStream:
    """Turns an answer's tokens into pieces of text. Joined, they are what `TextTokenizer.decode` makes of all tokens.

    A piece ends with a whole character, and never with what may be the beginning of a stop text. A thought that the
    answer begins with is held back, and dropped at its end.

    num_tokens: how many are read. has_stopped: a stop text has come; what follows is not read.
    """

    def __init__(self, processor: Processor, stop_texts: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop_texts = processor.tokenizer, tuple(stop_texts)
        self._decoder = AnswerDecoder(processor.tokenizer)
        self._thought: list[int] | None = [] if processor.opens_thought else None
        self._strips_lines, self._is_empty = False, True
        self._held = ""
        self.num_tokens, self.has_stopped = 0, False

    def add(self, ids: Iterable[int]) -> str:
        """The text that these tokens make certain."""
        pieces: list[str] = []
        for id_ in ids:
            if self.has_stopped:
                break
            self.num_tokens += 1
            pieces.append(self._hold(self._decode(id_)))
        return "".join(pieces)

    def end(self) -> str:
        """The rest of the text, after the last token."""
        if self.has_stopped:
            return ""
        # Without its end, a thought is the answer, as in `TextTokenizer.decode`.
        rest = self._decoder.end() if self._thought is None else self._tokenizer.decode(self._thought)
        text = self._hold(rest) + self._held
        self._held = ""
        return text

    def _decode(self, id_: int) -> str:
        name = self._tokenizer.get_control_name(id_)
        if self._is_empty and self._thought is None and name == THINK_TOKEN:
            self._thought = []
        if self._thought is not None:
            self._thought.append(id_)
            if name == END_OF_THOUGHT_TOKEN:
                self._thought, self._strips_lines = None, True
            return ""
        text = self._decoder.add(id_)
        if self._strips_lines:
            text = text.lstrip("\n")
            self._strips_lines = not text
        self._is_empty = self._is_empty and not text
        return text

    def _hold(self, text: str) -> str:
        """The text, and what was held back before, up to where a stop text may begin."""
        if not text or not self._stop_texts:
            return text
        text = self._held + text
        if starts := [start for stop in self._stop_texts if (start := text.find(stop)) >= 0]:
            self.has_stopped, self._held = True, ""
            return text[: min(starts)]
        cut = len(text) - max(_count_overlap(text, stop) for stop in self._stop_texts)
        self._held = text[cut:]
        return text[:cut]


def _count_overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that begins the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[-length:])), 0)
