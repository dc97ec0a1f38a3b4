"""Renders the checkpoint's chat template, once per shape of conversation.

The template is rendered with a marker in the place of every text. So no text can pass for a control token or break the
template; the processor puts the texts between the pieces afterwards.
"""

import itertools
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import MAX_CONFIG_BYTES, decode_utf8, read_config, read_small_file, shorten
from lorgnette.processing.template_sandbox import TemplateSandbox
from lorgnette.types import Role

# Noncharacters, which Unicode reserves for a program's own use (U+FDD0–U+FDEF): no template contains them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}(\\d{{1,9}}){_CLOSE}")

_HINT = "use the whole Instruct checkpoint of a vision model"
_BUDGET, _BUDGET_PER_PART = 2_000_000, 10_000
"""Steps of a rendering, at most about a second, and more for each turn and part. Qwen's templates take 300 for each."""

Options = tuple[tuple[str, bool], ...]
ConversationShape = tuple[tuple[Role, tuple[bool, ...]], ...]
"""A conversation as the template sees it: per turn its role and, per part, True for an image."""


class ChatTemplate:
    """A Jinja chat template, as the hub's checkpoints have it.

    options: variables that it is rendered with, conversations and prompts alike.
    """

    def __init__(self, source: str, where: str, options: Options = ()) -> None:
        self.source, self._where, self._options = source, where, dict(options)
        self._sandbox, self._lock = TemplateSandbox(), Lock()
        try:
            self._template = self._sandbox.compile_source(source)
        except Exception as error:  # jinja2 and Python's compiler raise nearly anything for a hostile template
            raise self._build_error("cannot be read", error) from None
        self.render = lru_cache(maxsize=256)(self._render)

    @classmethod
    def from_folder(cls, folder: Path, options: Options = ()) -> "ChatTemplate":
        """Read `chat_template.json`, `chat_template.jinja` or `tokenizer_config.json`, the first that has one.

        The order is that of transformers' processors (processing_utils.py, ProcessorMixin.get_processor_dict).
        Raises LorgnetteError if none has one or the file is broken.
        """
        for path in (folder / "chat_template.json", folder / "chat_template.jinja", folder / "tokenizer_config.json"):
            if not path.exists():
                continue
            source: Any = _read_text(path) if path.suffix == ".jinja" else read_config(path, _HINT).get("chat_template")
            if isinstance(source, str):
                return cls(source, str(path), options)
        raise LorgnetteError("checkpoint has no chat template", where=str(folder), hint=_HINT)

    def check(self) -> None:
        """Render a small conversation: a template that cannot is found before the data is read."""
        for add_generation_prompt in (False, True):
            self.render((("user", (True, False)), ("assistant", (False,))), add_generation_prompt)

    def find_opening(self, shape: ConversationShape, turn: int, add_generation_prompt: bool) -> str | None:
        """What stands between the end of a prompt and the answer of this turn: usually nothing.

        A model that thinks first is asked with an open thought, which the template closes before an answer. None: the
        answer does not begin as a prediction does. Such are earlier answers where only the last one has a thought, and
        one before the first question.
        """
        if all(role != "user" for role, _ in shape[:turn]):
            return None
        number = sum(not is_image for _, parts in shape[:turn] for is_image in parts)
        pieces = self.render(shape, add_generation_prompt)
        before = _join_pieces(pieces[: pieces.index(number)])
        prompt = _join_pieces(self.render(shape[:turn], True))
        opening = before.removeprefix(prompt)
        return opening if before.startswith(prompt) and _OPEN not in opening else None

    def _build_error(self, what: str, error: Exception) -> LorgnetteError:
        reason = shorten(" ".join(str(error).split())) or type(error).__name__
        return LorgnetteError(f"chat template {what}: {reason}", where=self._where, hint=_HINT)

    def _render(self, shape: ConversationShape, add_generation_prompt: bool) -> tuple[str | int, ...]:
        """The rendered conversation: strings are the template's own, a number n stands for the n-th text.

        add_generation_prompt: end where the assistant begins to speak.
        """
        numbers = itertools.count()

        def mark(is_image: bool) -> dict[str, str]:
            return {"type": "image"} if is_image else {"type": "text", "text": _mark(next(numbers))}

        messages = [{"role": role, "content": [mark(is_image) for is_image in parts]} for role, parts in shape]
        try:
            with self._lock:
                self._sandbox.budget = _BUDGET + _BUDGET_PER_PART * sum(1 + len(parts) for _, parts in shape)
                rendered = self._template.render(
                    messages=messages, add_generation_prompt=add_generation_prompt, **self._options
                )
        except Exception as error:  # the template is a program: it may raise anything
            raise self._build_error("refuses the conversation", error) from None
        split = _MARK.split(rendered)
        pieces = tuple(int(piece) if i % 2 else piece for i, piece in enumerate(split) if i % 2 or piece)
        if [piece for piece in pieces if isinstance(piece, int)] != list(range(next(numbers))):
            message = "chat template does not keep every text once and in order"
            raise LorgnetteError(message, where=self._where, hint=_HINT)
        return pieces


def _mark(number: int) -> str:
    return f"{_OPEN}{number}{_CLOSE}"


def _join_pieces(pieces: Sequence[str | int]) -> str:
    return "".join(piece if isinstance(piece, str) else _mark(piece) for piece in pieces)


def _read_text(path: Path) -> str:
    try:
        return decode_utf8(read_small_file(path, MAX_CONFIG_BYTES))
    except LorgnetteError as error:
        message = f"{path.name} cannot be read: {error.message}"
        raise LorgnetteError(message, where=str(path), hint=_HINT) from None
