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

IMAGE_TOKEN, IM_END_TOKEN, ENDOFTEXT_TOKEN = "<|image_pad|>", "<|im_end|>", "<|endoftext|>"

# The pre-tokenization of every Qwen2 and Qwen3 checkpoint (tokenization_qwen2.py of transformers). vocab.json and
# merges.txt do not carry it; tokenizer.json does.
_PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TextTokenizer:
    """Text ↔ ids of one checkpoint.

    control: control tokens (`<|im_start|>`, `<|image_pad|>`, …) → id.
    """

    def __init__(self, text: Tokenizer, control_tokens: dict[str, int]) -> None:
        self._text = text
        self.control_tokens = control_tokens
        self._control_names = {number: name for name, number in control_tokens.items()}
        self.encode_cached = lru_cache(maxsize=4096)(self.encode)

    @classmethod
    def from_folder(cls, folder: Path) -> "TextTokenizer":
        """Read `tokenizer.json`, or `vocab.json` + `merges.txt` + `tokenizer_config.json`.

        Raises LorgnetteError where neither is there, one cannot be read, or a control token that every example needs
        is not among them.
        """
        try:
            whole = folder / "tokenizer.json"
            found = cls._from_json(whole) if whole.exists() else cls._from_vocabulary(folder)
        except FileNotFoundError as error:
            raise LorgnetteError(
                f"tokenizer is missing: no tokenizer.json, and no {Path(str(error.filename)).name}",
                where=str(folder),
                hint="download the checkpoint again, whole",
            ) from None
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise LorgnetteError(
                f"tokenizer cannot be read: {error}", where=str(folder), hint="download the checkpoint again, whole"
            ) from None
        absent = [name for name in (IMAGE_TOKEN, IM_END_TOKEN, ENDOFTEXT_TOKEN) if name not in found.control_tokens]
        if absent:
            raise LorgnetteError(
                f"tokenizer has no {', '.join(absent)}",
                where=str(folder),
                hint="use an Instruct checkpoint of a vision model, whole",
            )
        return found

    @classmethod
    def _from_json(cls, path: Path) -> "TextTokenizer":
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        control = {token["content"]: token["id"] for token in tree["added_tokens"]}
        return cls(Tokenizer.from_str(json.dumps({**tree, "added_tokens": [], "post_processor": None})), control)

    @classmethod
    def _from_vocabulary(cls, folder: Path) -> "TextTokenizer":
        text = Tokenizer(
            models.BPE.from_file(str(_check_exists(folder / "vocab.json")), str(_check_exists(folder / "merges.txt")))
        )
        text.normalizer = normalizers.NFC()
        text.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_PRETOKENIZE_REGEX), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        text.decoder = decoders.ByteLevel()
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        control = {token["content"]: int(number) for number, token in settings["added_tokens_decoder"].items()}
        return cls(text, control)

    def encode(self, text: str) -> list[int]:
        """The ids of plain text; control tokens named in it are text too."""
        return self._text.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of an answer: control tokens are left out."""
        return self._text.decode([number for number in ids if number not in self._control_names])

    def decode_with_control_tokens(self, ids: Iterable[int]) -> str:
        """The text with control tokens written out, for people."""
        runs = groupby(ids, key=self._control_names.get)  # plain ids together: a character may be spread over several
        return "".join(name * len(list(run)) if name else self._text.decode(list(run)) for name, run in runs)


def _check_exists(path: Path) -> Path:
    """The tokenizers library reports a missing file without its name; open() names it."""
    with open(path, "rb"):
        return path
