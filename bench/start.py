"""What every trainer of a comparison starts with: lorgnette's first adapter, and the order of its examples.

Then their losses after the job differ by their arithmetic and by dropout's masks, and by nothing else.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from lorgnette.config import LoraSettings
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.training.sampler import select_examples

SEED = 0
"""lorgnette's own default."""
RANK, BATCH_SIZE, EPOCHS = 64, 16, 2


def order_examples(num_examples: int) -> list[list[int]]:
    """For each epoch the indices of its examples."""
    steps = -(-num_examples // BATCH_SIZE)
    return [
        [
            index
            for step in range(steps)
            for index in select_examples(epoch * steps + step, num_examples, BATCH_SIZE, SEED)
        ]
        for epoch in range(EPOCHS)
    ]


def write_start(model: Path, num_examples: int, folder: Path) -> None:
    """Write adapter.safetensors, under PEFT's names, and order.json, for peers/job_start.py. B is zero in every new
    adapter, so only A is there."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = AdapterShape.from_settings(BaseCheckpoint.from_folder(model).load_text_config(), LoraSettings(rank=RANK))
    adapter = FlatLoraParams(shape, torch.device("cpu"))
    adapter.copy_from(FlatLoraParams.init_values(shape, SEED))
    first = {name: view.contiguous() for name, view in adapter.named_params.items() if ".lora_A." in name}
    save_file(first, folder / "adapter.safetensors")
    (folder / "order.json").write_text(json.dumps(order_examples(num_examples)), encoding="utf-8")
