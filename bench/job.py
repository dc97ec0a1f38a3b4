"""Make the benchmark job: a Qwen2-VL with the true shapes of 2B and random weights, and captioned images.

    python bench/job.py OUT --images 500 [--tokenizer FOLDER] [--tiny]

OUT/model is a checkpoint in the hub's layout (flat config.json, model.safetensors, vocab.json, merges.txt, …);
OUT/captions.csv lists OUT/images/*.jpg, 640×480. The tokenizer is the built-in model's, or that of a folder with a real
Qwen2-VL's files. Weights and images do not change the speed; the shapes are the real ones. With --tiny the model has
two layers of width 64: it only shows that a benchmark runs.
"""

import argparse
import csv
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from machine import DEVICE
from safetensors.torch import save_file

from lorgnette.models.registry import parse_configs

BUILT_IN = Path(__file__).parents[1] / "src" / "lorgnette" / "demo" / "model"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json", "generation_config.json")
TEXT_2B: dict[str, Any] = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "max_position_embeddings": 32768, "max_window_layers": 28, "vocab_size": 151936,
    "sliding_window": 32768, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
VISION_2B = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 1536}
TEXT_TINY = TEXT_2B | {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
}  # fmt: skip
VISION_TINY = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64}
SUBJECTS = ["a man", "two women", "a black dog", "a group of people", "a red bus", "an old train", "a cat", "a child"]
VERBS = ["standing next to", "riding on top of", "walking past", "looking at", "holding", "parked in front of"]
OBJECTS = ["a wooden table", "a tall building", "the ocean", "a green field", "a slice of pizza", "a busy street"]


def make_model(folder: Path, tokenizer: Path, *, tiny: bool = False) -> None:
    folder.mkdir(parents=True)
    for name in TOKENIZER:
        shutil.copyfile(tokenizer / name, folder / name)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {token["content"]: int(number) for number, token in tokens.items()}
    config = json.loads((BUILT_IN / "config.json").read_text())
    config |= TEXT_TINY if tiny else TEXT_2B
    config |= {
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"], "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }  # fmt: skip
    config["vision_config"] |= VISION_TINY if tiny else VISION_2B
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    processor = json.loads((BUILT_IN / "preprocessor_config.json").read_text()) | {"max_pixels": 12845056}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    torch.manual_seed(0)
    text, vision = parse_configs(config)
    weights = {
        format_hub_name(name): init_weight(name, shape)
        for name, shape in (text.list_weight_shapes() | vision.list_weight_shapes()).items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def init_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Initialize as transformers does: matrices normal, norms one, biases zero."""
    weight = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    return weight.normal_(0, 0.02) if len(shape) > 1 else weight.fill_(name.endswith("weight"))


def format_hub_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def make_images(out: Path, count: int) -> None:
    (out / "images").mkdir()
    rng = random.Random(0)
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        for i in range(count):
            caption = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}."
            rows.writerow([f"images/{i:06}.jpg", caption.capitalize()])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda i: make_image(out / "images" / f"{i:06}.jpg", i), range(count)))


def make_image(path: Path, seed: int) -> None:
    """Write soft blobs with a photograph's grain: about 100 kB of JPEG."""
    rng = np.random.default_rng(seed)
    blobs = PIL.Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((640, 480))
    pixels = np.asarray(blobs, np.int16) + rng.integers(-12, 12, (480, 640, 3), dtype=np.int16)
    PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--tokenizer", type=Path, default=BUILT_IN)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make_model(arguments.out / "model", arguments.tokenizer, tiny=arguments.tiny)
    make_images(arguments.out, arguments.images)
