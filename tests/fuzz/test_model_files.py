"""Models and adapters with hostile or broken files: each is used, or refused in a line, in bounded time and memory."""

import io
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import RUNS_ALL, VALUES, change_json, damage_bytes, limits, replace_file
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny_models import write_nf4_checkpoint

import lorgnette
from lorgnette.engine.loading import load_decoder
from lorgnette.errors import LorgnetteError
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.networks import find_tower_class
from lorgnette.models.registry import FAMILIES

NUM_CASES = 200 if RUNS_ALL else 8
MODEL_FILES = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "chat_template.json", "vocab.json")
ADAPTER_FILES = ("adapter_config.json", "lorgnette.json", "reference_sample.json")
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
HOSTILE_CONFIGS = [
    {"num_hidden_layers": 10**9}, {"hidden_size": 10**9}, {"vocab_size": 2**22}, {"rms_norm_eps": -1.0},
    {"hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 512}, {"max_position_embeddings": 10**30},
    {"rope_scaling": {"type": "mrope", "mrope_section": [-2, 3, 3]}}, {"rope_theta": 0.0}, {"text_config": [1]},
    {"vision_config": {"depth": 10**8}}, {"vision_config": {"num_hidden_layers": 10**8}}, {"vision_config": None},
    {"vision_config": {"patch_size": 10**9}}, {"vision_config": {"embed_dim": 2.5}}, {"num_attention_heads": True},
    {"_attn_implementation": "somebody/kernel"}, {"text_config": {"_attn_implementation": "somebody/kernel"}},
    {"auto_map": {"AutoModel": "x.py"}}, {"quantization_config": {"quant_method": "bitsandbytes"}},
    {"quantization_config": NF4 | {"llm_int8_skip_modules": [1]}},
    {"quantization_config": NF4 | {"llm_int8_skip_modules": 5}},
    {"quantization_config": None, "text_config": {"quantization_config": NF4}}, {"model_type": "\ud800"},
]  # fmt: skip


@pytest.fixture
def use(
    tmp_path: Path, tiny: Path, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str | None]:
    """use(model=…, adapter=…) → the message of the refusal, or None if it answered."""
    monkeypatch.chdir(tmp_path)

    def answer(model: Path = tiny, adapter: Path | None = None) -> str | None:
        console, refusal = Console(file=io.StringIO()), None
        try:
            with limits():
                lorgnette.predict(image_files[2], adapter=adapter, model=str(model), max_new_tokens=1, console=console)
        except LorgnetteError as error:
            refusal = str(error)
        if refusal is not None:
            assert 0 < len(refusal) < 2000
            assert "\n" not in refusal
        return refusal

    return answer


def damage_model(rng: random.Random, folder: Path) -> None:
    """Damage one file of a model's or adapter's folder."""
    name = rng.choice([name for name in (*MODEL_FILES, *ADAPTER_FILES) if (folder / name).is_file()])
    weights = next(folder.glob("*.safetensors"))
    match rng.choice(["value", "value", "value", "bytes", "file", "header", "weights"]):
        case "value":
            (folder / name).write_text(change_json(rng, json.loads((folder / name).read_text())))
        case "bytes":
            (folder / name).write_bytes(damage_bytes(rng, (folder / name).read_bytes()))
        case "file":
            replace_file(rng, rng.choice([folder / name, weights]))
        case "weights":
            weights.write_bytes(damage_bytes(rng, weights.read_bytes()))
        case "header":
            damage_header(rng, weights)


def damage_header(rng: random.Random, weights: Path) -> None:
    """Change one value of a safetensors file's header, or the header's length."""
    content = weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change_json(rng, json.loads(content[8 : 8 + length])).encode()
    size = rng.choice([len(header), len(header), len(header), *(2**63, 10**8 + 1, 0, len(header) + 5)])
    weights.write_bytes(struct.pack("<Q", size) + header + content[8 + length :])


@pytest.mark.parametrize("seed", range(0, NUM_CASES, 2))
def test_a_damaged_model(
    seed: int, use: Callable[..., str | None], tiny_family: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tiny_family(list(FAMILIES)[seed // 2 % len(FAMILIES)])
    damage_model(random.Random(seed), shutil.copytree(model, tmp_path / "model"))
    use(model=tmp_path / "model")


@pytest.mark.parametrize("seed", range(1, NUM_CASES, 2))
def test_a_damaged_adapter(seed: int, use: Callable[..., str | None], saved: Path, tmp_path: Path) -> None:
    damage_model(random.Random(seed), shutil.copytree(saved, tmp_path / "adapter"))
    use(adapter=tmp_path / "adapter")


@pytest.mark.parametrize("seed", range(0, NUM_CASES, 2))
def test_a_damaged_nf4_weight(seed: int, tiny: Path, tmp_path: Path) -> None:
    """Its state, a part of it, or the header; read by the fast engine, whose tower has NF4 too."""
    rng, folder = random.Random(seed), write_nf4_checkpoint(tmp_path / "model", tiny)
    path, kind = folder / "model.safetensors", rng.choice(["state", "part", "header"])
    tensors = load_file(path)
    if kind == "header":
        damage_header(rng, path)
    else:
        name = rng.choice([name for name in tensors if ("quant_state" if kind == "state" else ".weight.") in name])
        tensor = tensors.pop(name)
        if kind == "state":
            changed = change_json(rng, json.loads(bytes(tensor.tolist()))).encode()
            tensors[name] = torch.frombuffer(bytearray(changed), dtype=torch.uint8)
        elif (change := rng.choice([None, lambda part: part[1:], lambda part: part.float()])) is not None:
            tensors[name] = change(tensor).clone()
        save_file(tensors, path)
    refusal = ""
    try:
        with limits():
            checkpoint, cpu = BaseCheckpoint.from_folder(folder), torch.device("cpu")
            load_decoder(checkpoint, AdapterShape.empty(checkpoint.load_text_config()), cpu, torch.float32)
            find_tower_class(checkpoint.family.model_type).from_checkpoint(checkpoint, cpu, torch.float32)
    except LorgnetteError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert len(refusal) < 2000


@pytest.mark.parametrize("change", HOSTILE_CONFIGS if RUNS_ALL else HOSTILE_CONFIGS[::8], ids=str)
def test_a_hostile_config(
    change: dict[str, object], use: Callable[..., str | None], tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for name, value in change.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) and name in config else value
    (folder / "config.json").write_text(json.dumps(config))
    refusal = use(model=folder)
    if "auto_map" not in change:  # nobody reads it for these weights
        assert refusal is not None


def test_the_values_are_hostile() -> None:
    """A control: what the tests change is not what is there."""
    assert len(VALUES) > 25
    texts = {change_json(random.Random(seed), {"a": {"b": [1, 2]}, "c": "d"}) for seed in range(60)}
    assert len(texts) > 30
