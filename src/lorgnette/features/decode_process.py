"""A process that decodes images, and threads' access to it: Python's lock lets threads of one process decode only about
half as many images a second as a vision tower takes."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8

from lorgnette.data.images import decode_budget
from lorgnette.errors import LorgnetteError
from lorgnette.io.module_process import start_module
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import ImageGrid

_WORKER = "lorgnette.features.decode_worker"
_PIPE_BYTES = 2**20
"""As much as any user may have: an image of 590×590 pixels goes through at once."""


class DecodeProcessError(LorgnetteError):
    """A process that decodes does not start, or has ended by itself, for instance out of memory. It says nothing about
    the image."""


class DecodeProcess:
    """A process that decodes one image at a time. It ends with `close`, or when this process ends in any way."""

    def __init__(self, image_processor: ImageProcessor) -> None:
        """Raises DecodeProcessError if the system starts no process."""
        try:
            self._process, self._requests, self._answers = start_module(_WORKER)
        except OSError as error:
            message = f"cannot start a process that decodes images: {error.strerror or error}"
            hint = "raise the limit on processes (ulimit -u), or end other programs"
            raise DecodeProcessError(message, where=sys.executable, hint=hint) from error
        _enlarge_pipe(self._answers)
        with suppress(BrokenPipeError):  # `decode` then says so, with the image
            self._send(asdict(image_processor))

    def decode(self, grid: ImageGrid, *, has_key: bool) -> tuple[bytes | None, UInt8[np.ndarray, "H W 3"]]:
        """(`read_key` if has_key, else None; the resized pixels). Blocks without Python's lock.

        Raises LorgnetteError for an image that cannot be decoded, DecodeProcessError if the process has ended.
        """
        try:
            path = os.fspath(grid.image.path)
            size = {"t": grid.t, "h": grid.h, "w": grid.w, "merge": grid.merge}
            self._send({"image": path, **size, "has_key": has_key})
            answer = json.loads(self._answers.readline())
            if "wait" in answer:
                width, height = answer["wait"]
                with decode_budget.reserve((width, height)):
                    self._send({})
                    return self._receive(json.loads(self._answers.readline()))
            return self._receive(answer)
        except (OSError, EOFError, json.JSONDecodeError) as error:
            message = f"a process that decodes images ended with status {self._process.wait()}"
            hint = "it decoded this image; if memory is short, free some; then start or resume the run"
            raise DecodeProcessError(message, where=str(grid.image.path), hint=hint) from error

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        with suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        self._process.wait()

    def _send(self, value: dict[str, Any]) -> None:
        self._requests.write(json.dumps(value).encode() + b"\n")
        self._requests.flush()

    def _receive(self, answer: dict[str, Any]) -> tuple[bytes | None, UInt8[np.ndarray, "H W 3"]]:
        if "error" in answer:
            message, where, hint = answer["error"]
            raise LorgnetteError(message, where=where, hint=hint)
        pixels = np.empty(answer["shape"], np.uint8)
        view, done = pixels.data.cast("B"), 0
        while done < len(view):
            count = self._answers.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise EOFError
            done += count
        return answer["key"] and bytes.fromhex(answer["key"]), pixels


def _enlarge_pipe(file: IO[bytes]) -> None:
    """Let it hold a whole image, so that neither side wakes the other for a part of one. Linux only."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(file.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
