"""Text ↔ ids; a text never becomes a control token."""

import json
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lorgnette.errors import LorgnetteError
from lorgnette.processing.tokenizer import TextTokenizer

PLAIN = st.text(st.characters(exclude_categories=["Cs"]))
CONTROLS = ["<|im_end|>", "<|image_pad|>", "<|endoftext|>", "<|vision_start|>"]
TEXT = st.lists(PLAIN | st.sampled_from(CONTROLS)).map("".join)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(tiny)


@given(text=TEXT)
def test_a_text_is_restored_and_has_no_control_tokens(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.control_tokens.values())
    assert tokenizer.decode(ids) == tokenizer.decode_with_control_tokens(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.encode_cached(text) == ids


def test_decode_leaves_control_tokens_out_or_writes_their_names(tokenizer: TextTokenizer) -> None:
    pad, end = tokenizer.control_tokens["<|image_pad|>"], tokenizer.control_tokens["<|im_end|>"]
    ids = [pad, pad, *tokenizer.encode("新 é"), end]
    assert tokenizer.decode(ids) == "新 é"
    assert tokenizer.decode_with_control_tokens(ids) == "<|image_pad|><|image_pad|>新 é<|im_end|>"
    assert tokenizer.decode_with_control_tokens([]) == tokenizer.decode([]) == ""


def test_tokenizer_json_equals_the_vocabulary_files(tiny: Path, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").exists()
    for path in tmp_path.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()
    from_json, from_vocabulary = TextTokenizer.from_folder(tmp_path), TextTokenizer.from_folder(tiny)
    assert from_json.control_tokens.items() >= {name: from_vocabulary.control_tokens[name] for name in CONTROLS}.items()
    for text in ("a red car", "<|im_end|> it's 1234", "  tabs\t\n\nnew  lines ", "新 é e\u0301"):
        assert from_json.encode(text) == from_vocabulary.encode(text)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_missing_file_is_named(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m", ignore=shutil.ignore_patterns(name))
    with pytest.raises(LorgnetteError) as caught:
        TextTokenizer.from_folder(folder)
    assert caught.value.message == f"tokenizer is missing: no tokenizer.json, and no {name}"
    assert caught.value.where == str(folder)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"added_tokens": []}'),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "BPE", "vocab": 3}}'),
        ("vocab.json", "{"),
        ("vocab.json", "[]"),
        ("merges.txt", "a b c d\n"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "{}"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "y"}}}'),
    ],
)
def test_a_broken_file_is_an_error_with_a_hint(tiny: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    (folder / name).write_text(content)
    with pytest.raises(LorgnetteError, match=r"(tokenizer|\w+\.json) cannot be read: .") as caught:
        TextTokenizer.from_folder(folder)
    assert str(caught.value.where).startswith(str(folder))
    assert caught.value.hint


def test_a_text_models_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    decoder = config["added_tokens_decoder"].items()
    config["added_tokens_decoder"] = {n: token for n, token in decoder if token["content"] != "<|image_pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(
        LorgnetteError, match=r"tokenizer has no <\|image_pad\|> · .* · use the whole Instruct checkpoint"
    ):
        TextTokenizer.from_folder(folder)


def test_half_of_a_surrogate_pair_is_no_text(tiny: Path) -> None:
    with pytest.raises(LorgnetteError, match=r"not a text: .* has half of a surrogate pair"):
        TextTokenizer.from_folder(tiny).encode("caf\udce9")


@pytest.mark.parametrize(
    "token", ['{"content": "<a>", "id": -1}', '{"content": "<a>", "id": true}', '{"content": "", "id": 1}', "[]"]
)
def test_a_control_token_that_is_none_is_refused(tiny: Path, tmp_path: Path, token: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    (folder / "tokenizer.json").write_text(f'{{"added_tokens": [{token}]}}')
    with pytest.raises(LorgnetteError, match="tokenizer cannot be read: "):
        TextTokenizer.from_folder(folder)


def test_an_id_that_the_model_does_not_have_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    num_texts = min(TextTokenizer.from_folder(folder).control_tokens.values())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": num_texts}))
    with pytest.raises(LorgnetteError, match=r"tokenizer gives the id \d+, but the model has \d+ tokens"):
        TextTokenizer.from_folder(folder)
    files = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = dict(enumerate(files["added_tokens_decoder"].values()))
    (folder / "tokenizer_config.json").write_text(json.dumps(files | {"added_tokens_decoder": tokens}))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokens)}))
    tokenizer = TextTokenizer.from_folder(folder)
    with pytest.raises(LorgnetteError, match="tokenizer gives the id"):
        tokenizer.encode("a cat")
