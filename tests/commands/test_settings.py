"""`settings`: what is printed for no word, a part of one, another trainer's word, and a word that nobody knows."""

from collections.abc import Callable
from typing import Any

import pytest

from lorgnette import config
from lorgnette.commands.settings import list_settings
from lorgnette.errors import UsageError
from lorgnette.synonyms import SYNONYMS


def test_all_settings_are_listed(cli: Callable[..., object]) -> None:
    done = cli("settings")
    lines = done.out.splitlines()  # type: ignore[attr-defined]
    assert [line.split()[0] for line in lines] == config.list_settings()
    assert any(
        line.split(None, 2)
        == [
            "train.save_steps",
            "100",
            "steps between two checkpoints; null: each epoch (the last step is always saved)",
        ]
        for line in lines
    )


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("train.max_steps", ["train.max_steps", "null"]),
        ("max-steps", ["train.max_steps", "→ train.max_steps: at most"]),
        ("rank", ["lora.rank ", "also: lora_rank, r, lora_r"]),
        ("checkpoint", ["train.save_steps", "gradient_checkpointing (transformers): nothing to set"]),
        ("lr", ["also: lr", "learning_rate, lr (transformers) → train.learning_rate"]),
        ("cutoff_len", ["max_length  8192", "cutoff_len (LLaMA-Factory, Unsloth): no counterpart; it cuts longer"]),
        ("load_in_4bit", ["quantization  null  nf4: ", "→ quantization: true is nf4, false null"]),
        ("seed", ["seed  0", "draws another order"]),
        ("train", ["train.epochs", "train.early_stopping_patience"]),
        ("rows", ["data.max_rows"]),
    ],
)  # fmt: skip
def test_a_word_finds_settings(word: str, parts: list[str], cli: Callable[..., object]) -> None:
    done = cli("settings", word)
    for part in parts:
        assert part in done.out  # type: ignore[attr-defined]


def test_every_word_of_another_trainer_is_found(cli: Callable[..., object]) -> None:
    for word in list(SYNONYMS)[::23]:
        assert word in cli("settings", word).out  # type: ignore[attr-defined]


def test_a_word_that_nobody_knows_is_refused(cli: Callable[..., object]) -> None:
    cli("settings", "zzzz").assert_refused(2, "no setting matches", "zzzz", "`lorgnette settings` lists all")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("word", "nearest"), [("batchsize", "train.batch_size"), ("skip_bad_rows", "data.on_bad_row")])
def test_an_unknown_word_gets_the_nearest_settings(word: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"no setting matches .* nearest: .*{nearest}"):
        list_settings(word)


def test_words_are_joined(cli: Any) -> None:
    assert "image_size" in cli("settings", "image", "size").out
