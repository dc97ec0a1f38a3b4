"""Checkpoints: the adapter, the optimizer's state and the random state after a step, whole or not at all.

checkpoints/step-000100/   adapter_model.safetensors  adapter_config.json  lorgnette.json  state.pt
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lorgnette.errors import LorgnetteError
from lorgnette.files import folder_whole

STATE = "state.pt"


def save(checkpoints: Path, step: int, write_adapter: Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` finished steps."""
    path = checkpoints / f"step-{step:06d}"
    with folder_whole(path) as beside:
        write_adapter(beside)
        torch.save({**state, "random": _random_state()}, beside / STATE)
    return path


def latest(checkpoints: Path) -> tuple[int, Path] | None:
    """The newest whole checkpoint and its step; None where there is none yet."""
    found = sorted(path for path in checkpoints.glob("step-*") if (path / STATE).is_file())
    return (int(found[-1].name.removeprefix("step-")), found[-1]) if found else None


def restore(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """The state that was saved; the random state is put back too, so that dropout goes on where it stopped."""
    try:
        state: dict[str, Any] = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise LorgnetteError(
            f"checkpoint cannot be read: {error}",
            where=str(checkpoint),
            remedy="remove it, and resume from the one before",
        ) from None
    random = state.pop("random")
    torch.set_rng_state(random["cpu"])
    if device.type == "cuda" and random["cuda"] is not None:
        torch.cuda.set_rng_state(random["cuda"], device)
    return state


def _random_state() -> dict[str, torch.Tensor | None]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}
