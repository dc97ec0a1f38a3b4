"""The manifest of a run: versions, machine, seed, hashes, command. It names no person and no host.

Versions are read from the metadata of the installed packages; none is imported.
"""

import hashlib
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_json

HASH_LENGTH = 16
"""Of the start of an image file's sha256, in hexadecimal digits."""
_NVIDIA_DRIVER = Path("/proc/driver/nvidia")
PACKAGES = ("lorgnette", "torch", "transformers", "peft", "numpy", "pillow", "tokenizers", "safetensors", "triton")


def build_manifest(
    *,
    seed: int,
    command: Sequence[str],
    device: str | None = None,
    hashes: Mapping[str, str] | None = None,
    image_hashes: Mapping[str, str] | None = None,
    num_training_images: int = 0,
    adapter: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """hashes: input (data files, weights) → sha256; image_hashes: image file → `hash_image`, of which the first
    num_training_images are trained on; adapter: what the run continues.

    The home folder is written `~`: people share manifests.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": hide_home(shlex.join([Path(command[0]).name, *command[1:]]) if command else ""),
        "seed": seed,
        "versions": _read_versions(),
        "machine": {
            "platform": platform.platform(),
            "cpu": _read_cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": read_memory_gib(),
            "device": device,
            "gpus": _read_gpu_models(),
        },
        "sha256": {hide_home(name): value for name, value in (hashes or {}).items()},
        "images": {hide_home(name): value for name, value in (image_hashes or {}).items()},
        "num_training_images": num_training_images,
        "adapter": adapter,
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run; empty if it was deleted or damaged since. A report is worth having without it."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, LorgnetteError):
        return {}
    return content if isinstance(content, dict) else {}


def format_date(text: object) -> str:
    """A date in ISO 8601 as `28 November 2026, 10:47 UTC`; "" for anything else."""
    try:
        date = datetime.fromisoformat(str(text))
    except ValueError:
        return ""
    return f"{date.day} {date:%B %Y, %H:%M} {date.tzname() or ''}".strip()


def describe_making() -> str:
    """When a page is made, and by which version."""
    return f"{format_date(datetime.now(UTC).isoformat())} by lorgnette {read_version('lorgnette') or ''}".rstrip()


def compute_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_image(path: Path) -> str:
    """The start of an image file's sha256."""
    return compute_sha256(path)[:HASH_LENGTH]


def _read_versions() -> dict[str, str | None]:
    return {"python": platform.python_version()} | {name: read_version(name) for name in PACKAGES}


@cache
def read_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read_cpu_model() -> str:
    """Linux has the model's name only in /proc/cpuinfo; elsewhere platform.processor() returns it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _read_gpu_models() -> list[str]:
    """The models of all NVIDIA GPUs, from the driver's files on Linux: torch is not imported yet."""
    models = []
    for path in sorted(_NVIDIA_DRIVER.glob("gpus/*/information")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return models


def read_memory_gib() -> float | None:
    """This machine's memory; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # not on Windows, and not on every Unix
        return None


def hide_home(text: str) -> str:
    """The text with `~` for the home folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text
