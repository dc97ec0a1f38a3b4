"""Unsloth's FastVisionModel under TRL's SFTTrainer, its own kernels and compiled modules in place of Liger's."""

import os

os.environ |= {"UNSLOTH_DISABLE_STATISTICS": "1"}

import unsloth  # noqa: F401, I001 - asks to be imported before what it changes
import torch
from datasets import Dataset
from inputs import PROMPT, TRAINER, parse_inputs
from meter import Meter
from PIL import Image
from trl import SFTConfig, SFTTrainer
from unsloth import FastVisionModel
from unsloth.trainer import UnslothVisionDataCollator

run = parse_inputs()
model, processor = FastVisionModel.from_pretrained(
    str(run.model),
    load_in_4bit=False,
    dtype=torch.bfloat16,
    max_seq_length=1024,
    use_gradient_checkpointing=False,
    local_files_only=True,
)
model = FastVisionModel.get_peft_model(
    model,
    finetune_vision_layers=False,
    finetune_language_layers=True,
    finetune_attention_modules=True,
    finetune_mlp_modules=True,
    use_gradient_checkpointing=False,
    random_state=0,
    **run.lora,
)
FastVisionModel.for_training(model, use_gradient_checkpointing=False)


def build_messages(rows: dict[str, list[str]]) -> dict[str, list[object]]:
    return {
        "messages": [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": PROMPT}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": caption}]},
            ]
            for image, caption in zip(rows["image"], rows["caption"], strict=True)
        ]
    }


rows = [{"image": str(image), "caption": caption} for image, caption in run.samples]
SFTTrainer(
    model=model,
    args=SFTConfig(
        str(run.out),
        **(TRAINER | {"use_liger_kernel": False}),
        remove_unused_columns=False,
        dataset_text_field="",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=1024,
    ),
    train_dataset=Dataset.from_list(rows).with_transform(build_messages),
    processing_class=processor,
    data_collator=UnslothVisionDataCollator(
        model,
        processor,
        max_seq_length=1024,
        resize=(280, 280),
        train_on_responses_only=True,
        instruction_part="<|im_start|>user\n",
        response_part="<|im_start|>assistant\n",
    ),
    callbacks=[Meter(run)],
).train()
