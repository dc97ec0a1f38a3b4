"""LLaMA-Factory's `sft`, vision tower and merger frozen."""

import json
import os

from inputs import PROMPT, TARGETS, TRAINER, parse_inputs

os.environ |= {"DISABLE_VERSION_CHECK": "1"}

from llamafactory.train.tuner import run_exp
from meter import Meter

run = parse_inputs()
rows = [
    {
        "messages": [
            {"role": "user", "content": f"<image>{PROMPT}"},
            {"role": "assistant", "content": caption},
        ],
        "images": [str(image)],
    }
    for image, caption in run.samples
]
form = {
    "file_name": "rows.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
(run.out / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
(run.out / "dataset_info.json").write_text(json.dumps({"captions": form}), encoding="utf-8")
trainer = dict(TRAINER)
settings = {
    "stage": "sft",
    "do_train": True,
    "model_name_or_path": str(run.model),
    "template": "qwen2_vl",
    "dataset": "captions",
    "dataset_dir": str(run.out),
    "cutoff_len": 1024,
    "image_max_pixels": 78400,
    "overwrite_cache": True,
    "preprocessing_num_workers": trainer["dataloader_num_workers"],
    "finetuning_type": "lora",
    "lora_rank": run.lora["r"],
    "lora_alpha": run.lora["lora_alpha"],
    "lora_dropout": run.dropout,
    "lora_target": ",".join(TARGETS),
    "freeze_vision_tower": True,
    "freeze_multi_modal_projector": True,
    "flash_attn": "sdpa",
    "enable_liger_kernel": trainer.pop("use_liger_kernel"),
    "disable_gradient_checkpointing": not trainer.pop("gradient_checkpointing"),
    "remove_unused_columns": False,
    "output_dir": str(run.out),
}
run_exp(settings | trainer, callbacks=[Meter(run)])
