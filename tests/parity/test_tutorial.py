"""The tutorial's own computation, written out in plain transformers + peft: its processor calls, masking, end token,
left padding and accumulation. Our training takes the same 20 steps from the tutorial's files."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from plain import ImageOnlyProcessor, LossRecorder, OrderedTrainer
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration, TrainingArguments
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings, TrainSettings
from lorgnette.training.sampler import BatchSampler, select_examples
from lorgnette.training.trainer import Trainer
from lorgnette.types import Example

NUM_STEPS, SEED = 20, 5
SIZE = (112, 112)  # a sixth of the tutorial's 280×280 pixels, for the same computation
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, image_files: list[Path]) -> Path:
    """The tutorial's data step: a CSV becomes data_vl.json and its two parts."""
    folder = tmp_path_factory.mktemp("tutorial")
    words = ["A man riding a wave.", "two dogs on a couch", "Snow", "a plate of rice and beans", "a red bus ", "猫"]
    with (folder / "coco-2024-dataset.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        rows.writerows([str(image_files[i % 6]), f"{words[i % 6]}{i // 6}"] for i in range(36))
    data.prepare(folder / "coco-2024-dataset.csv", folder, prompt="COCO Yes:", holdout=4, split="tail")
    return folder


def process(row: dict[str, Any], processor: Any, tokenizer: Any) -> dict[str, Any]:
    """The tutorial's process_func."""
    conversation = row["conversations"]
    path = conversation[0]["value"].split("<|vision_start|>")[1].split("<|vision_end|>")[0]
    image = PIL.Image.open(path).convert("RGB").resize(SIZE)
    content = [{"type": "image"}, {"type": "text", "text": "COCO Yes:"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], padding=True, return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    answer = tokenizer(conversation[1]["value"], add_special_tokens=False)["input_ids"]
    ids = prompt + answer + [tokenizer.pad_token_id]
    return {
        "input_ids": ids,
        "labels": [-100] * len(prompt) + answer + [tokenizer.pad_token_id],
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
        "mm_token_type_ids": inputs["mm_token_type_ids"][0].tolist() + [0] * (len(ids) - len(prompt)),
    }


def collate(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """DataCollatorForSeq2Seq under a tokenizer that pads on the left, as Qwen2-VL's does."""
    length = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> torch.Tensor:
        return torch.tensor([[value] * (length - len(row[name])) + row[name] for row in rows])

    return {
        "input_ids": padded("input_ids", pad),
        "labels": padded("labels", -100),
        "mm_token_type_ids": padded("mm_token_type_ids", 0),
        "attention_mask": torch.tensor([[0] * (length - n) + [1] * n for n in (len(r["input_ids"]) for r in rows)]),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "image_grid_thw": torch.cat([row["image_grid_thw"] for row in rows]),
    }


@pytest.fixture(scope="module")
def theirs(tiny: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """LossRecorder of the tutorial's training, step by step."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    template = json.loads((tiny / "chat_template.json").read_text())["chat_template"]
    processor = ImageOnlyProcessor(Qwen2VLImageProcessorPil(), tokenizer, chat_template=template)
    raw = json.loads((prepared / "data_vl_train.json").read_text(encoding="utf-8"))
    rows = [process(row, processor, tokenizer) for row in raw]
    model = Qwen2VLForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32)
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM, target_modules=PROJECTIONS, inference_mode=False, r=64, lora_alpha=16,
        lora_dropout=0.0, bias="none",
    )  # fmt: skip
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("output")), per_device_train_batch_size=4, report_to=[],
        gradient_accumulation_steps=4, logging_steps=1, num_train_epochs=1, save_strategy="no", learning_rate=1e-4,
        use_cpu=True, disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    order = [i for step in range(NUM_STEPS) for i in select_examples(step, len(rows), 16, SEED)]
    trainer = OrderedTrainer(
        model=get_peft_model(model, lora), args=arguments, train_dataset=[rows[i] for i in order],
        data_collator=lambda group: collate(group, tokenizer.pad_token_id),
    )  # fmt: skip
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def train_ours(
    make_pair: Callable[..., Any], prepared: Path, processor: ProcessorSettings, num_steps: int = NUM_STEPS
) -> list[float]:
    pair = make_pair(LoraSettings(rank=64, alpha=16, dropout=0.0), processor)
    for name, parameter in pair.model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()  # as in a new adapter
    rows = [row for row in data.read(prepared / "data_vl_train.json") if isinstance(row, Example)]
    encoded = [pair.processor.encode(row) for row in rows]
    pair.features.prepare(grid for e in encoded for grid in e.grids)
    recorder = LossRecorder(num_steps)
    settings = TrainSettings(learning_rate=1e-4, epochs=20, max_steps=NUM_STEPS, max_tokens_per_microbatch=600)
    Trainer(pair.engine, BatchSampler(encoded, settings, SEED, group_by_image=False), [], settings).train(recorder)
    return recorder.losses


def test_twenty_steps_of_the_tutorial(make_pair: Callable[..., Any], prepared: Path, theirs: list[float]) -> None:
    exact = ProcessorSettings(image_size=SIZE, eos_token="<|endoftext|>")
    assert train_ours(make_pair, prepared, exact) == pytest.approx(theirs, abs=1e-4)
    assert theirs[0] - theirs[-1] > 1e-3  # something was learned


def test_the_comparison_can_fail(make_pair: Callable[..., Any], prepared: Path, theirs: list[float]) -> None:
    """Negative control: with the chat template's end token, our default, the losses differ."""
    losses = train_ours(make_pair, prepared, ProcessorSettings(image_size=SIZE), num_steps=2)
    assert all(abs(a - b) > 1e-3 for a, b in zip(losses, theirs[:2], strict=True))
