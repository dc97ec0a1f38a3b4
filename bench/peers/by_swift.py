"""ms-swift's `sft`, vision tower and merger frozen."""

import json
import os
from collections.abc import Iterator

from inputs import PROMPT, TRAINER, count_pixels, parse_inputs, read_config, read_model_type

os.environ |= {"MAX_PIXELS": str(count_pixels(run := parse_inputs())), "USE_HF": "1"}

from job_start import JobOrder, read_order
from meter import Meter
from swift import callbacks_map, sft_main
from swift.template.templates.qwen import Qwen2VLTemplate
from swift.trainers import mixin

model_type = read_model_type(run)  # also ms-swift's name of the model and of its template
# ms-swift has the released tokenizer's number in its code; with another tokenizer it would leave one token per image.
Qwen2VLTemplate.image_token_id = read_config(run)["image_token_id"]
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
data = run.out / "rows.jsonl"
data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
callbacks_map["meter"] = lambda args, trainer: Meter(run)


class JobBatches(mixin.BatchSamplerShard):
    """ms-swift's batches, in the order of the job: it draws its own order, without transformers' sampler."""

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)[self.rank :: self.world_size]
        yield from (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))


if run.start is not None:
    JobBatches.order = JobOrder(read_order(run.start))
    mixin.BatchSamplerShard = JobBatches
settings = TRAINER | {
    "model": run.model,
    "model_type": model_type,
    "template": model_type,
    "dataset": data,
    "split_dataset_ratio": 0,
    "dataset_shuffle": run.start is None,
    "load_from_cache_file": False,
    "max_length": 1024,
    "tuner_type": "lora",
    "torch_dtype": "bfloat16",
    "lora_rank": run.lora["r"],
    "lora_alpha": run.lora["lora_alpha"],
    "lora_dropout": run.dropout,
    "target_modules": "all-linear",
    "freeze_vit": True,
    "freeze_aligner": True,
    "vit_gradient_checkpointing": False,
    "attn_impl": "sdpa",
    "warmup_steps": 0,
    "check_model": False,
    "callbacks": "meter",
    "output_dir": run.out,
}
words = [
    (f"--{name}", json.dumps(value) if isinstance(value, bool | dict) else str(value))
    for name, value in settings.items()
]
sft_main([word for pair in words for word in pair])
