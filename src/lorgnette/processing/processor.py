"""Encodes an example as token ids, labels and M-RoPE positions, for training, prediction and checks alike.

Loss is taken on the assistant's texts and on the token that ends each, nowhere else; not on those that the data marks
as not to be learned (`Turn.has_loss`).
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import NamedTuple

from lorgnette.config import ProcessorSettings
from lorgnette.data import check_aspect, read_image_size
from lorgnette.data.box_notation import TextBox
from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import read_config, shorten
from lorgnette.models.family import Family
from lorgnette.models.registry import import_positions, read_family
from lorgnette.processing.boxes import (
    BoxConvention,
    ImageSize,
    count_flat_boxes,
    has_boxes,
    join_pieces,
    parse_boxes,
    write_boxes,
)
from lorgnette.processing.chat_template import ChatTemplate, ConversationShape
from lorgnette.processing.encoded_rows import TextRow, add_span
from lorgnette.processing.image_processor import ImageProcessor, round_size
from lorgnette.processing.tokenizer import IM_END_TOKEN, IMAGE_TOKEN, TextTokenizer
from lorgnette.types import ControlToken, Encoded, Example, Image, ImageGrid, Role, Turn

SizeReader = Callable[[Path], tuple[int, int]]
"""Path → the image's (width, height) after orientation."""
Pieces = tuple[str | ControlToken, ...]
"""A text, with the control tokens of its boxes."""
Outline = tuple[tuple[Role, tuple[Pieces | int | None, ...], bool], ...]
"""A conversation without its answers: per turn its role, its parts and whether it has a loss. An image is its number of
tokens, an answer is None. Captions that answer one question about images of one size have the same outline."""


class _Beginning(NamedTuple):
    """How an answer begins. opening: what the model writes before it; is_learned: whether a prediction begins so."""

    opening: Pieces
    is_learned: bool


class _Segment(NamedTuple):
    """Tokens without answers. text, spans, image_starts: as in `TextRow`, from the segment's first token; length: with
    the image tokens; beginning: of the answer after it."""

    text: tuple[int, ...]
    spans: tuple[int, ...]
    image_starts: tuple[int, ...]
    length: int
    beginning: _Beginning


_END = _Beginning((), is_learned=False)
"""Behind the last segment there is no answer."""
_THOUGHT = re.compile("</?think>")
_HINT = "use config.json and the tokenizer of one checkpoint"


class OverlongError(LorgnetteError):
    """An example has more tokens than `max_length`."""


