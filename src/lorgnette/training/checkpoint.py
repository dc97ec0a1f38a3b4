"""Checkpoints: the adapter, the optimizer's state and the random state after a step, whole or not at all.

checkpoints/step-000100/   adapter_model.safetensors  adapter_config.json  lorgnette.json  state.pt
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder

STATE_FILE = "state.pt"
SAVE_TOTAL_LIMIT = 2
"""Checkpoints that are kept: the newest may be broken by a failing disk, as its remedy says."""


def save_checkpoint(checkpoints: Path, step: int, write_adapter: Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Write the checkpoint of `step` finished steps. state: with `random_state()` as "random"."""
    path = checkpoints / f"step-{step:06d}"
    with atomic_folder(path) as beside:
        write_adapter(beside)
        with open(beside / STATE_FILE, "wb") as file:
            _save_state(state, file)
    return path


def find_latest_checkpoint(checkpoints: Path) -> tuple[int, Path] | None:
    """The newest whole checkpoint and its step; None where there is none yet."""
    return max(_list_complete(checkpoints), default=None)


def rotate_checkpoints(checkpoints: Path, *, best_step: int) -> None:
    """Remove all whole checkpoints but the newest `KEPT` and the one of step `best`, should there be one: optimizer
    states are twice the adapter's size, and a long run would fill the disk with them."""
    for step, path in sorted(_list_complete(checkpoints))[:-SAVE_TOTAL_LIMIT]:
        if step != best_step:
            shutil.rmtree(path)


def _list_complete(checkpoints: Path) -> list[tuple[int, Path]]:
    whole = (path for path in checkpoints.glob("step-*") if (path / STATE_FILE).is_file())
    named = ((path.name.removeprefix("step-"), path) for path in whole)
    return [(int(step), path) for step, path in named if step.isdecimal()]


def load_checkpoint(checkpoint: Path, device: torch.device) -> dict[str, Any]:
    """The state that was saved; the random state is put back too, so that dropout goes on where it stopped."""
    try:
        state: dict[str, Any] = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)
        random = state.pop("random")
    except (OSError, RuntimeError, ValueError, EOFError, TypeError, LookupError, UnpicklingError) as error:
        raise LorgnetteError(
            f"checkpoint cannot be read: {f'{error}'.partition('. ')[0] or 'it is empty'}",
            where=str(checkpoint),
            hint="remove it, and resume from the one before",
        ) from None
    torch.set_rng_state(random["cpu"])
    if device.type == "cuda" and random["cuda"] is not None:
        torch.cuda.set_rng_state(random["cuda"], device)
    return state


def _save_state(state: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(state, file)
    except RuntimeError as error:  # the file's own error ("No space left on device") is behind it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def get_rng_state() -> dict[str, torch.Tensor | None]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}
