"""Checkpoints: adapter, optimizer state and random state after a step, written atomically.

checkpoints/step-000100/   adapter_model.safetensors  adapter_config.json  lorgnette.json  state.pt
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder, remove_folder
from lorgnette.training.random_state import set_rng_state
from lorgnette.training.trainer import MAX_TOKENS, Trainer

STATE_FILE = "state.pt"
SAVE_TOTAL_LIMIT = 2
"""Checkpoints to keep, besides the best: a failing disk may break the newest."""
_STATE_ERRORS = (
    OSError, RuntimeError, ValueError, EOFError, TypeError, LookupError, AttributeError, ArithmeticError,
    UnpicklingError,
)  # fmt: skip
"""Of torch.load for a file that is not a state, and of whatever reads the state."""


def save_checkpoint(checkpoints: Path, step: int, write_adapter: Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Write the checkpoint after `step` steps. state: as `Trainer.gather_state` returns it."""
    path = checkpoints / f"step-{step:06d}"
    with atomic_folder(path) as folder:
        write_adapter(folder)
        with open(folder / STATE_FILE, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch hides the file's own error ("No space left on device") in the context
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
    return path


def find_latest_checkpoint(checkpoints: Path) -> tuple[int, Path] | None:
    """(step, folder) of the newest complete checkpoint, or None."""
    return max(_list_complete(checkpoints), default=None)


def rotate_checkpoints(checkpoints: Path, *, best_step: int) -> None:
    """Delete all checkpoints but the newest `SAVE_TOTAL_LIMIT` and the one of `best_step`.

    An optimizer state is twice the adapter's size, so a long run would fill the disk.
    """
    for step, path in sorted(_list_complete(checkpoints))[:-SAVE_TOTAL_LIMIT]:
        if step != best_step:
            remove_folder(path)


def restore_checkpoint(trainer: Trainer, checkpoint: Path, device: torch.device) -> None:
    """Load the saved state into the trainer. Raises LorgnetteError if it cannot be read or is not this run's."""
    with _explain_errors(checkpoint, "checkpoint does not fit this run"):
        trainer.load_state_dict(load_checkpoint(checkpoint, device, trainer.world, trainer.sampler.seed))


def read_max_tokens(checkpoint: Path) -> int | None:
    """The size of the micro-batches when it was saved; None if an older version saved it.

    Reads no tensors. Raises LorgnetteError if the file cannot be read.
    """
    with _explain_errors(checkpoint, "checkpoint cannot be read"):
        state = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True, mmap=True)
        value = state.get(MAX_TOKENS)
        return None if value is None else int(value)


def load_checkpoint(checkpoint: Path, device: torch.device, world: World = World(), seed: int = 0) -> dict[str, Any]:
    """The saved state without "random": torch's random state is restored, so that dropout continues its sequence.

    With another number of ranks each begins a new sequence from the seed. Raises LorgnetteError if the file cannot be
    read.
    """
    with _explain_errors(checkpoint, "checkpoint cannot be read"):
        state: dict[str, Any] = torch.load(checkpoint / STATE_FILE, map_location="cpu", weights_only=True)
        random = state.pop("random")
        states = random if isinstance(random, list) else [random]  # an older version saved that of its one process
        set_rng_state(states, device, world, (seed, state["step"]))
    return state


@contextmanager
def _explain_errors(checkpoint: Path, fact: str) -> Iterator[None]:
    try:
        yield
    except _STATE_ERRORS as error:
        reason = " ".join(f"{error}".split()).partition(". ")[0] or "it is empty"
        hint = "delete it; the run then resumes from the checkpoint before"
        raise LorgnetteError(f"{fact}: {reason}", where=str(checkpoint), hint=hint) from None


def _list_complete(checkpoints: Path) -> list[tuple[int, Path]]:
    complete = (path for path in checkpoints.glob("step-*") if (path / STATE_FILE).is_file())
    numbered = ((path.name.removeprefix("step-"), path) for path in complete)
    return [(int(step), path) for step, path in numbered if step.isdecimal()]
