"""One example to tokens, labels and positions: the one encoder of training, prediction and checks.

Loss is taken on the assistant's texts and on the token that ends each, nowhere else.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from lorgnette.config import Encode
from lorgnette.data import header
from lorgnette.encode.pixels import PictureRule
from lorgnette.encode.positions import positions
from lorgnette.encode.template import ChatTemplate, shape_of
from lorgnette.encode.tokenizer import END, IMAGE, TextTokenizer
from lorgnette.errors import LorgnetteError
from lorgnette.types import IGNORED, Encoded, Example, Picture, PictureGrid

SizeOf = Callable[[Path], tuple[int, int]]
"""A picture's (width, height) as seen."""


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
        turns = example.prompt.turns if answer else example.turns
        grids = tuple(self._grid_of(part) for turn in turns for part in turn.parts if isinstance(part, Picture))
        tokens: list[int] = []
        labels: list[int] = []
        image_starts: list[int] = []
        for run, trained in self._runs(example, answer):
            repeats = 1
            if run == [self._image]:
                image_starts.append(len(tokens))
                repeats = grids[len(image_starts) - 1].tokens
            tokens += run * repeats
            labels += run if trained else [IGNORED] * len(run) * repeats
        if len(tokens) > self.settings.max_tokens:
            raise LorgnetteError(
                f"{len(tokens)} tokens ({sum(grid.tokens for grid in grids)} of them pictures), "
                f"more than encode.max_tokens={self.settings.max_tokens}",
                where=example.where,
                remedy="shorten the text, lower encode.image_tokens, or raise encode.max_tokens",
            )
        return Encoded(
            example,
            np.array(tokens, np.int32),
            np.array(labels, np.int32),
            positions(len(tokens), image_starts, grids),
            grids,
            tuple(image_starts),
        )

    def _runs(self, example: Example, answer: bool) -> Iterator[tuple[list[int], bool]]:
        """(ids, is it trained) in order. A text joins the template's plain text around it, as one string, except an
        assistant's: its first token must be the one that prediction starts with, right after the template's header."""
        turns = example.prompt.turns if answer else example.turns
        texts = [(part, turn.role == "assistant") for turn in turns for part in turn.parts if isinstance(part, str)]
        plain, open_answer = "", False
        for piece in self.template.pieces(shape_of(turns), answer):
            if isinstance(piece, int):
                text, trained = texts[piece]
                if trained:
                    yield self.tokenizer.cached_ids(plain), False
                    yield self.tokenizer.text_ids(text), True
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
