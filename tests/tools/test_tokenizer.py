"""The tokenizer: the hub's files, Qwen2's pre-tokenizer, one token for each word of a scene."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from demo_model.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, VOCAB_SIZE
from transformers import AutoTokenizer

from lorgnette.demo.shapes import COLORS, KINDS

ODD = ["", "héllo wörld 你好 🙂", "a  b\n\n c\t", "it's 2024, isn't it?", "<|im_start|>user\n<|image_pad|>x<|im_end|>"]


@pytest.mark.parametrize("text", ODD)
def test_any_text_round_trips(untrained: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_the_last_ids(untrained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    assert len(tokenizer) == VOCAB_SIZE
    assert [tokenizer(token).input_ids for token in SPECIAL_TOKENS] == [[VOCAB_SIZE - 14 + i] for i in range(14)]
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|im_end|>", "<|endoftext|>", None)


def test_each_word_of_a_scene_is_one_token(untrained: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(untrained)
    for word in (*KINDS, *COLORS, "small", "big", "left", "right", "above", "below", "assistant"):
        assert len(tokenizer(f" {word}").input_ids) == 1, word
    assert [len(tokenizer(word).input_ids) for word in ("system", "user", "assistant", "COCO Yes:")] == [1, 1, 1, 3]


def test_files_have_the_structure_of_qwen2_vls(untrained: Path, shared: Callable[[str], Path]) -> None:
    real = json.loads((shared("qwen2-vl") / "tokenizer_config.json").read_text())
    ours = json.loads((untrained / "tokenizer_config.json").read_text())
    assert ours["chat_template"] == real["chat_template"] == CHAT_TEMPLATE
    assert json.loads((untrained / "chat_template.json").read_text())["chat_template"] == CHAT_TEMPLATE
    assert set(ours) == set(real)
    assert [t["content"] for t in ours["added_tokens_decoder"].values()] == [
        t["content"] for t in real["added_tokens_decoder"].values()
    ]
    real_pre_tokenizer, our_pre_tokenizer = (
        AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer
        for folder in (shared("qwen2-vl"), untrained)
    )
    for text in ODD:
        assert our_pre_tokenizer.pre_tokenize_str(text) == real_pre_tokenizer.pre_tokenize_str(text)
