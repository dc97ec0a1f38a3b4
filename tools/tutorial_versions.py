"""Compare a short training of the tutorial's script under its own versions with lorgnette's.

    python tools/tutorial_versions.py prepare OUT         # with lorgnette: rows, order, first adapter
    python tools/tutorial_versions.py plain OUT           # with transformers 4.46.2 and peft 0.13.2, without lorgnette
    python tools/tutorial_versions.py plain OUT --correct positions,loss
    python tools/tutorial_versions.py ours OUT            # with lorgnette: trains, and prints the comparison

The built-in model learns 48 drawn images (--rows) in 2 epochs, with the tutorial's settings but without dropout:
fp32, CPU, the same rows in the same order, the same first adapter. `--correct` gives the old version what it leaves
out: the three-axis positions of Qwen2-VL, and the loss of a step as the mean over its labels.
docs/tutorial.md has the figures.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MODEL = Path(__file__).parents[1] / "src" / "lorgnette" / "demo" / "model"
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_EPOCHS, MICRO_BATCH, ACCUMULATION = 2, 4, 4
SIDE = 112  # pixels, as in the training of the built-in model
FIRST, ROWS = "first.safetensors", "rows.json"


def normalize_name(name: str) -> str:
    """A factor's name without what changed between versions."""
    return name.replace(".default.", ".").replace("model.language_model.", "model.")


# With lorgnette.


def prepare(out: Path, num_rows: int) -> None:
    import random

    from lorgnette.demo.captions import write_caption
    from lorgnette.demo.scenes import draw_scene, sample_scene

    out.mkdir(parents=True)
    rng, rows = random.Random(3), []
    for number in range(num_rows):
        scene = sample_scene(rng)
        draw_scene(scene).resize((SIDE, SIDE)).save(out / f"{number:02}.png")
        rows.append({"image": f"{number:02}.png", "caption": write_caption(scene)})
    (out / ROWS).write_text(json.dumps(rows))
    model, _ = build_ours()
    save_file(copy_factors(model), out / FIRST)


def build_ours() -> tuple[Any, Any]:
    from lorgnette.config import LoraSettings
    from lorgnette.engine.peft_engine import add_adapter, load_base_model
    from lorgnette.models.base_checkpoint import BaseCheckpoint

    checkpoint = BaseCheckpoint.from_folder(MODEL)
    base = load_base_model(checkpoint, torch.device("cpu"), torch.float32)
    return add_adapter(base, checkpoint.family, LoraSettings(rank=64, alpha=16, dropout=0.0), seed=0), base


