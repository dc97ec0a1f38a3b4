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

from lorgnette.config import ProcessorSettings
from lorgnette.data import read_image_size
from lorgnette.errors import LorgnetteError
from lorgnette.processing.chat_template import ChatTemplate
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.mrope import compute_position_ids
from lorgnette.processing.tokenizer import IM_END_TOKEN, IMAGE_TOKEN, TextTokenizer
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid, Role, Turn

SizeReader = Callable[[Path], tuple[int, int]]
"""A picture's (width, height) as seen."""
Outline = tuple[tuple[Role, tuple[str | int | None, ...]], ...]
"""A conversation but for its answers: per turn its role and its parts, of a picture how many tokens it becomes, None in
an answer's place. Captions that answer one question about pictures of one size have it in common."""


class _Segment(NamedTuple):
    """Tokens with no answer among them. image_starts: from its own first token."""

    input_ids: Int32[np.ndarray, " T"]
    labels: Int32[np.ndarray, " T"]
    image_starts: tuple[int, ...]


class Processor:
    """Tokens of one checkpoint under one run's settings."""

    def __init__(
        self, tokenizer: TextTokenizer, chat_template: ChatTemplate, image_processor: ImageProcessor, settings: ProcessorSettings,
        read_size: SizeReader = read_image_size,
    ) -> None:  # fmt: skip
        self.tokenizer, self.chat_template, self.image_processor, self.settings = (
            tokenizer,
            chat_template,
            image_processor,
            settings,
        )
        self.read_size = read_size
        self._image_token_id = tokenizer.control_tokens[IMAGE_TOKEN]
        self.eos_token_id = tokenizer.control_tokens[
            IM_END_TOKEN if settings.eos_token == "template" else settings.eos_token
        ]
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, tokenizer.control_tokens)) + ")")
        self._cached_grid = lru_cache(maxsize=None)(self._compute_grid)
        self._cached_frame = lru_cache(maxsize=1024)(self._encode_frame)

    @classmethod
    def from_folder(
        cls, folder: Path, settings: ProcessorSettings, *, read_size: SizeReader = read_image_size
    ) -> "Processor":
        """The encoder of a checkpoint's folder. size_of: for who knows the pictures' sizes already.

        Raises LorgnetteError naming the file that is missing or broken.
        """
        return cls(
            TextTokenizer.from_folder(folder),
            ChatTemplate.from_folder(folder),
            ImageProcessor.from_folder(folder, settings),
            settings,
            read_size,
        )

    def encode(self, example: Example, *, add_generation_prompt: bool = False) -> Encoded:
        """Tokens of the whole conversation; answer=True: of its prompt, up to where the assistant is to speak.

        Raises LorgnetteError for a picture that cannot be read and for an example longer than `max_length`.
        """
        outline, answers, grids = self._split_answers(
            example.without_answer.turns if add_generation_prompt else example.turns
        )
        tokens: list[Int32[np.ndarray, " _"]] = []
        labels: list[Int32[np.ndarray, " _"]] = []
        image_starts: list[int] = []
        length = 0
        for stretch, text in zip_longest(self._cached_frame(outline, add_generation_prompt), answers):
            image_starts += [length + start for start in stretch.image_starts]
            tokens.append(stretch.input_ids)
            labels.append(stretch.labels)
            if text is not None:
                ids = np.array(self.tokenizer.encode(text), np.int32)
                tokens.append(ids)
                labels.append(ids)
                length += len(ids)
            length += len(stretch.input_ids)
        if length > self.settings.max_length:
            raise LorgnetteError(
                f"{length} tokens ({sum(grid.num_tokens for grid in grids)} of them pictures), "
                f"more than max_length={self.settings.max_length}",
                where=example.where,
                hint="shorten the text, lower image_tokens, or raise max_length",
            )
        return Encoded(
            example,
            np.concatenate(tokens),
            np.concatenate(labels),
            compute_position_ids(length, image_starts, grids),
            grids,
            tuple(image_starts),
        )

    def _split_answers(self, turns: Sequence[Turn]) -> tuple[Outline, list[str], tuple[ImageGrid, ...]]:
        """The conversation taken apart: what is around the answers, the answers, the pictures."""
        outline: list[tuple[Role, tuple[str | int | None, ...]]] = []
        answers: list[str] = []
        grids: list[ImageGrid] = []
        for turn in turns:
            parts: list[str | int | None] = []
            for part in turn.parts:
                if isinstance(part, Image):
                    grids.append(self._cached_grid(part))
                    parts.append(grids[-1].num_tokens)
                elif turn.role == "assistant":
                    answers.append(part)
                    parts.append(None)
                else:
                    parts.append(part)
            outline.append((turn.role, tuple(parts)))
        return tuple(outline), answers, tuple(grids)

    def _encode_frame(self, outline: Outline, add_generation_prompt: bool) -> tuple[_Segment, ...]:
        """What stands before the first answer, between any two, and behind the last."""
        counts = [part for _, parts in outline for part in parts if isinstance(part, int)]
        frame: list[_Segment] = []
        tokens: list[int] = []
        labels: list[int] = []
        image_starts: list[int] = []
        pictures = 0
        for run, trained in chain(self._iter_runs(outline, add_generation_prompt), [(None, False)]):
            if run is None:
                frame.append(_Segment(np.array(tokens, np.int32), np.array(labels, np.int32), tuple(image_starts)))
                tokens, labels, image_starts = [], [], []
                continue
            repeats = 1
            if run == [self._image_token_id]:
                image_starts.append(len(tokens))
                repeats = counts[pictures]
                pictures += 1
            tokens += run * repeats
            labels += run if trained else [IGNORE_INDEX] * len(run) * repeats
        return tuple(frame)

    def _iter_runs(self, outline: Outline, add_generation_prompt: bool) -> Iterator[tuple[list[int] | None, bool]]:
        """(ids, is it trained) in order, None in an answer's place. A text joins the template's plain text around it,
        as one string, except an assistant's: its first token must be the one that prediction starts with, right after
        the template's header."""
        texts = [part for _, parts in outline for part in parts if not isinstance(part, int)]
        plain, open_answer = "", False
        shape = tuple((role, tuple(isinstance(part, int) for part in parts)) for role, parts in outline)
        for piece in self.chat_template.render(shape, add_generation_prompt):
            if isinstance(piece, int):
                text = texts[piece]
                if text is None:
                    yield self.tokenizer.encode_cached(plain), False
                    yield None, False
                    plain, open_answer = "", True
                else:
                    plain += text
                continue
            for chunk in self._control_pattern.split(piece):
                if chunk not in self.tokenizer.control_tokens:
                    plain += chunk
                    continue
                yield self.tokenizer.encode_cached(plain), False
                ends = open_answer and chunk == IM_END_TOKEN
                yield [self.eos_token_id if ends else self.tokenizer.control_tokens[chunk]], ends
                plain, open_answer = "", open_answer and not ends
        yield self.tokenizer.encode_cached(plain), False

    def _compute_grid(self, image: Image) -> ImageGrid:
        height, width = self.image_processor.compute_size(*self.read_size(image.path))
        return ImageGrid(
            image,
            1,
            height // self.image_processor.patch_size,
            width // self.image_processor.patch_size,
            self.image_processor.merge_size,
        )
