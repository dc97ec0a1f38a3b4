"""The LoRA adapter: PEFT's own modules and PEFT's own two files.

A saved adapter loads with plain `PeftModel.from_pretrained`; one whose names do not all match is an error here, where
PEFT only warns.
"""

import re
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lorgnette.config import Lora
from lorgnette.errors import LorgnetteError
from lorgnette.families import Family
from lorgnette.model.contract import Contract

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_REMEDY = "give a whole adapter, and the base model it was trained on"


def attach(model: "PreTrainedModel", family: Family, lora: Lora, seed: int) -> "PeftModel":
    """A fresh adapter: A drawn from `seed`, B zero, so that the model answers as before. Its weights are fp32
    whatever the model's dtype (PEFT's default), and the only ones that are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=family.target_pattern(lora.targets, lora.towers),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def write(model: "PeftModel", folder: Path, contract: Contract) -> None:
    """PEFT's two files and `lorgnette.json` into a folder that is there. Raises OSError where the disk is full."""
    configs: dict[str, Any] = model.peft_config
    for config in configs.values():
        config.base_model_name_or_path = contract.model
    # Embeddings are never trained; asked to find out by itself, PEFT would call the hub for the base's config.
    try:
        model.save_pretrained(folder, save_embedding_layers=False)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    contract.write(folder)


def load(model: "PreTrainedModel", folder: Path, *, trainable: bool = False) -> "PeftModel":
    """The saved adapter on its base model. Raises LorgnetteError where files are missing or broken, or names do not
    match one for one."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise LorgnetteError(
                f"no adapter here: {name} is missing", where=str(folder), remedy="name a run's `adapter` folder"
            )
    try:
        saved = {_todays_name(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not trainable
        config.base_model_name_or_path = None  # whether this is its base is for the contract to say, not for PEFT
        loaded = get_peft_model(model, config)
        _demand_names(saved.keys(), {_saved_name(name) for name in adapter_state(loaded)}, folder)
        set_peft_model_state_dict(loaded, saved)
    except SafetensorError as error:
        raise LorgnetteError(f"adapter cannot be read: {error}", where=str(folder / WEIGHTS), remedy=_REMEDY) from None
    except RuntimeError as error:  # "Error(s) in loading state_dict for …:", then a line for every tensor
        lines = str(error).splitlines()
        fault = " ".join(line.strip() for line in lines[1:3] or lines)
        raise LorgnetteError(f"adapter does not fit the model: {fault}", where=str(folder), remedy=_REMEDY) from None
    except (ValueError, TypeError, KeyError, re.error) as error:
        raise LorgnetteError(f"{CONFIG} does not fit: {error!r}", where=str(folder), remedy=_REMEDY) from None
    return loaded.eval()


def adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapter's own parameters by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if ".lora_" in name}


def _demand_names(saved: Set[str], wanted: Set[str], folder: Path) -> None:
    """PEFT would only warn, and answer with an adapter that is half there or not there at all."""
    odd = sorted(saved ^ wanted)
    if odd:
        raise LorgnetteError(
            f"{len(saved & wanted)} of {len(wanted)} adapter tensors match the model; these do not: "
            f"{', '.join(odd[:4])}{', …' if len(odd) > 4 else ''}",
            where=str(folder),
            remedy=_REMEDY,
        )


def _saved_name(name: str) -> str:
    return name.replace(".default.", ".")


def _todays_name(name: str) -> str:
    """Until transformers 4.52 the decoder's layers stood at `model.layers` and the tower at `visual`."""
    name = re.sub(r"^base_model\.model\.model\.layers\.", "base_model.model.model.language_model.layers.", name)
    return re.sub(r"^base_model\.model\.visual\.", "base_model.model.model.visual.", name)
