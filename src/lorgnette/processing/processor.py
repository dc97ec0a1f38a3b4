"""One example to tokens, labels and positions: the one encoder of training, prediction and checks.

Loss is taken on the assistant's texts and on the token that ends each, nowhere else.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from lorgnette.config import Encode
from lorgnette.data import header
from lorgnette.errors import LorgnetteError
from lorgnette.processing.chat_template import ChatTemplate
from lorgnette.processing.image_processor import PictureRule
from lorgnette.processing.mrope import positions
from lorgnette.processing.tokenizer import END, IMAGE, TextTokenizer
from lorgnette.types import IGNORED, Encoded, Example, Picture, PictureGrid, Role, Turn

SizeOf = Callable[[Path], tuple[int, int]]
"""A picture's (width, height) as seen."""
Outline = tuple[tuple[Role, tuple[str | int | None, ...]], ...]
"""A conversation but for its answers: per turn its role and its parts, of a picture how many tokens it becomes, None in
an answer's place. Captions that answer one question about pictures of one size have it in common."""


class _Stretch(NamedTuple):
    """Tokens with no answer among them. image_starts: from its own first token."""

    tokens: Int32[np.ndarray, " T"]
    labels: Int32[np.ndarray, " T"]
    image_starts: tuple[int, ...]


class Encoder:
    """Tokens of one checkpoint under one run's settings."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate, rule: PictureRule, encode: Encode,
        size_of: SizeOf = header,
    ) -> None:  # fmt: skip
        self.tokenizer, self.template, self.rule, self.settings = tokenizer, template, rule, encode
        self.size_of = size_of
        self._image = tokenizer.control[IMAGE]
        self.end = tokenizer.control[END if encode.end_token == "template" else encode.end_token]  # noqa: S105
        self._controls = re.compile("(" + "|".join(map(re.escape, tokenizer.control)) + ")")
        self._grid_of = lru_cache(maxsize=None)(self._grid)
        self._frame_of = lru_cache(maxsize=1024)(self._frame)

    @classmethod
    def of_folder(cls, folder: Path, encode: Encode, *, size_of: SizeOf = header) -> "Encoder":
        """The encoder of a checkpoint's folder. size_of: for who knows the pictures' sizes already.

        Raises LorgnetteError naming the file that is missing or broken.
        """
        return cls(
            TextTokenizer.of_folder(folder),
            ChatTemplate.of_folder(folder),
            PictureRule.of_folder(folder, encode),
            encode,
            size_of,
        )

    def encode(self, example: Example, *, answer: bool = False) -> Encoded:
        """Tokens of the whole conversation; answer=True: of its prompt, up to where the assistant is to speak.

        Raises LorgnetteError for a picture that cannot be read and for an example longer than `encode.max_tokens`.
        """
        outline, answers, grids = self._outlined(example.prompt.turns if answer else example.turns)
        tokens: list[Int32[np.ndarray, " _"]] = []
        labels: list[Int32[np.ndarray, " _"]] = []
        image_starts: list[int] = []
        length = 0
        for stretch, text in zip_longest(self._frame_of(outline, answer), answers):
            image_starts += [length + start for start in stretch.image_starts]
            tokens.append(stretch.tokens)
            labels.append(stretch.labels)
            if text is not None:
                ids = np.array(self.tokenizer.text_ids(text), np.int32)
                tokens.append(ids)
                labels.append(ids)
                length += len(ids)
            length += len(stretch.tokens)
        if length > self.settings.max_tokens:
            raise LorgnetteError(
                f"{length} tokens ({sum(grid.tokens for grid in grids)} of them pictures), "
                f"more than encode.max_tokens={self.settings.max_tokens}",
                where=example.where,
                remedy="shorten the text, lower encode.image_tokens, or raise encode.max_tokens",
            )
        return Encoded(
            example,
            np.concatenate(tokens),
            np.concatenate(labels),
            positions(length, image_starts, grids),
            grids,
            tuple(image_starts),
        )

    def _outlined(self, turns: Sequence[Turn]) -> tuple[Outline, list[str], tuple[PictureGrid, ...]]:
        """The conversation taken apart: what is around the answers, the answers, the pictures."""
        outline: list[tuple[Role, tuple[str | int | None, ...]]] = []
        answers: list[str] = []
        grids: list[PictureGrid] = []
        for turn in turns:
            parts: list[str | int | None] = []
            for part in turn.parts:
                if isinstance(part, Picture):
                    grids.append(self._grid_of(part))
                    parts.append(grids[-1].tokens)
                elif turn.role == "assistant":
                    answers.append(part)
                    parts.append(None)
                else:
                    parts.append(part)
            outline.append((turn.role, tuple(parts)))
        return tuple(outline), answers, tuple(grids)

    def _frame(self, outline: Outline, answer: bool) -> tuple[_Stretch, ...]:
        """What stands before the first answer, between any two, and behind the last."""
        counts = [part for _, parts in outline for part in parts if isinstance(part, int)]
        frame: list[_Stretch] = []
        tokens: list[int] = []
        labels: list[int] = []
        image_starts: list[int] = []
        pictures = 0
        for run, trained in chain(self._runs(outline, answer), [(None, False)]):
            if run is None:
                frame.append(_Stretch(np.array(tokens, np.int32), np.array(labels, np.int32), tuple(image_starts)))
                tokens, labels, image_starts = [], [], []
                continue
            repeats = 1
            if run == [self._image]:
                image_starts.append(len(tokens))
                repeats = counts[pictures]
                pictures += 1
            tokens += run * repeats
            labels += run if trained else [IGNORED] * len(run) * repeats
        return tuple(frame)

    def _runs(self, outline: Outline, answer: bool) -> Iterator[tuple[list[int] | None, bool]]:
        """(ids, is it trained) in order, None in an answer's place. A text joins the template's plain text around it,
        as one string, except an assistant's: its first token must be the one that prediction starts with, right after
        the template's header."""
        texts = [part for _, parts in outline for part in parts if not isinstance(part, int)]
        plain, open_answer = "", False
        shape = tuple((role, tuple(isinstance(part, int) for part in parts)) for role, parts in outline)
        for piece in self.template.pieces(shape, answer):
            if isinstance(piece, int):
                text = texts[piece]
                if text is None:
                    yield self.tokenizer.cached_ids(plain), False
                    yield None, False
                    plain, open_answer = "", True
                else:
                    plain += text
                continue
            for chunk in self._controls.split(piece):
                if chunk not in self.tokenizer.control:
                    plain += chunk
                    continue
                yield self.tokenizer.cached_ids(plain), False
                ends = open_answer and chunk == END
                yield [self.end if ends else self.tokenizer.control[chunk]], ends
                plain, open_answer = "", open_answer and not ends
        yield self.tokenizer.cached_ids(plain), False

    def _grid(self, picture: Picture) -> PictureGrid:
        height, width = self.rule.resized(*self.size_of(picture.path))
        return PictureGrid(picture, 1, height // self.rule.patch, width // self.rule.patch, self.rule.merge)
