"""The LoRA adapter as PEFT's own modules, for the reference engine.

A saved adapter whose names do not all match is an error here, where PEFT only warns.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorgnette.config import LoraSettings
from lorgnette.errors import LorgnetteError
from lorgnette.lora.peft_files import CONFIG_FILE, HINT, SavedAdapter, check_names
from lorgnette.models.qwen2_vl.family import Family

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_adapter(model: "PreTrainedModel", family: Family, lora: LoraSettings, seed: int) -> "PeftModel":
    """A fresh adapter: A drawn from `seed`, B zero, so that the model answers as before. Its weights are fp32
    whatever the model's dtype (PEFT's default), and the only ones that are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        target_modules=family.build_target_pattern(lora.target_modules, lora.parts),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def load_adapter(model: "PreTrainedModel", folder: Path, *, is_trainable: bool = False) -> "PeftModel":
    """The saved adapter on its base model. Raises LorgnetteError where files are missing or broken, or names do not
    match one for one."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    saved = SavedAdapter.load(folder).state
    try:
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = not is_trainable
        config.base_model_name_or_path = None  # whether this is its base is for the contract to say, not for PEFT
        loaded = get_peft_model(model, config)
        check_names(saved.keys(), get_adapter_state(loaded).keys(), folder)
        set_peft_model_state_dict(loaded, saved)
    except RuntimeError as error:  # "Error(s) in loading state_dict for …:", then a line for every tensor
        lines = str(error).splitlines()
        fault = " ".join(line.strip() for line in lines[1:3] or lines)
        raise LorgnetteError(f"adapter does not fit the model: {fault}", where=str(folder), hint=HINT) from None
    except (ValueError, TypeError, KeyError, re.error) as error:
        raise LorgnetteError(f"{CONFIG_FILE} does not fit: {error!r}", where=str(folder), hint=HINT) from None
    return loaded.eval()


def get_adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapter's own parameters by the name they have in its file, in the model's order."""
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if ".lora_" in name}


def copy_adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """`adapter_state` as it is now, on the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in get_adapter_state(model).items()}
