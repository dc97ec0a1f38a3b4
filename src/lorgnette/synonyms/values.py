"""Values of other trainers → ours: renamed, computed from several, or refused with a reason."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorgnette.io.parse import shorten
from lorgnette.io.paths import suggest_path

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_ATTENTION, _MLP = TARGET_MODULES[:4], TARGET_MODULES[4:]
_PIXELS_PER_TOKEN = 28 * 28
"""Of Qwen2-VL and Qwen2.5-VL, whose words these are; which model is trained is not known here."""
_MIN_TOKENS, _MAX_TOKENS = 4, 1280
EIGHT_BITS = "frozen weights are in 4 bits (NF4) or as they are, not in 8"
WRITE_NF4 = "write quantization=nf4, or quantization=null"


class NoCounterpartError(Exception):
    """A word or a value of another trainer for which there is no setting: (reason, what to do)."""

    def __init__(self, reason: str, hint: str) -> None:
        self.reason, self.hint = reason, hint
        super().__init__(f"{reason}; {hint}")


@dataclass(frozen=True, slots=True)
class Translation:
    """What words of other trainers set.

    settings: (setting, value) pairs; none if nothing is needed. note: what differs, or why nothing is needed; "" for a
    value that asks nothing.
    """

    settings: tuple[tuple[str, Any], ...]
    note: str = ""


Values = Mapping[str, Any]
"""The words of one group that are set, in canonical spelling, with their values."""


def parse_value(value: Any) -> Any:
    """A word on the command line as YAML has it: true, 3, 0.1; Python's True and None too."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    constants = {"true": True, "false": False, "null": None, "none": None} if text != "none" else {}
    if text.lower() in constants:
        return constants[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return value


def is_empty(value: Any) -> bool:
    """Whether a value asks nothing: null, or an empty list, mapping or text."""
    return value is None or (isinstance(value, list | tuple | dict | str) and not value)


def format_value(value: Any) -> str:
    """A value as it is typed: `null`, `true`, `a,b`."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def read_whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:  # % gives nan for inf and nan
        raise NoCounterpartError("it is no whole number", "write one")
    return int(value)


def read_steps(value: Any) -> int:
    if isinstance(value, float) and 0 < value < 1:
        raise NoCounterpartError("it is a share of all steps", "write a number of steps")
    return read_whole(value)


def read_warmup_ratio(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise NoCounterpartError("it is no share of the steps", "write a number from 0 to 1")
    return value or 0


def read_epochs(value: Any) -> Any:
    if isinstance(value, float) and not value.is_integer():
        raise NoCounterpartError("it ends within an epoch", "write train.max_steps=N, or a whole number of epochs")
    return value if isinstance(value, str) else read_whole(value)


def read_max_steps(value: Any) -> Any:
    return None if value in (-1, 0) else read_whole(value)


def _read_names(value: Any) -> tuple[str, ...]:
    names = value.strip("[]").split(",") if isinstance(value, str) else value
    return tuple(str(name).strip() for name in (names if isinstance(names, list | tuple) else [names]))


def _read_flags(values: Values) -> dict[str, bool]:
    for word, value in values.items():
        if not isinstance(value, bool):
            raise NoCounterpartError(f"{word} is neither true nor false", "write true or false")
    return dict(values)


def read_grad_norm(value: Any) -> Any:
    return math.inf if value == 0 else value


def read_alpha(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_holdout(value: Any) -> Any:
    if value == 0.1:
        return "auto"
    if isinstance(value, float) and 0 < value < 1:
        hint = "write a number of rows, such as data.holdout=50, or data.holdout=auto"
        raise NoCounterpartError("it is a share of the rows", hint)
    return read_whole(value)


def read_modules(value: Any) -> tuple[str, ...]:
    names = _read_names(value)
    if set(names) & {"all", "all-linear"}:
        return TARGET_MODULES
    if unknown := [name for name in names if name not in TARGET_MODULES]:
        raise NoCounterpartError(
            f"{shorten(', '.join(unknown))}: the layers of the language model are {', '.join(TARGET_MODULES)}",
            "name some of them, or all; lora.parts adds the vision tower and the merger",
        )
    return names


def read_sources(value: Any) -> str:
    """Data sets by path, as LLaMA-Factory and ms-swift also name them."""
    names = _read_names(value)
    for name in names:
        if "#" in name and not os.path.exists(name):
            hint = "write data.max_rows=N for the first rows, or use `lorgnette prepare --sample N`"
            raise NoCounterpartError("#N draws N rows at random", hint)
        if not os.path.exists(name) and not name.startswith(("hf:", "modelscope:", "coco:")):
            hint = "name a file, data=captions.csv, or a hub: data=hf:OWNER/NAME, data=modelscope:OWNER/NAME"
            reason = "there is no such file, and other trainers' lists of data sets are unknown"
            raise NoCounterpartError(reason, suggest_path(Path(name), hint))
    return ",".join(names)


def read_truncation(value: Any) -> str:
    if value not in ("delete", "raise"):
        raise NoCounterpartError("no example is ever cut", "write data.on_bad_row=skip, or a larger max_length")
    return "skip" if value == "delete" else "error"


# What needs arithmetic.


def combine_batch(values: Values) -> Translation:
    """Examples per optimizer step: per-device batch × accumulation × GPUs."""
    counts = {word: read_whole(value) for word, value in values.items()}
    if "per_device_train_batch_size" not in counts:
        message = "a step's batch is per_device_train_batch_size × gradient_accumulation_steps × GPUs"
        hint = "give per_device_train_batch_size too, or train.batch_size alone"
        if gpus := counts.get("nproc_per_node"):
            hint += f"; gpus={gpus} of the command trains on {gpus}"
        raise NoCounterpartError(message, hint)
    per_device, gpus = counts["per_device_train_batch_size"], counts.get("nproc_per_node", 1)
    accumulated = counts.get("gradient_accumulation_steps", 1)
    note = f"{per_device} per device × {accumulated} accumulated × {gpus} {'GPU' if gpus == 1 else 'GPUs'}"
    if "gradient_accumulation_steps" not in counts:
        note += "; without gradient_accumulation_steps ms-swift accumulates to 16"
    return Translation((("train.batch_size", per_device * accumulated * gpus),), note)


def combine_pixels(values: Values) -> Translation:
    low, high = values.get("min_pixels"), values.get("max_pixels")
    tokens = (
        _MIN_TOKENS if low is None else -(-read_whole(low) // _PIXELS_PER_TOKEN),
        _MAX_TOKENS if high is None else read_whole(high) // _PIXELS_PER_TOKEN,
    )
    settings = (("image_size", None), ("image_tokens", tokens))
    note = f"{_PIXELS_PER_TOKEN} pixels per token, 1024 in models since Qwen3-VL; an image keeps its shape"
    return Translation(settings, note)


def combine_parts(values: Values) -> Translation:
    flags = _read_flags(values)
    is_trained = {
        "language": flags.get("finetune_language_layers", not flags.get("freeze_llm", False)),
        "merger": not flags.get("freeze_aligner", True),
        "vision": flags.get("finetune_vision_layers", not flags.get("freeze_vit", True)),
    }
    parts = tuple(part for part, is_on in is_trained.items() if is_on)
    if not parts:
        raise NoCounterpartError("nothing is left to train", "let one part be trained")
    return Translation((("lora.parts", parts),))


def combine_modules(values: Values) -> Translation:
    flags = _read_flags(values)
    names = _ATTENTION * flags.get("finetune_attention_modules", True) + _MLP * flags.get("finetune_mlp_modules", True)
    if not names:
        raise NoCounterpartError("no layers are left to train", "let attention or MLP be trained")
    return Translation((("lora.target_modules", names),), "layers of the language model")


def read_bits(value: Any) -> str | None:
    """Bits of a frozen weight; 0 for none."""
    if str(value) not in ("0", "4"):
        raise NoCounterpartError(EIGHT_BITS, WRITE_NF4)
    return "nf4" if str(value) == "4" else None


def read_four_bits(value: Any) -> str | None:
    """Whether the frozen weights are in 4 bits."""
    if not isinstance(value, bool):
        raise NoCounterpartError("it is neither true nor false", "write true or false")
    return "nf4" if value else None


def combine_precision(values: Values) -> Translation:
    flags = _read_flags(values)
    is_float16 = flags.pop("fp16", False)
    if is_float16 and any(flags.values()):
        raise NoCounterpartError(
            "a training has one of bf16 and fp16", "write dtype=auto, dtype=bfloat16 or dtype=float16"
        )
    if is_float16:
        return Translation((("dtype", "float16"),), "with loss scaling; the LoRA matrices stay float32")
    if not flags:
        return Translation((), "dtype=auto takes float16 only on a GPU without bfloat16")
    if any(flags.values()):
        return Translation((("dtype", "bfloat16"),), "the LoRA matrices stay float32")
    return Translation((("dtype", "float32"),))


def combine_saving(values: Values) -> Translation:
    notes = {
        "no": "checkpoints are written all the same, so that a stopped run can go on",
        "best": "the adapter of the best step is always kept, in best/",
    }
    return _combine_strategy("save", values, notes)


def combine_evaluation(values: Values) -> Translation:
    note = "held-out examples are evaluated all the same; data.holdout=0 holds none out"
    return _combine_strategy("eval", values, {"no": note})


def _combine_strategy(verb: str, values: Values, notes: Mapping[str, str]) -> Translation:
    """`steps` with a number, `epoch`, or a strategy that needs nothing: → its note."""
    strategy, steps = values.get(f"{verb}_strategy", "steps"), values.get(f"{verb}_steps")
    setting = f"train.{verb}_steps"
    if strategy == "epoch":
        return Translation(((setting, None),), "each epoch")
    if strategy == "steps":
        is_default = Translation((), f"{setting} says how often")
        return is_default if steps is None else Translation(((setting, read_steps(steps)),))
    if str(strategy) not in notes:
        raise NoCounterpartError("it is unknown", f"write steps, epoch or {setting}=N")
    return Translation((), notes[str(strategy)])