def select_factors(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def copy_factors(model: Any) -> dict[str, Any]:
    return {normalize_name(name): p.detach().clone() for name, p in select_factors(model).items()}


def train_ours(out: Path) -> None:
    from lorgnette.config import ProcessorSettings, TrainSettings
    from lorgnette.engine.peft_engine import ReferenceEngine
    from lorgnette.features.image_features import Features, HfVisionTower
    from lorgnette.processing.packing import pack
    from lorgnette.processing.processor import Processor
    from lorgnette.training.lr_schedule import compute_learning_rate
    from lorgnette.training.optimizer import Optimizer
    from lorgnette.types import Example, Image, Turn

    model, base = build_ours()
    processor = Processor.from_folder(MODEL, ProcessorSettings(image_size=(SIDE, SIDE), eos_token="<|endoftext|>"))
    features = Features(HfVisionTower(base), processor.image_processor, is_live=False)
    encoded = []
    for number, row in enumerate(json.loads((out / ROWS).read_text())):
        question = Turn("user", (Image(out / row["image"]), "COCO Yes:"))
        answer = Turn("assistant", (row["caption"],))
        encoded.append(processor.encode(Example(str(number), (question, answer), out / ROWS, number)))
    features.prepare([grid for example in encoded for grid in example.grids])
    engine, settings = ReferenceEngine(model, features), TrainSettings(epochs=1, learning_rate=1e-4)
    optimizer, log = Optimizer(engine.parameters, settings), []
    batch_size = MICRO_BATCH * ACCUMULATION
    steps_per_epoch = math.ceil(len(encoded) / batch_size)
    total_steps = NUM_EPOCHS * steps_per_epoch
    for step in range(total_steps):
        start = step % steps_per_epoch * batch_size
        examples = encoded[start : start + batch_size]
        loss = engine.backward(pack(examples, sum(e.num_labels for e in examples)))
        loss, norm = optimizer.step(loss, compute_learning_rate(step, total_steps, settings)).tolist()
        log.append({"loss": loss, "grad_norm": norm})
    print_comparison(out, log, copy_factors(model))


def print_comparison(out: Path, log: list[dict[str, float]], ours: dict[str, Any]) -> None:
    first = load_file(out / FIRST)

    def measure_distance(a: dict[str, Any], b: dict[str, Any]) -> float:
        return float(torch.sqrt(sum((a[n].double() - b[n].double()).square().sum() for n in a)))

    learned = measure_distance(ours, first)
    print("ours", json.dumps(log))
    for file in sorted(out.glob("plain*.json")):
        theirs, steps = load_file(file.with_suffix(".safetensors")), json.loads(file.read_text())
        distance = measure_distance(theirs, ours) / learned
        print(f"{file.stem}: adapter off by {distance:.2g} of what was learned; {json.dumps(steps)}")


# With transformers and peft only, of any version.


def train_plain(out: Path, correct: list[str]) -> None:
    import peft
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    processor = transformers.Qwen2VLImageProcessor.from_pretrained(MODEL)
    template = json.loads((MODEL / "chat_template.json").read_text())["chat_template"]
    rows = [process(row, out, tokenizer, processor, template) for row in json.loads((out / ROWS).read_text())]
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(MODEL, torch_dtype=torch.float32)
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=PROJECTIONS, inference_mode=False, r=64, lora_alpha=16,
        lora_dropout=0.0, bias="none",
    )  # fmt: skip
    model = peft.get_peft_model(model, lora)
    first = load_file(out / FIRST)
    for name, parameter in select_factors(model).items():
        parameter.data.copy_(first[normalize_name(name)])

    class OrderedTrainer(transformers.Trainer):  # type: ignore[misc]
        """The Trainer over the rows in their order, which counts labels if the loss is to be corrected."""

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if "positions" in correct:
                base = model.get_base_model()
                inputs["position_ids"], _ = base.get_rope_index(
                    inputs["input_ids"], inputs["image_grid_thw"], None, inputs["attention_mask"]
                )
            if "loss" not in correct:
                return super().compute_loss(model, inputs, *args, **kwargs)
            labels = inputs.pop("labels")
            logits = model(**inputs).logits[:, :-1].float()
            total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
            return total / num_labels[self.state.global_step % len(num_labels)]

    size = MICRO_BATCH * ACCUMULATION
    num_labels = [
        sum(label != -100 for row in rows[i : i + size] for label in row["labels"]) for i in range(0, len(rows), size)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(out / "output"), per_device_train_batch_size=MICRO_BATCH, report_to=[], logging_steps=1,
        gradient_accumulation_steps=ACCUMULATION, num_train_epochs=NUM_EPOCHS, save_strategy="no",
        learning_rate=1e-4, use_cpu=True, disable_tqdm=True, remove_unused_columns=False, label_names=["labels"],
    )  # fmt: skip
    trainer = OrderedTrainer(
        model=model, args=arguments, train_dataset=rows,
        data_collator=lambda group: collate(group, tokenizer.pad_token_id),
    )  # fmt: skip
    trainer.train()
    stem = "-".join(["plain", transformers.__version__, *correct])
    save_file(
        {normalize_name(n): p.detach().clone() for n, p in select_factors(model).items()}, out / f"{stem}.safetensors"
    )
    log = [{k: line[k] for k in ("loss", "grad_norm")} for line in trainer.state.log_history if "loss" in line]
    (out / f"{stem}.json").write_text(json.dumps(log))


def process(row: dict[str, Any], out: Path, tokenizer: Any, processor: Any, template: str) -> dict[str, Any]:
    """The tutorial's process_func, without the processor class, which needs torchvision in some versions."""
    import PIL.Image

    image = PIL.Image.open(out / row["image"]).convert("RGB").resize((SIDE, SIDE))
    inputs = processor(images=[image], return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": "COCO Yes:"}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    num_tokens = int(inputs["image_grid_thw"].prod()) // 4
    prompt = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * num_tokens))["input_ids"]
    answer = tokenizer(row["caption"], add_special_tokens=False)["input_ids"]
    return {
        "input_ids": prompt + answer + [tokenizer.pad_token_id],
        "labels": [-100] * len(prompt) + answer + [tokenizer.pad_token_id],
        "pixel_values": inputs["pixel_values"],
        "image_grid_thw": inputs["image_grid_thw"],
    }


def collate(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """DataCollatorForSeq2Seq under a tokenizer that pads on the left, as Qwen2-VL's does."""
    length = max(len(row["input_ids"]) for row in rows)

    def join(name: str, value: int) -> torch.Tensor:
        return torch.tensor([[value] * (length - len(row[name])) + row[name] for row in rows])

    return {
        "input_ids": join("input_ids", pad),
        "labels": join("labels", -100),
        "attention_mask": torch.tensor(
            [[0] * (length - len(row["input_ids"])) + [1] * len(row["input_ids"]) for row in rows]
        ),
        "pixel_values": torch.cat([row["pixel_values"] for row in rows]),
        "image_grid_thw": torch.cat([row["image_grid_thw"] for row in rows]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["prepare", "plain", "ours"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=48, help="rows to prepare")
    parser.add_argument("--correct", default="", help="of positions and loss, joined by a comma")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "prepare":
        prepare(arguments.out, arguments.rows)
    elif arguments.command == "plain":
        train_plain(arguments.out, [word for word in arguments.correct.split(",") if word])
    else:
        train_ours(arguments.out)
