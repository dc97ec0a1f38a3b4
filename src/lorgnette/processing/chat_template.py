"""Renders the checkpoint's chat template, once per shape of conversation.

The template is rendered with a marker in the place of every text. So no text can pass for a control token or break the
template; the processor puts the texts between the pieces afterwards.
"""

import itertools
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import jinja2.ext
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lorgnette.errors import LorgnetteError
from lorgnette.types import Role

# Noncharacters, which Unicode reserves for a program's own use (U+FDD0–U+FDEF): no template contains them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

_HINT = "use the whole Instruct checkpoint of a vision model"

ConversationShape = tuple[tuple[Role, tuple[bool, ...]], ...]
"""A conversation as the template sees it: per turn its role and, per part, True for an image."""


class ChatTemplate:
    """A Jinja chat template, as the hub's checkpoints have it."""

    def __init__(self, source: str, where: str) -> None:
        # The environment in which transformers renders chat templates (utils/chat_template_utils.py).
        extensions = [jinja2.ext.loopcontrols]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.globals["raise_exception"] = _raise_exception
        self.source, self._where = source, where
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise LorgnetteError(f"chat template cannot be read: {error}", where=where, hint=_HINT) from None
        self.render = lru_cache(maxsize=256)(self._render)

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTemplate":
        """Read `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`, the first that has one.

        Raises LorgnetteError if none has one or the file is broken.
        """
        for path in (folder / "chat_template.jinja", folder / "chat_template.json", folder / "tokenizer_config.json"):
            if not path.exists():
                continue
            try:
                text = path.read_text(encoding="utf-8")
                source = text if path.suffix == ".jinja" else json.loads(text).get("chat_template")
            except (ValueError, AttributeError) as error:
                raise LorgnetteError(f"{path.name} cannot be read: {error}", where=str(path), hint=_HINT) from None
            if isinstance(source, str):
                return cls(source, str(path))
        raise LorgnetteError("checkpoint has no chat template", where=str(folder), hint=_HINT)

    def _render(self, shape: ConversationShape, add_generation_prompt: bool) -> tuple[str | int, ...]:
        """The rendered conversation: strings are the template's own, a number n stands for the n-th text.

        add_generation_prompt: end where the assistant begins to speak.
        """
        numbers = itertools.count()

        def mark(is_image: bool) -> dict[str, str]:
            return {"type": "image"} if is_image else {"type": "text", "text": f"{_OPEN}{next(numbers)}{_CLOSE}"}

        messages = [{"role": role, "content": [mark(is_image) for is_image in parts]} for role, parts in shape]
        try:
            rendered = self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        except (TemplateError, TypeError) as error:  # TypeError: a text model's template, which concatenates contents
            message = f"chat template refuses the conversation: {error}"
            raise LorgnetteError(message, where=self._where, hint=_HINT) from None
        split = _MARK.split(rendered)
        pieces = tuple(int(piece) if i % 2 else piece for i, piece in enumerate(split) if i % 2 or piece)
        if [piece for piece in pieces if isinstance(piece, int)] != list(range(next(numbers))):
            message = "chat template does not keep every text once and in order"
            raise LorgnetteError(message, where=self._where, hint=_HINT)
        return pieces


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
