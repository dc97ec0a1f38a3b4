"""The program of a process that decodes images for DecodeProcess: reads requests from standard input until it ends.

    request   {"image": path, "t": …, "h": …, "w": …, "merge": …, "has_key": …}, one line of JSON
    answer    {"wait": [width, height]} if a large image needs the memory of others; a line then says that it may go on
              {"shape": [H, W, 3], "key": hex or null}, one line of JSON, then the bytes of the pixels
              {"error": [message, where, hint]}

The first line has the constants of the image processor. Imports neither torch nor anything that does.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from lorgnette.data import images
from lorgnette.errors import LorgnetteError
from lorgnette.features.cache_folder import read_key
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.types import Image, ImageGrid

MAX_OWN_PIXELS = 1 << 22
"""An image of more pixels asks first: all processes together decode no more than data.images.MAX_PIXELS."""


class SharedBudget:
    """Stands for `images.decode_budget`, which is in the process that asks."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers

    @contextmanager
    def reserve(self, size: tuple[int, int]) -> Iterator[None]:
        """Wait until an image of this size may be decoded. Its answer gives the pixels back."""
        if size[0] * size[1] > MAX_OWN_PIXELS:
            write_line(self._answers, {"wait": size})
            self._requests.readline()
        yield


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    images.decode_budget = SharedBudget(requests, answers)  # type: ignore[assignment]
    constants: dict[str, Any] = json.loads(requests.readline())
    tuples = {name: tuple(value) for name, value in constants.items() if isinstance(value, list)}
    processor = ImageProcessor(**{**constants, **tuples})
    for line in requests:
        request = json.loads(line)
        grid = ImageGrid(Image(Path(request["image"])), *(request[name] for name in ("t", "h", "w", "merge")))
        try:
            key = read_key(grid) if request["has_key"] else None
            pixels = images.load_resized(grid.image.path, partial(processor.resize_to, grid))
        except LorgnetteError as error:
            write_line(answers, {"error": [error.message, error.where, error.hint]})
        else:
            write_line(answers, {"shape": pixels.shape, "key": key and key.hex()})
            answers.write(pixels.data.cast("B"))
            answers.flush()


def write_line(file: IO[bytes], value: dict[str, Any]) -> None:
    """Send a line of JSON."""
    file.write(json.dumps(value).encode() + b"\n")
    file.flush()


def main() -> None:
    """Serve the process that started this one. Signals of a terminal are for that process: it ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with suppress(BrokenPipeError):  # that process has ended
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
