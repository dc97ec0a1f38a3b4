"""Make the benchmark job: a model with the true shapes and random weights, and captioned images.

    python bench/job.py OUT --images 500 [--model Qwen3-VL-4B] [--tokenizer FOLDER] [--tiny]

OUT/model is a checkpoint in the hub's layout (config.json, safetensors files of at most 5 GB, vocab.json, merges.txt,
…); OUT/captions.csv lists OUT/images/*.jpg, 640×480. --model is Qwen2-VL-2B if it is not given. The tokenizer and its
chat template are the built-in model's, or those of a folder with a real Qwen2-VL's files. Weights and images do not
change the speed; the shapes are the real ones. With --tiny the model has two layers of width 64: it only shows that a
benchmark runs.
"""

import argparse
import copy
import csv
import json
import math
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from machine import DEVICE

from lorgnette.models.registry import FAMILIES, HfConfig, parse_configs

BUILT_IN = Path(__file__).parents[1] / "src" / "lorgnette" / "demo" / "model"
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json", "generation_config.json")
PROCESSING: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor", "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136,
    "max_pixels": 12845056,
}  # fmt: skip
STATISTICS = {
    14: {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
    16: {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
}
"""Of pixels, by the side of a patch."""
CONTROL_TOKENS = {
    "bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>", "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>", "vision_token_id": "<|vision_pad|>", "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}  # fmt: skip
MAX_FILE_BYTES = 5_000_000_000
MODELS = {
    size.names[0].removeprefix("Qwen/").removesuffix("-Instruct"): size.config
    for family in FAMILIES.values() for size in family.sizes
}  # fmt: skip
"""What config.json says about sizes, by the name of the model."""
SUBJECTS = ["a man", "two women", "a black dog", "a group of people", "a red bus", "an old train", "a cat", "a child"]
VERBS = ["standing next to", "riding on top of", "walking past", "looking at", "holding", "parked in front of"]
OBJECTS = ["a wooden table", "a tall building", "the ocean", "a green field", "a slice of pizza", "a busy street"]


def make_model(
    folder: Path, tokenizer: Path, name: str = "Qwen2-VL-2B", *, tiny: bool = False, has_weights: bool = True
) -> None:
    folder.mkdir(parents=True)
    for file in TOKENIZER:
        shutil.copyfile(tokenizer / file, folder / file)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    ids = {token["content"]: int(number) for number, token in tokens.items()}
    config = {
        **(shrink(MODELS[name], max(ids.values()) + 2) if tiny else MODELS[name]),
        "architectures": [FAMILIES[MODELS[name]["model_type"]].class_name], "torch_dtype": "bfloat16",
        **{key: ids[token] for key, token in CONTROL_TOKENS.items()},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    side = config["vision_config"]["patch_size"]
    processor = PROCESSING | {"patch_size": side} | STATISTICS[side]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2))
    if "text_config" in config:  # Qwen3-VL's videos have a class of their own; else transformers takes Qwen2-VL's
        video = {"video_processor_type": "Qwen3VLVideoProcessor", "patch_size": side} | STATISTICS[side]
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2))
    if has_weights:
        write_weights(folder, config)


def shrink(config: HfConfig, vocabulary: int) -> dict[str, Any]:
    """The same family with two small layers, on which a program shows that it runs."""
    small = copy.deepcopy(dict(config))
    text, vision = small.get("text_config", small), small["vision_config"]
    text |= {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": vocabulary,
    }  # fmt: skip
    text["rope_scaling"] |= {"mrope_section": [2, 3, 3]}
    if "head_dim" in text:
        text["head_dim"] = 16
    vision |= {"depth": 2, "num_heads": 2}
    if "embed_dim" in vision:
        vision |= {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": 64}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64}
    blocks = {"fullatt_block_indexes": [1], "deepstack_visual_indexes": [0]}
    return small | {"vision_config": vision | {name: value for name, value in blocks.items() if name in vision}}


def write_weights(folder: Path, config: HfConfig, *, zeros: bool = False) -> None:
    """Write random weights under the hub's names, several files at a time. zeros: files that take no space."""
    text, vision = parse_configs(config)
    shapes = text.list_weight_shapes() | vision.list_weight_shapes()
    if "text_config" not in config:
        shapes = {format_flat_name(name): shape for name, shape in shapes.items()}
    groups: list[dict[str, tuple[int, ...]]] = []
    size = MAX_FILE_BYTES
    for name, shape in shapes.items():
        if (size := size + 2 * math.prod(shape)) > MAX_FILE_BYTES:
            groups.append({})
            size = 2 * math.prod(shape)
        groups[-1][name] = shape
    names = [f"model-{n + 1:05}-of-{len(groups):05}.safetensors" for n in range(len(groups))]
    if len(groups) == 1:
        names = ["model.safetensors"]
    else:
        weight_map = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: write_file(folder / names[n], groups[n], n, zeros=zeros), range(len(groups))))


def write_file(path: Path, shapes: dict[str, tuple[int, ...]], seed: int, *, zeros: bool) -> None:
    """A safetensors file, weight after weight, so that it is never in memory as a whole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    generator = torch.Generator(DEVICE).manual_seed(seed)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        if zeros:
            file.truncate(8 + len(content) + end)
            return
        for name, shape in shapes.items():
            file.write(memoryview(init_weight(name, shape, generator).cpu().view(torch.uint8).numpy()))


def init_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Initialize as transformers does: matrices normal, norms one, biases zero."""
    weight = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    return weight.normal_(0, 0.02, generator=generator) if len(shape) > 1 else weight.fill_(name.endswith("weight"))


def format_flat_name(name: str) -> str:
    """A weight's name on the hub in the families whose config.json is flat."""
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
    parser.add_argument("--model", choices=MODELS, default="Qwen2-VL-2B")
    parser.add_argument("--tokenizer", type=Path, default=BUILT_IN)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    make_model(arguments.out / "model", arguments.tokenizer, arguments.model, tiny=arguments.tiny)
    make_images(arguments.out, arguments.images)