@dataclass(eq=False)
class Processor:
    """Tokenizer, chat template and image processor of one checkpoint under one run's settings.

    read_size: reads an image's size; a caller that knows the sizes passes its own.
    """

    tokenizer: TextTokenizer
    chat_template: ChatTemplate
    image_processor: ImageProcessor
    family: Family
    settings: ProcessorSettings
    read_size: SizeReader = read_image_size

    def __post_init__(self) -> None:
        control_tokens, eos_token = self.tokenizer.control_tokens, self.settings.eos_token
        self.image_token_id = control_tokens[IMAGE_TOKEN]
        self.eos_token_id = control_tokens[IM_END_TOKEN if eos_token == "template" else eos_token]  # noqa: S105
        self.compute_position_ids = import_positions(self.family.model_type).compute_position_ids
        self.box_convention = BoxConvention(self.family.box_scale, self.family.box_format)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, control_tokens)) + ")")
        self._prompt_end = str(self.chat_template.render((("user", (False,)),), True)[-1])
        self.opens_thought = _THOUGHT.findall(self._prompt_end)[-1:] == ["<think>"]
        self._cached_grid = lru_cache(maxsize=None)(self._compute_grid)
        self._cached_frame = lru_cache(maxsize=1024)(self._encode_frame)

    @classmethod
    def from_folder(
        cls, folder: Path, settings: ProcessorSettings, *, read_size: SizeReader = read_image_size
    ) -> "Processor":
        """The processor of a checkpoint's folder. Raises LorgnetteError naming the file that is missing or broken."""
        family = read_family(folder)
        tokenizer = TextTokenizer.from_folder(folder, needs_json=family.needs_tokenizer_json)
        _check_image_token(folder, tokenizer)
        chat_template = ChatTemplate.from_folder(folder, family.template_options)
        chat_template.check()
        image_processor = ImageProcessor.from_folder(folder, settings)
        return cls(tokenizer, chat_template, image_processor, family, settings, read_size)

    def forget_images(self) -> None:
        """Forget the sizes of images: their files may change."""
        self._cached_grid.cache_clear()

    def forget_requests(self) -> None:
        """Empty all caches, which grow with every other text and image."""
        self.forget_images()
        self._cached_frame.cache_clear()
        self.tokenizer.encode_cached.cache_clear()

    def encode(self, example: Example, *, add_generation_prompt: bool = False) -> Encoded:
        """Token ids, labels and positions of the whole conversation, [T], [T] and [3, T].

        add_generation_prompt: without the last answer, up to where the assistant begins to speak.

        An answer has a loss if it begins as a prediction does. The encoded example has its boxes as the model writes
        them. Raises LorgnetteError for an image that cannot be read, for an example longer than `max_length` and for
        an answer with a thought that the template does not write.
        """
        row = self.encode_row(example, add_generation_prompt=add_generation_prompt)
        return row.expand(self.image_token_id, self.compute_position_ids)

    def encode_row(self, example: Example, *, add_generation_prompt: bool = False) -> TextRow:
        """What `encode` returns, in short."""
        example = self.write_boxes(example)
        turns = example.without_answer().turns if add_generation_prompt else example.turns
        outline, answers, grids = self._split_answers(turns)
        self._check_thoughts(example, answers)
        # The frame around the answers comes from a cache; only the answers are tokenized for each example.
        text, spans, image_starts, length, num_skipped = list[int](), list[int](), list[int](), 0, 0
        frame = self._cached_frame(outline, add_generation_prompt)
        for segment, (pieces, has_loss) in zip(frame, [*answers, ((), False)], strict=True):
            text += segment.text
            image_starts += [length + start for start in segment.image_starts]
            for first, last in zip(segment.spans[::2], segment.spans[1::2], strict=True):
                add_span(spans, length + first, length + last)
            length += segment.length
            written = _join_texts(segment.beginning.opening, pieces)
            answer = [id_ for piece in written for id_ in self._encode_piece(piece)]
            text += answer
            num_skipped += has_loss and not segment.beginning.is_learned
            if answer and has_loss and segment.beginning.is_learned:
                add_span(spans, length, length + len(answer))
            length += len(answer)
        if length > self.settings.max_length:
            counts = f"{length} tokens ({sum(grid.num_tokens for grid in grids)} of them for images)"
            message = f"{counts}, more than max_length={self.settings.max_length}"
            hint = "shorten the text, lower image_tokens, or raise max_length"
            raise OverlongError(message, where=example.where, hint=hint)
        if not add_generation_prompt and not spans and any(has_loss for _, has_loss in answers):
            message = "no answer that is to be learned begins as a prediction of this model does"
            raise LorgnetteError(message, where=example.where, hint="let the last answer be learned, or remove the row")
        return TextRow(example, text, spans, image_starts, grids, frame[0].text, num_skipped)

    def count_answer_tokens(self, example: Example) -> int:
        """The tokens of `Example.reference`, without an end token; 0 if the user has the last word."""
        answer = self.write_boxes(example).turns[len(example.without_answer().turns) :][:1]
        pieces = (piece for turn in answer for piece in join_pieces(turn.parts))
        return sum(len(self._encode_piece(piece)) for piece in pieces)

    def count_skipped_answers(self, example: Example) -> int:
        """The answers that the data wants learned, but that do not begin as a prediction does."""
        outline, answers, _ = self._split_answers(self.write_boxes(example).turns)
        frame = self._cached_frame(outline, False)[:-1]
        return sum(
            has_loss and not segment.beginning.is_learned for segment, (_, has_loss) in zip(frame, answers, strict=True)
        )

    def list_remarks(self, num_skipped: int, num_flat: int) -> list[str]:
        """What this model does otherwise than the settings and the data say, in sentences.

        num_skipped, num_flat: of all rows, as `count_skipped_answers` and `count_flat_boxes` count them.
        """
        remarks = list_size_remarks(self.settings, self.image_processor.token_side)
        if self.opens_thought:
            remarks.append("this model thinks before it answers: the training teaches it to answer without a thought")
        if num_skipped:
            remarks.append(
                f"{num_skipped} {'answer is' if num_skipped == 1 else 'answers are'} not trained: in a conversation "
                "this model begins only its last answer as it begins a prediction"
            )
        if num_flat:
            count = f"{num_flat} {'box has' if num_flat == 1 else 'boxes have'}"
            remarks.append(
                f"{count} no area in this model's numbers, which are too coarse: raise image_size, or cut the image"
            )
        return remarks

    def count_flat_boxes(self, example: Example) -> int:
        """The boxes that have no area in the model's numbers."""
        if not has_boxes(example):
            return 0
        written, sizes = self.write_boxes(example), [self._read_sizes(image) for image in example.images]
        return count_flat_boxes(written, self.box_convention, sizes)

    def _check_thoughts(self, example: Example, answers: Sequence[tuple[Pieces, bool]]) -> None:
        """Raises LorgnetteError for an answer with `<think>`, where the template itself writes it."""
        if not _THOUGHT.search(self._prompt_end):
            return
        texts = [piece for pieces, _ in answers for piece in pieces if isinstance(piece, str)]
        if match := next(filter(None, map(_THOUGHT.search, texts)), None):
            message = f"an answer has {match[0]}, but this model's template writes the thoughts, and they are empty"
            raise LorgnetteError(message, where=example.where, hint="remove the thought from the answer")

    def write_boxes(self, example: Example) -> Example:
        """The example with its boxes as the model writes them, and in pixels of the file.

        Its texts are then in one scale with the model's answers. Raises LorgnetteError for an image that cannot be
        read, and for a box outside its image.
        """
        if not has_boxes(example):
            return example
        return write_boxes(example, self.box_convention, [self._read_sizes(image) for image in example.images])

    def parse_boxes(self, text: str, image: Image, number: int = 0) -> list[TextBox]:
        """The boxes of the model's answer in pixels of the file. number: the image's, among the example's."""
        return parse_boxes(text, self.box_convention, self._read_sizes(image), number)

    def _read_sizes(self, image: Image) -> ImageSize:
        grid, side = self._cached_grid(image), self.image_processor.patch_size
        return ImageSize(*self.read_size(image.path), grid.w * side, grid.h * side)

    def _encode_piece(self, piece: str | ControlToken) -> list[int]:
        """The ids of a text or of a control token. Raises LorgnetteError if the tokenizer does not have it."""
        if isinstance(piece, str):
            return self.tokenizer.encode(piece)
        if piece.name not in self.tokenizer.control_tokens:
            hint = "use the whole checkpoint, or remove the boxes"
            raise LorgnetteError(f"tokenizer has no {piece.name}, which the model's boxes need", hint=hint)
        return [self.tokenizer.control_tokens[piece.name]]

    def _split_answers(self, turns: Sequence[Turn]) -> tuple[Outline, list[tuple[Pieces, bool]], tuple[ImageGrid, ...]]:
        """The conversation's outline, its answers (text, has a loss), its image grids."""
        outline: list[tuple[Role, tuple[Pieces | int | None, ...], bool]] = []
        answers: list[tuple[Pieces, bool]] = []
        grids: list[ImageGrid] = []
        for turn in turns:
            parts: list[Pieces | int | None] = []
            for is_image, group in groupby(turn.parts, key=lambda part: isinstance(part, Image)):
                if is_image:
                    own_grids = [self._cached_grid(part) for part in group if isinstance(part, Image)]
                    grids += own_grids
                    parts += [grid.num_tokens for grid in own_grids]
                elif turn.role == "assistant":
                    answers.append((join_pieces(group), turn.has_loss))
                    parts.append(None)
                else:
                    parts.append(join_pieces(group))
            outline.append((turn.role, tuple(parts), turn.has_loss))
        return tuple(outline), answers, tuple(grids)

    def _encode_frame(self, outline: Outline, add_generation_prompt: bool) -> tuple[_Segment, ...]:
        """The segments before the first answer, between answers, and behind the last."""
        image_lengths = iter([part for _, parts, _ in outline for part in parts if isinstance(part, int)])
        frame: list[_Segment] = []
        text, spans, image_starts, length = list[int](), list[int](), list[int](), 0
        for run, has_loss in chain(self._iter_runs(outline, add_generation_prompt), [(_END, False)]):
            if isinstance(run, _Beginning):
                frame.append(_Segment(tuple(text), tuple(spans), tuple(image_starts), length, run))
                text, spans, image_starts, length = [], [], [], 0
            elif run == [self.image_token_id]:
                # The template writes one image token per image; it takes the place of all of the image's.
                image_starts.append(length)
                length += next(image_lengths)
            else:
                text += run
                if run and has_loss:
                    add_span(spans, length, length + len(run))
                length += len(run)
        return tuple(frame)

    def _iter_runs(
        self, outline: Outline, add_generation_prompt: bool
    ) -> Iterator[tuple[list[int] | _Beginning, bool]]:
        """(ids, has loss) in order; a _Beginning in the place of an answer.

        A text and the template's plain text around it are tokenized as one string. An answer is not: its first token
        must be the one with which prediction starts, right after the template's header.
        """
        texts = [(part, has_loss) for _, parts, has_loss in outline for part in parts if not isinstance(part, int)]
        plain = ""
        open_answer: bool | None = None  # whether the answer has a loss; None: outside of an answer
        shape = tuple((role, tuple(isinstance(part, int) for part in parts)) for role, parts, _ in outline)
        openings = self._find_openings(shape, add_generation_prompt)
        rendered = self.chat_template.render(shape, add_generation_prompt)
        for piece, following in zip_longest(rendered, rendered[1:]):
            # A number stands for a text of the conversation.
            if isinstance(piece, int):
                pieces, has_loss = texts[piece]
                if pieces is None:
                    opening = openings[piece]
                    chunks = tuple(chunk for chunk in self._control_pattern.split(opening or "") if chunk)
                    names = self.tokenizer.control_tokens
                    written = tuple(ControlToken(chunk) if chunk in names else chunk for chunk in chunks)
                    yield self.tokenizer.encode_cached(plain), False
                    yield _Beginning(written, opening is not None), False
                    plain, open_answer = "", has_loss and opening is not None
                for part in pieces or ():
                    if isinstance(part, str):
                        plain += part
                    else:
                        yield self.tokenizer.encode_cached(plain), False
                        yield self._encode_piece(part), False
                        plain = ""
                continue
            # Anything else is the template's own text, the only source of control tokens. What the model writes before
            # its answer belongs to the answer.
            for chunk in self._control_pattern.split(piece.removesuffix(openings.get(following) or "")):
                if chunk not in self.tokenizer.control_tokens:
                    plain += chunk
                    continue
                yield self.tokenizer.encode_cached(plain), False
                is_end = open_answer is not None and chunk == IM_END_TOKEN
                yield (
                    [self.eos_token_id if is_end else self.tokenizer.control_tokens[chunk]],
                    is_end and bool(open_answer),
                )
                plain, open_answer = "", None if is_end else open_answer
        yield self.tokenizer.encode_cached(plain), False

    def _find_openings(
        self, shape: ConversationShape, add_generation_prompt: bool
    ) -> dict[int | str | None, str | None]:
        """The number of an answer's text → `ChatTemplate.find_opening` of its turn."""
        numbers = itertools.count()
        openings: dict[int | str | None, str | None] = {}
        for turn, (role, parts) in enumerate(shape):
            for number in [next(numbers) for is_image in parts if not is_image]:
                if role == "assistant":
                    openings[number] = self.chat_template.find_opening(shape, turn, add_generation_prompt)
        return openings

    def _compute_grid(self, image: Image) -> ImageGrid:
        processor, size = self.image_processor, self.read_size(image.path)
        if processor.size is None:
            check_aspect(size, str(image.path))  # transformers refuses it too
        height, width = processor.compute_size(*size)
        # t = 1: an image is one frame.
        return ImageGrid(image, 1, height // processor.patch_size, width // processor.patch_size, processor.merge_size)


def _check_image_token(folder: Path, tokenizer: TextTokenizer) -> None:
    """Raise LorgnetteError if config.json says that images stand at another token than the tokenizer's."""
    path, id_ = folder / "config.json", tokenizer.control_tokens[IMAGE_TOKEN]
    stated = read_config(path, _HINT).get("image_token_id", id_)
    if stated != id_:
        message = f"image_token_id is {shorten(repr(stated))}, but {IMAGE_TOKEN} is {id_} in the tokenizer's files"
        raise LorgnetteError(message, where=str(path), hint=_HINT)


def _join_texts(first: Pieces, second: Pieces) -> Pieces:
    """Both; two texts that meet become one."""
    if first and second and isinstance(first[-1], str) and isinstance(second[0], str):
        return (*first[:-1], first[-1] + second[0], *second[1:])
    return first + second


def list_size_remarks(settings: ProcessorSettings, token_side: int) -> list[str]:
    """What becomes of an image size that is not in whole tokens, in a sentence."""
    if settings.image_size is None or (rounded := round_size(settings.image_size, token_side)) == settings.image_size:
        return []
    (height, width), (rows, columns) = settings.image_size, rounded
    text = f"image_size {height}×{width} becomes {rows}×{columns}: an image token of this model has"
    return [f"{text} {token_side}×{token_side} pixels"]


def describe_image_size(settings: ProcessorSettings, token_side: int | None = None) -> str:
    """The size at which a model gets images, in words; without the side of its tokens, the size that is set."""
    if settings.image_size is None:
        low, high = settings.image_tokens
        return f"native, {low} to {high} tokens"
    height, width = round_size(settings.image_size, token_side) if token_side else settings.image_size
    return f"{height}×{width} pixels"
