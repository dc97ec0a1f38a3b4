"""Values of other trainers become ours, and what needs arithmetic is computed."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lorgnette.synonyms import SYNONYMS, TARGET_MODULES
from lorgnette.synonyms.values import NoCounterpartError, Translation, format_value, is_empty, parse_value

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=4,
)


def translate(**values: Any) -> dict[str, Any]:
    return dict(SYNONYMS[next(iter(values))].translate(values).settings)


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8}, {"train.batch_size": 16}),
        ({"per_device_train_batch_size": 4}, {"train.batch_size": 4}),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "nproc_per_node": 8},
         {"train.batch_size": 64}),
        ({"max_pixels": 78400}, {"image_size": None, "image_tokens": (4, 100)}),
        ({"max_pixels": 262144, "min_pixels": 3136}, {"image_size": None, "image_tokens": (4, 334)}),
        ({"min_pixels": 3137}, {"image_size": None, "image_tokens": (5, 1280)}),
        ({"warmup_ratio": 0.1}, {"train.warmup_steps": 0.1}),
        ({"warmup_ratio": 0}, {"train.warmup_steps": 0}),
        ({"warmup_ratio": 0.0}, {"train.warmup_steps": 0}),
        ({"num_train_epochs": 3.0}, {"train.epochs": 3}),
        ({"max_steps": -1}, {"train.max_steps": None}),
        ({"max_steps": 60}, {"train.max_steps": 60}),
        ({"max_grad_norm": 0}, {"train.max_grad_norm": math.inf}),
        ({"lora_alpha": 32.0}, {"lora.alpha": 32}),
        ({"target_modules": "all-linear"}, {"lora.target_modules": TARGET_MODULES}),
        ({"target_modules": ["q_proj", "v_proj"]}, {"lora.target_modules": ("q_proj", "v_proj")}),
        ({"target_modules": "q_proj,v_proj"}, {"lora.target_modules": ("q_proj", "v_proj")}),
        ({"freeze_vit": False}, {"lora.parts": ("language", "vision")}),
        ({"freeze_vit": True, "freeze_aligner": False}, {"lora.parts": ("language", "merger")}),
        ({"freeze_vit": False, "freeze_aligner": False, "freeze_llm": True}, {"lora.parts": ("merger", "vision")}),
        ({"finetune_vision_layers": True, "finetune_language_layers": True}, {"lora.parts": ("language", "vision")}),
        ({"finetune_vision_layers": False}, {"lora.parts": ("language",)}),
        ({"finetune_attention_modules": False, "finetune_mlp_modules": True},
         {"lora.target_modules": TARGET_MODULES[4:]}),
        ({"bf16": True}, {"dtype": "bfloat16"}),
        ({"bf16": False, "fp16": False}, {"dtype": "float32"}),
        ({"bf16": False, "pure_bf16": True}, {"dtype": "bfloat16"}),
        ({"fp16": False}, {}),
        ({"fp16": True}, {"dtype": "float16"}),
        ({"fp16": True, "bf16": False}, {"dtype": "float16"}),
        ({"save_strategy": "epoch"}, {"train.save_steps": None}),
        ({"save_strategy": "steps", "save_steps": 50}, {"train.save_steps": 50}),
        ({"save_strategy": "no", "save_steps": 50}, {}),
        ({"eval_strategy": "epoch", "eval_steps": 50}, {"train.eval_steps": None}),
        ({"eval_strategy": "no"}, {}),
        ({"val_size": 20}, {"data.holdout": 20}),
        ({"val_size": 0.1}, {"data.holdout": "auto"}),
        ({"val_size": 0.0}, {"data.holdout": 0}),
        ({"use_cpu": True}, {"device": "cpu"}),
        ({"use_cpu": False}, {}),
        ({"truncation_strategy": "delete"}, {"data.on_bad_row": "skip"}),
        ({"do_train": True}, {}),
        ({"optim": "adamw_torch_fused"}, {}),
        ({"load_in_4bit": False}, {"quantization": None}),
        ({"load_in_4bit": True}, {"quantization": "nf4"}),
        ({"quantization_bit": 4}, {"quantization": "nf4"}),
        ({"quant_bits": 0}, {"quantization": None}),
        ({"qlora": True}, {"quantization": "nf4"}),
        ({"bits": "4"}, {"quantization": "nf4"}),
        ({"deepspeed": ""}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_values_become_ours(values: dict[str, Any], settings: dict[str, Any]) -> None:
    assert translate(**values) == settings


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"gradient_accumulation_steps": 8}, "give per_device_train_batch_size too"),
        ({"per_device_train_batch_size": 0.5}, "no whole number"),
        ({"per_device_train_batch_size": math.inf}, "no whole number"),
        ({"cutoff_len": 2048}, "no example is ever cut.*write max_length=N"),
        ({"max_seq_length": 1024}, "no example is ever cut"),
        ({"optim": "adamw_8bit"}, "AdamW is the only optimizer"),
        ({"optim": "paged_adamw_8bit"}, "AdamW is the only optimizer"),
        ({"adam_beta2": 0.95}, "it is 0.999"),
        ({"deepspeed": "ds_z3_config.json"}, "gpus=4"),
        ({"fsdp": True}, "fully_shard"),
        ({"nproc_per_node": 2}, "gpus=2 of the command"),
        ({"load_in_8bit": True}, "not in 8; write quantization=nf4"),
        ({"quantization_bit": 8}, "not in 8; write quantization=nf4"),
        ({"load_in_4bit": "yes"}, "it is neither true nor false"),
        ({"quant_method": "hqq"}, "NF4 in bitsandbytes' format"),
        ({"bnb_4bit_quant_type": "fp4"}, "quantization=nf4 is NF4"),
        ({"double_quantization": False}, "with double quantization"),
        ({"fp16": True, "bf16": True}, "one of bf16 and fp16"),
        ({"packing": True}, "how many examples a step has"),
        ({"neftune_noise_alpha": 5}, "plain cross-entropy"),
        ({"use_dora": True}, "plain LoRA"),
        ({"finetuning_type": "full"}, "LoRA is what is trained"),
        ({"stage": "dpo"}, "supervised"),
        ({"template": "llama3"}, "the model's own"),
        ({"logging_steps": 0.1}, "share of all steps"),
        ({"save_strategy": "steps", "save_steps": 0.5}, "share of all steps"),
        ({"num_train_epochs": 0.5}, "write train.max_steps"),
        ({"warmup_ratio": 2}, "no share of the steps"),
        ({"val_size": 0.2}, "share of the rows.*data.holdout"),
        ({"dataset": "alpaca_en_demo"}, "no such file"),
        ({"dataset": "AI-ModelScope/LaTeX_OCR#20000"}, "data.max_rows=N"),
        ({"target_modules": "q_proj,c_attn"}, "c_attn: the layers of the language model are q_proj"),
        ({"freeze_llm": True}, "nothing is left to train"),
        ({"freeze_vit": "perhaps"}, "neither true nor false"),
        ({"finetune_attention_modules": False, "finetune_mlp_modules": False}, "no layers are left"),
        ({"eval_strategy": "sometimes"}, "write steps, epoch"),
        ({"truncation_strategy": "left"}, "no example is ever cut"),
        ({"resume_from_checkpoint": "out/checkpoint-9"}, "--resume RUN"),
        ({"train_on_responses_only": False}, "answers alone have a loss"),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_with_a_reason(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoCounterpartError, match=reason):
        translate(**values)


@example(word="val_dataset", value=10**600)  # a file name that no system takes
@given(word=st.sampled_from(sorted(SYNONYMS)), value=ANYTHING)
def test_any_value_is_translated_or_refused(word: str, value: Any) -> None:
    synonym = SYNONYMS[word]
    if is_empty(value):
        return
    try:
        translation = synonym.translate({synonym.words[0]: value})
    except NoCounterpartError as error:
        translation = Translation((), error.hint and error.reason)
        assert translation.note
    assert synonym.kind == "accepted" or not translation.settings


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("None", None), ("null", None), ("none", "none"), ("3", 3), ("1e-4", 1e-4),
     ("3.0", 3.0), ("all", "all"), (["a"], ["a"]), (0.5, 0.5)],
)  # fmt: skip
def test_words_of_a_command_line_are_values(text: Any, value: Any) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), (("a", "b"), "a,b"), (0.1, "0.1"), (16, "16")]
)
def test_values_are_printed_as_they_are_typed(value: Any, text: str) -> None:
    assert format_value(value) == text
