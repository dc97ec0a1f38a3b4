"""The words of the table are those of the other trainers, and every setting in it is one of ours."""

import dataclasses

import peft
import pytest
import transformers

from lorgnette import config
from lorgnette.synonyms import DIFFERENCES, OWN_NAMES, SYNONYMS, TABLE, TARGET_MODULES, VALUES

FORMER = {
    "evaluation_strategy", "warmup_ratio", "no_cuda", "per_gpu_train_batch_size", "overwrite_output_dir",
    "group_by_length", "save_safetensors", "logging_dir", "greater_is_better", "label_smoothing_factor",
}  # fmt: skip
"""Words of transformers' earlier versions."""
ELSEWHERE = {
    "model_name_or_path", "lr_scheduler", "num_epochs", "lr", "num_warmup_steps", "early_stopping_patience",
    "generation_max_length", "flash_attn", "nproc_per_node", "num_processes", "num_gpus", "pure_bf16", "torch_dtype",
    "use_mca", "optimizer", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "disable_shuffling",
}  # fmt: skip
"""Words of its scripts, of torchrun and accelerate, and of trainers built on it."""


def list_words(tool: str) -> set[str]:
    return {synonym.words[0] for synonym in TABLE if synonym.tools == (tool,)}


def test_words_of_transformers_are_in_its_training_arguments() -> None:
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    assert list_words("transformers") - known - FORMER - ELSEWHERE == set()
    assert len(list_words("transformers") & known) > 45


def test_words_of_peft_are_in_its_config() -> None:
    known = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert list_words("PEFT") <= known
    assert {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "modules_to_save"} <= known & set(
        SYNONYMS
    )


def test_settings_are_ours() -> None:
    settings = set(config.list_settings())
    assert {synonym.setting for synonym in TABLE} - {""} <= settings
    assert set(DIFFERENCES) | set(VALUES) | set(OWN_NAMES.values()) <= settings
    assert TARGET_MODULES == config.TARGET_MODULES


def test_a_word_has_one_meaning() -> None:
    words = [word for synonym in TABLE for word in synonym.words]
    assert len(words) == len(set(words))
    assert not set(words) & set(config.list_settings())  # a setting's name means the setting
    assert all(word == word.lower().replace("-", "_") for word in words)


@pytest.mark.parametrize("kind", ["needless", "refused"])
def test_what_sets_nothing_says_why(kind: str) -> None:
    synonyms = [synonym for synonym in TABLE if synonym.kind == kind]
    assert len(synonyms) > 50
    assert all(synonym.meaning for synonym in synonyms)
