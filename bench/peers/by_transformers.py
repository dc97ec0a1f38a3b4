"""transformers' Trainer with PEFT, the collator written by hand as its documentation shows.

The adapter in bf16 without autocast: the faster of the two ways.
"""

from typing import Any

import torch
from inputs import DEVICE, LANGUAGE, PROMPT, parse_inputs
from meter import Meter
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments

ANSWER = "<|im_start|>assistant\n"
run = parse_inputs()
processor = AutoProcessor.from_pretrained(run.model)
processor.tokenizer.padding_side = "right"
model = AutoModelForImageTextToText.from_pretrained(
    run.model, dtype=torch.bfloat16, attn_implementation="sdpa", device_map=DEVICE
)
model.config.use_cache = False
lora = LoraConfig(task_type="CAUSAL_LM", target_modules=LANGUAGE, **run.lora)
model = get_peft_model(model, lora, autocast_adapter_dtype=False)
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
start, *head = processor.tokenizer(ANSWER)["input_ids"]


def collate(samples: list[tuple[Any, str]]) -> dict[str, torch.Tensor]:
    images = [Image.open(image) for image, _ in samples]
    texts = [f"{prompt}{caption}<|im_end|>" for _, caption in samples]
    batch = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for row, tokens in zip(labels, batch["input_ids"], strict=True):
        row[: (tokens == start).nonzero()[-1].item() + 1 + len(head)] = -100  # up to where the answer begins
    return batch | {"labels": labels}


arguments = TrainingArguments(run.out, **(run.trainer | {"bf16": False}), remove_unused_columns=False)
Trainer(model, arguments, data_collator=collate, train_dataset=run.samples, callbacks=[Meter(run)]).train()
if torch.distributed.is_initialized():  # else the ranks may wait for each other when they end
    torch.distributed.destroy_process_group()
