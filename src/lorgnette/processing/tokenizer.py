"""The checkpoint's tokenizer: text to token ids and back, and the control tokens by name.

Plain text and control tokens are kept apart: `text_ids` never yields a control token, whatever the text says, so a
caption that contains `<|im_end|>` stays a caption.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lorgnette.errors import LorgnetteError

IMAGE, END, TEXT_END = "<|image_pad|>", "<|im_end|>", "<|endoftext|>"

# The pre-tokenization of every Qwen2 and Qwen3 checkpoint (tokenization_qwen2.py of transformers). vocab.json and
# merges.txt do not carry it; tokenizer.json does.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """Text ↔ ids of one checkpoint.

    control: control tokens (`<|im_start|>`, `<|image_pad|>`, …) → id.
    """

    def __init__(self, text: Tokenizer, control: dict[str, int]) -> None:
        self._text = text
        self.control = control
        self._names = {number: name for name, number in control.items()}
        self.cached_ids = lru_cache(maxsize=4096)(self.text_ids)

    @classmethod
    def of_folder(cls, folder: Path) -> "TextTokenizer":
        """Read `tokenizer.json`, or `vocab.json` + `merges.txt` + `tokenizer_config.json`.

        Raises LorgnetteError where neither is there, one cannot be read, or a control token that every example needs
        is not among them.
        """
        try:
            whole = folder / "tokenizer.json"
            found = cls._of_json(whole) if whole.exists() else cls._of_vocabulary(folder)
        except FileNotFoundError as error:
            raise LorgnetteError(
                f"tokenizer is missing: no tokenizer.json, and no {Path(str(error.filename)).name}",
                where=str(folder),
                remedy="download the checkpoint again, whole",
            ) from None
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise LorgnetteError(
                f"tokenizer cannot be read: {error}", where=str(folder), remedy="download the checkpoint again, whole"
            ) from None
        absent = [name for name in (IMAGE, END, TEXT_END) if name not in found.control]
        if absent:
            raise LorgnetteError(
                f"tokenizer has no {', '.join(absent)}",
                where=str(folder),
                remedy="use an Instruct checkpoint of a vision model, whole",
            )
        return found

    @classmethod
    def _of_json(cls, path: Path) -> "TextTokenizer":
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        control = {token["content"]: token["id"] for token in tree["added_tokens"]}
        return cls(Tokenizer.from_str(json.dumps({**tree, "added_tokens": [], "post_processor": None})), control)

    @classmethod
    def _of_vocabulary(cls, folder: Path) -> "TextTokenizer":
        text = Tokenizer(models.BPE.from_file(str(_there(folder / "vocab.json")), str(_there(folder / "merges.txt"))))
        text.normalizer = normalizers.NFC()
        text.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        text.decoder = decoders.ByteLevel()
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        control = {token["content"]: int(number) for number, token in settings["added_tokens_decoder"].items()}
        return cls(text, control)

    def text_ids(self, text: str) -> list[int]:
        """The ids of plain text; control tokens named in it are text too."""
        return self._text.encode(text, add_special_tokens=False).ids

    def text_of(self, ids: Iterable[int]) -> str:
        """The text of an answer: control tokens are left out."""
        return self._text.decode([number for number in ids if number not in self._names])

    def shown(self, ids: Iterable[int]) -> str:
        """The text with control tokens written out, for people."""
        runs = groupby(ids, key=self._names.get)  # plain ids together: a character may be spread over several
        return "".join(name * len(list(run)) if name else self._text.decode(list(run)) for name, run in runs)


def _there(path: Path) -> Path:
    """The tokenizers library reports a missing file without its name; open() names it."""
    with open(path, "rb"):
        return path
