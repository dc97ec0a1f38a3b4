"""A results file that is complete after every measurement, and a time budget for all of them."""

import time
from pathlib import Path
from typing import Any

import lorgnette
from lorgnette.io.atomic import write_json
from lorgnette.report.manifest import build_manifest


class ResultsFile:
    """Figures in a JSON file, with how they were made.

    budget: seconds from now for everything. A measurement that no longer fits is skipped and listed in "left_out".
    """

    def __init__(self, path: Path, command: list[str], device: str | None, budget: float) -> None:
        self.figures: dict[str, Any] = {}
        self._path, self._end = path, time.monotonic() + budget
        self._origin: dict[str, Any] = build_manifest(seed=0, command=command, device=device)
        self._origin["versions"]["lorgnette"] = lorgnette.__version__  # a checkout has no package metadata

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def fits(self, seconds: float, name: str) -> bool:
        """Whether a measurement of about `seconds` still fits; if not, list it as left out."""
        if self.seconds_left >= seconds:
            return True
        print(f"left out, {max(0.0, self.seconds_left):.0f} s left: {name}", flush=True)
        self.update(left_out=[*self.figures.get("left_out", ()), name])
        return False

    def update(self, **figures: Any) -> None:
        """Add the figures and write the file."""
        self.figures |= figures
        write_json(self._path, self.figures | {"made_with": self._origin})
