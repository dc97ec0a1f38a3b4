"""The checkpoint's tokenizer: text ↔ token ids, and the control tokens by name.

Text and control tokens are kept apart: `encode` never returns a control token, so a caption that contains `<|im_end|>`
stays a caption.
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import MAX_CONFIG_BYTES, check_is_file, is_unicode, read_config, shorten
from lorgnette.processing.boxes import BOX_TOKENS

IMAGE_TOKEN, IM_END_TOKEN, ENDOFTEXT_TOKEN = "<|image_pad|>", "<|im_end|>", "<|endoftext|>"
THINK_TOKEN, END_OF_THOUGHT_TOKEN = "<think>", "</think>"
MAX_VOCABULARY = 2**22
_HINT = "download the whole checkpoint again"

# The pre-tokenization of Qwen2 and Qwen3 (tokenization_qwen2.py of transformers); newer models have another.
# tokenizer.json includes it; vocab.json and merges.txt do not.
_PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _list_byte_characters() -> dict[str, int]:
    """Character → byte of a byte-level vocabulary: printable bytes of Latin-1 are themselves, the others follow 255."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _list_byte_characters()


class TextTokenizer:
    """Text ↔ ids of one checkpoint.

    control_tokens: name (`<|im_start|>`, `<|image_pad|>`, …) → id.
    """

    def __init__(self, text: Tokenizer, control_tokens: dict[str, int]) -> None:
        self._text, self.control_tokens = text, control_tokens
        self._vocab_size = MAX_VOCABULARY
        self._control_names = {id_: name for name, id_ in control_tokens.items()}
        self._hidden_ids = {id_ for name, id_ in control_tokens.items() if name not in BOX_TOKENS}
        self._end_of_thought_id = control_tokens.get(END_OF_THOUGHT_TOKEN)
        self.encode_cached = lru_cache(maxsize=4096)(self.encode)

    @classmethod
    def from_folder(cls, folder: Path, *, needs_json: bool = False) -> "TextTokenizer":
        """Read `tokenizer.json`, or `vocab.json` + `merges.txt` + `tokenizer_config.json`.

        needs_json: the family's tokens are not those of the other files. Raises LorgnetteError if a file is missing or
        broken, or if a control token that every example needs is missing.
        """
        path = folder / "tokenizer.json"
        if needs_json and not path.exists():
            message = "tokenizer.json is missing; the tokens of this model cannot be told from its other files"
            raise LorgnetteError(message, where=str(folder), hint=_HINT)
        try:
            tokenizer = cls._from_json(path) if path.exists() else cls._from_vocabulary(folder)
        except FileNotFoundError as error:
            message = f"tokenizer is missing: no tokenizer.json, and no {Path(str(error.filename)).name}"
            raise LorgnetteError(message, where=str(folder), hint=_HINT) from None
        except LorgnetteError as error:
            if error.where is not None:
                raise
            raise LorgnetteError(f"tokenizer cannot be read: {error.message}", where=str(folder), hint=_HINT) from None
        except Exception as error:  # the tokenizers library raises nothing narrower
            reason = shorten(" ".join(str(error).split()))
            raise LorgnetteError(f"tokenizer cannot be read: {reason}", where=str(folder), hint=_HINT) from None
        tokenizer._vocab_size = _read_vocab_size(folder)
        tokenizer._check_ids(tokenizer.control_tokens.values())
        required = (IMAGE_TOKEN, IM_END_TOKEN, ENDOFTEXT_TOKEN)
        if missing := [name for name in required if name not in tokenizer.control_tokens]:
            hint = "use the whole Instruct checkpoint of a vision model"
            raise LorgnetteError(f"tokenizer has no {', '.join(missing)}", where=str(folder), hint=hint)
        return tokenizer

    @classmethod
    def _from_json(cls, path: Path) -> "TextTokenizer":
        config = read_config(path, _HINT)
        control_tokens = _read_control_tokens((token.get("id"), token) for token in config["added_tokens"])
        text_config = json.dumps({**config, "added_tokens": [], "post_processor": None})
        return cls(Tokenizer.from_str(text_config), control_tokens)

    @classmethod
    def _from_vocabulary(cls, folder: Path) -> "TextTokenizer":
        files = folder / "vocab.json", folder / "merges.txt"
        for path in files:
            size = check_is_file(path)  # an error names the missing file: the tokenizers library does not
            if size > MAX_CONFIG_BYTES:
                raise LorgnetteError(f"{path.name} has {size:,} bytes", where=str(path), hint=_HINT)
        text = Tokenizer(models.BPE.from_file(*map(str, files)))
        text.normalizer = normalizers.NFC()
        split_words = pre_tokenizers.Split(Regex(_PRETOKENIZE_REGEX), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        text.pre_tokenizer = pre_tokenizers.Sequence([split_words, to_bytes])
        text.decoder = decoders.ByteLevel()
        config = read_config(folder / "tokenizer_config.json", _HINT)
        tokens = config["added_tokens_decoder"].items()
        return cls(text, _read_control_tokens((int(id_), token) for id_, token in tokens))

    def encode(self, text: str) -> list[int]:
        """The ids of a text; the names of control tokens in it are text too.

        Raises LorgnetteError for half of a surrogate pair, which the tokenizers library takes for no text, and for an
        id that the model does not have.
        """
        if not is_unicode(text):
            message = f"not a text: {shorten(ascii(text))} has half of a surrogate pair, or is not UTF-8"
            raise LorgnetteError(message, hint="write the whole character, in UTF-8")
        ids = self._text.encode(text, add_special_tokens=False).ids
        self._check_ids(ids)
        return ids

    def _check_ids(self, ids: Iterable[int]) -> None:
        if (largest := max(ids, default=0)) >= self._vocab_size:
            message = f"tokenizer gives the id {largest}, but the model has {self._vocab_size} tokens"
            raise LorgnetteError(message, hint="use the files of one model")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of an answer, without control tokens other than those of boxes, and without a thought before it."""
        ids = list(ids)
        num_thought = self._count_thought(ids)
        shown = [id_ for id_ in ids[num_thought:] if id_ not in self._hidden_ids]
        text = self.decode_with_control_tokens(shown)
        return text.lstrip("\n") if num_thought else text

    def _count_thought(self, ids: Sequence[int]) -> int:
        """How many ids come before the answer: up to the last `</think>`."""
        is_end = [id_ == self._end_of_thought_id for id_ in ids]
        return len(ids) - is_end[::-1].index(True) if True in is_end else 0

    def decode_each(self, ids: Iterable[int]) -> list[str]:
        """What each token adds to `decode`'s text. A character in several tokens is its last one's."""
        ids = list(ids)
        num_thought = self._count_thought(ids)
        decoder = AnswerDecoder(self)
        pieces = [""] * num_thought + [decoder.add(id_) for id_ in ids[num_thought:]]
        if pieces:
            pieces[-1] += decoder.end()
        for i in range(num_thought, len(pieces)) if num_thought else ():
            pieces[i] = pieces[i].lstrip("\n")
            if pieces[i]:
                break
        return pieces

    def get_control_name(self, id_: int) -> str | None:
        """The name of a control token; None for a token of text."""
        return self._control_names.get(id_)

    def get_bytes(self, id_: int) -> bytes:
        """What a token adds to the text of an answer, perhaps a part of a character; empty for hidden tokens."""
        if (name := self._control_names.get(id_)) is not None:
            return b"" if id_ in self._hidden_ids else name.encode()
        token = self._text.id_to_token(id_) or ""
        is_bytes = all(character in _BYTES for character in token)
        return bytes(map(_BYTES.__getitem__, token)) if is_bytes else token.encode()

    def decode_with_control_tokens(self, ids: Iterable[int]) -> str:
        """The text with the names of control tokens, for people."""
        # Text ids are decoded together: a character may be spread over several.
        runs = groupby(ids, key=self._control_names.get)
        return "".join(name * len(list(run)) if name else self._text.decode(list(run)) for name, run in runs)


class AnswerDecoder:
    """Decodes an answer without a thought token by token. The texts are together what `TextTokenizer.decode` returns.

    A character in several tokens comes with its last one.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, id_: int) -> str:
        """The text that this token completes."""
        content = self._tokenizer.get_bytes(id_)
        # A character does not go on behind the name of a control token.
        rest = self.end() if content and self._tokenizer.get_control_name(id_) else ""
        return rest + self._decoder.decode(content)

    def end(self) -> str:
        """The replacement of a character that is not complete, if there is one."""
        return self._decoder.decode(b"", final=True)


def _read_vocab_size(folder: Path) -> int:
    """The rows of the model's embedding, from its config.json."""
    if not (folder / "config.json").is_file():
        return MAX_VOCABULARY
    config = read_config(folder / "config.json", _HINT)
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("vocab_size")
    return size if type(size) is int else MAX_VOCABULARY


def _read_control_tokens(tokens: Iterable[tuple[Any, Mapping[str, Any]]]) -> dict[str, int]:
    """Name → id. Raises ValueError for a token without a name, or with an id that no vocabulary has."""
    control_tokens: dict[str, int] = {}
    for id_, token in tokens:
        name = token["content"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"token {id_} has the content {name!r}")
        if type(id_) is not int or not 0 <= id_ < MAX_VOCABULARY:
            raise ValueError(f"{name} has the id {id_!r}")
        control_tokens[name] = id_
    return control_tokens
