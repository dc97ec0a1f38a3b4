"""A byte-level BPE tokenizer in the hub's files: Qwen2's pre-tokenizer with a vocabulary of 1,024 entries.

Knows nothing about weights. Every byte is an entry, so any text can be written; each word of a scene is one token.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from demo_model import wording
from demo_model.descriptions import write_description
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import sample_scene
from lorgnette.io.atomic import write_json, write_text

VOCAB_SIZE = 1024
"""Entries of the vocabulary with the special tokens; the embedding has as many rows."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2-VL's special tokens in its order, at the end of the vocabulary."""

PRETOKENIZE_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenizer pattern: a token never spans two matches."""

CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen2-VL's own template, letter for letter."""


def _generate_corpus() -> Iterator[str]:
    rng = random.Random("the tokenizer's corpus")
    for _ in range(3000):
        scene = sample_scene(rng)
        yield write_description(scene, rng)
        yield write_caption(scene)
    for _ in range(60):
        yield from wording.PROMPTS
        yield from wording.GENERAL_ENGLISH
    for _ in range(1000):
        yield from ("system\n", "user\n", "assistant\n", "COCO Yes:", "You are a helpful assistant.")


def train_tokenizer() -> Tokenizer:
    """Train the BPE without special tokens. Deterministic."""
    bpe = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(_generate_corpus(), trainer)
    return bpe


def write_tokenizer(folder: Path) -> dict[str, int]:
    """Write vocab.json, merges.txt, tokenizer_config.json, chat_template.json. Returns {special token: id}."""
    model = json.loads(train_tokenizer().to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    if len(vocab) != VOCAB_SIZE - len(SPECIAL_TOKENS):
        raise AssertionError(f"the corpus gives {len(vocab)} entries instead of {VOCAB_SIZE - len(SPECIAL_TOKENS)}")
    ids = {token: len(vocab) + i for i, token in enumerate(SPECIAL_TOKENS)}
    write_json(folder / "vocab.json", vocab)
    merges = [" ".join(pair) for pair in model["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_json(folder / "tokenizer_config.json", _build_config(ids))
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    return ids


def _build_config(ids: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token_id): {"content": token, **flags} for token, token_id in ids.items()},
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "padding_side": "left",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
