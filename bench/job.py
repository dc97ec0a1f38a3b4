"""Make the benchmark job: a Qwen2-VL at 2B's true shapes with random weights, and captioned pictures.

    python bench/job.py OUT --pictures 500 [--tokenizer FOLDER]

OUT/model is a checkpoint in the hub's own layout (flat config.json, model.safetensors, vocab.json, merges.txt, …);
OUT/captions.csv names OUT/pictures/*.jpg, 640×480. The tokenizer is the built-in model's unless a folder with a real
Qwen2-VL's files is given. Speed does not depend on what the weights or the pictures are; the shapes are the real ones.
"""

import argparse
import csv
import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save_file

from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig

BUILT_IN = Path(__file__).parents[1] / "src" / "lorgnette" / "demo" / "model"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json", "generation_config.json")
SUBJECTS = ["a man", "two women", "a black dog", "a group of people", "a red bus", "an old train", "a cat", "a child"]
VERBS = ["standing next to", "riding on top of", "walking past", "looking at", "holding", "parked in front of"]
OBJECTS = ["a wooden table", "a tall building", "the ocean", "a green field", "a slice of pizza", "a busy street"]


def make_model(folder: Path, tokenizer: Path) -> None:
    folder.mkdir(parents=True)
    for name in TOKENIZER:
        shutil.copyfile(tokenizer / name, folder / name)
    control = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {token["content"]: int(number) for number, token in control.items()}
    config = json.loads((BUILT_IN / "config.json").read_text())
    config |= {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "max_position_embeddings": 32768, "max_window_layers": 28, "vocab_size": 151936,
        "sliding_window": 32768, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"], "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
    }  # fmt: skip
    config["vision_config"] |= {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "hidden_size": 1536}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    images = json.loads((BUILT_IN / "preprocessor_config.json").read_text()) | {"max_pixels": 12845056}
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    weights = {
        hub_name(name): drawn(name, size, device)
        for name, size in (
            TextConfig.from_hf_config(config).list_weight_shapes()
            | VisionConfig.from_hf_config(config).list_weight_shapes()
        ).items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drawn(name: str, size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """As transformers draws them: matrices normal, norms one, biases zero."""
    made = torch.empty(size, dtype=torch.bfloat16, device=device)
    return made.normal_(0, 0.02) if len(size) > 1 else made.fill_(name.endswith("weight"))


def hub_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def make_pictures(out: Path, count: int) -> None:
    (out / "pictures").mkdir()
    words = random.Random(0)
    with (out / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_path", "caption"])
        for i in range(count):
            said = f"{words.choice(SUBJECTS)} {words.choice(VERBS)} {words.choice(OBJECTS)}."
            rows.writerow([f"pictures/{i:06}.jpg", said.capitalize()])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda i: make_picture(out / "pictures" / f"{i:06}.jpg", i), range(count)))


def make_picture(path: Path, seed: int) -> None:
    """Soft blobs with a photograph's grain: about 100 kB of JPEG."""
    draw = np.random.default_rng(seed)
    blobs = PIL.Image.fromarray(draw.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((640, 480))
    grain = np.asarray(blobs, np.int16) + draw.integers(-12, 12, (480, 640, 3), dtype=np.int16)
    PIL.Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=90)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--tokenizer", type=Path, default=BUILT_IN)
    given = parser.parse_args()
    make_model(given.out / "model", given.tokenizer)
    make_pictures(given.out, given.pictures)
