"""What has to be said before the first step: a model that cannot learn the data, settings that are seldom meant.

Needs no torch. `check`, `plan`, `train`, `evaluate` and `compare` use the same sentences.
"""

import re
import sys
from collections.abc import Iterable

from lorgnette.config import Settings
from lorgnette.planning.gpus import find_gpu, find_gpus

DRAWN_SCENES_ONLY = (
    "The built-in model (model=demo) knows drawn scenes only: it cannot learn to describe photographs; "
    "model=Qwen2-VL-2B-Instruct can, and others of `lorgnette model list`."
)
HIGH_LEARNING_RATE = 0.01
_THING = r"(?:small|big) \w+ \w+"
_DRAWN_SCENE = re.compile(rf"A {_THING} (?:to the left of|to the right of|above|below) a {_THING}\.")
"""A caption of the demo's own drawings (demo/captions.py)."""


def explain_built_in_model(model: str, references: Iterable[str | None]) -> str:
    """Why the built-in model cannot learn these answers; empty for other models, and for the demo's own drawings."""
    if model != "demo":
        return ""
    num_answers = num_drawn = 0
    for text in filter(None, references):
        num_answers += 1
        num_drawn += _DRAWN_SCENE.fullmatch(text.strip()) is not None
    return "" if 2 * num_drawn >= num_answers else DRAWN_SCENES_ONLY


def explain_slow_dtype(dtype: str) -> str:
    """Why this dtype is seldom meant on a CPU; empty for the others."""
    return f"{dtype} is slow on a CPU; leave dtype=auto" if dtype in ("bfloat16", "float16") else ""


def explain_single_shard(*, fully_shard: bool | str, num_ranks: int) -> str:
    """Why train.fully_shard=true does nothing in this training; empty where it does something, or is not set."""
    if fully_shard is not True or num_ranks > 1:
        return ""
    return "train.fully_shard=true does nothing on one GPU: layers are sharded over several, as with gpus=2"


def explain_missing_device(device: str) -> str:
    """That this machine seems not to have the device of the settings; empty if it has. Needs no torch."""
    if device == "cuda" and find_gpu() is None:
        return "device=cuda: nvidia-smi shows no GPU in this machine; without one the training would not start here"
    if device == "mps" and sys.platform != "darwin":
        return "device=mps: this machine is no Mac; the training would not start here"
    return ""


def explain_idle_gpus(device: str, num_used: int = 1) -> str:
    """That this machine has more GPUs than the training uses, or fewer; empty if neither. num_used: of `gpus=`."""
    num_gpus = len(find_gpus()) if device in ("auto", "cuda") else 0
    if num_used == 1 < num_gpus:
        return f"this machine has {num_gpus} GPUs: `train` uses one, and with gpus=all every one"
    if 0 < num_gpus < num_used:
        found = f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"
        return f"this machine has {found}: the training would not start here with gpus={num_used}"
    return ""


def list_start_warnings(settings: Settings, references: Iterable[str | None]) -> list[str]:
    """What makes this training fail, or far from what is usual. references: the answers of the data."""
    warnings, rate = [], settings.train.learning_rate
    if rate > HIGH_LEARNING_RATE:
        warnings.append(
            f"train.learning_rate={rate:g} is very high: the training will probably fail; usual are 1e-5 to 1e-3"
        )
    if note := explain_built_in_model(settings.model, references):
        warnings.append(note)
    return warnings
