"""Parity: continuing an adapter equals PEFT's: load it as trainable, with a new AdamW, on the same examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from lorgnette.commands.train import train
from lorgnette.config import LoraSettings, Settings
from lorgnette.lora.peft_files import WEIGHTS_FILE
from lorgnette.report.console import Terminal
from lorgnette.training.data_module import TrainingData
from lorgnette.training.sampler import select_examples
from lorgnette.types import IGNORE_INDEX

NUM_STEPS, RATE = 4, 1e-3
WORDS = (
    "device=cpu", "engine=reference", "lora.dropout=0", f"train.learning_rate={RATE}", "train.epochs=2",
    f"train.max_steps={NUM_STEPS}", "train.lr_scheduler_type=constant", "train.warmup_steps=0",
)  # fmt: skip


def continue_in_peft(adapter: Path, base: Path, settings: Settings, pair: Any) -> dict[str, Tensor]:
    """The adapter's tensors after the steps, by their names in its file."""
    examples = TrainingData.load(settings, Terminal()).examples
    model = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()  # without the old dropout
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    for step in range(NUM_STEPS):
        chosen = select_examples(step, len(examples), settings.train.batch_size, settings.seed)
        inputs = pair.build_padded_inputs([examples[i] for i in chosen])
        labels = inputs.pop("labels")
        has_label = labels[:, 1:] != IGNORE_INDEX
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits[:, :-1][has_label], labels[:, 1:][has_label])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.train.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return {name.replace(".default.", "."): p.detach() for name, p in model.named_parameters() if ".lora_" in name}


def measure_distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_continued_steps_equal_pefts(
    make_settings: Callable[..., Settings], make_pair: Callable[..., Any], tiny: Path, tmp_path: Path
) -> None:
    old = train(make_settings("train.learning_rate=1e-1", f"run={tmp_path / 'old'}", "seed=7", "device=cpu"))
    settings = make_settings(f"adapter={old.adapter}", f"run={tmp_path / 'new'}", *WORDS)
    ours = load_file(train(settings).adapter / WEIGHTS_FILE)
    pair = make_pair(LoraSettings(rank=2), settings.processor)
    theirs = continue_in_peft(old.adapter, tiny, settings, pair)
    assert measure_distance(ours, theirs) < 1e-5
    assert measure_distance(ours, load_file(old.adapter / WEIGHTS_FILE)) > 1e-3  # the steps changed it

    # Negative control: from a new adapter the same steps end elsewhere.
    new = load_file(train(make_settings(f"run={tmp_path / 'other'}", *WORDS)).adapter / WEIGHTS_FILE)
    assert measure_distance(ours, new) > 1e-2
