"""TRL's SFTTrainer on prompts and completions with images."""

import torch
from datasets import Dataset, Image, List
from inputs import DEVICE, LANGUAGE, PROMPT, TRAINER, parse_inputs
from meter import Meter
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

run = parse_inputs()
model = AutoModelForImageTextToText.from_pretrained(
    run.model, dtype=torch.bfloat16, attn_implementation="sdpa", device_map=DEVICE
)
rows = [
    {
        "images": [str(image)],
        "prompt": [{"role": "user", "content": PROMPT}],
        "completion": [{"role": "assistant", "content": caption}],
    }
    for image, caption in run.samples
]
SFTTrainer(
    model,
    SFTConfig(str(run.out), **TRAINER, max_length=None, completion_only_loss=True),
    train_dataset=Dataset.from_list(rows).cast_column("images", List(Image())),
    processing_class=AutoProcessor.from_pretrained(run.model),
    peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules=LANGUAGE, **run.lora),
    callbacks=[Meter(run)],
).train()
