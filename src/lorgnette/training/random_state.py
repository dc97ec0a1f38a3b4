"""torch's random state, from which PEFT draws its dropout masks: every rank has its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lorgnette.distributed import World

RngState = dict[str, torch.Tensor | None]


def get_rng_state() -> RngState:
    """torch's random state on the CPU and, if available, on CUDA and MPS."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_rng_state(states: Sequence[Any], device: torch.device, world: World, seed: tuple[int, int]) -> None:
    """Restore the rank's own. states: of every rank when they were saved; seed: for `seed_rank` if they were others."""
    if len(states) != world.size:
        seed_rank(*seed, world)
        return
    state = states[world.rank]
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and state.get("mps") is not None:
        torch.mps.set_rng_state(state["mps"])


def seed_rank(seed: int, step: int, world: World) -> None:
    """Let the rank draw other numbers than the others, from `step` on."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, world.rank]).generate_state(1, np.uint64)[0]))
