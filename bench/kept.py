"""Figures that outlive a bench which is cut off: a file written anew after every measurement, a budget of seconds."""

import time
from pathlib import Path
from typing import Any

import torch

import lorgnette
from lorgnette.io.atomic import write_json
from lorgnette.report.manifest import build_manifest


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


class Kept:
    """A results file: `found`, and what it was made with. It is whole at any moment.

    budget: seconds from now on for everything; what no longer fits is left out, and named under "left_out".
    """

    def __init__(self, path: Path, command: list[str], device: str | None, budget: float) -> None:
        self.found: dict[str, Any] = {}
        self._path, self._end = path, time.monotonic() + budget
        made: dict[str, Any] = build_manifest(seed=0, command=command, device=device)
        made["versions"]["lorgnette"] = lorgnette.__version__  # it may run from a checkout, which has no metadata
        self._made = made

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def fits(self, seconds: float, what: str) -> bool:
        """Whether what takes about `seconds` can still be begun."""
        if self.left >= seconds:
            return True
        print(f"left out, {max(0.0, self.left):.0f} s are left: {what}", flush=True)
        self.keep(left_out=[*self.found.get("left_out", ()), what])
        return False

    def keep(self, **figures: Any) -> None:
        self.found |= figures
        write_json(self._path, self.found | {"made_with": self._made})
