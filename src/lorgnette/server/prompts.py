"""Messages of a request → the prompt's tokens and its images' pixels, by the code of training.

    messages ─ uploads ─▶ record ─ data/formats/messages.py ─▶ Example ─ Processor.encode ─▶ Encoded, pixels

A few threads do the work, so that the event loop only moves bytes. They decode no more pixels at once than
`data.images.decode_budget` has.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from lorgnette.config import ProcessorSettings
from lorgnette.data import load_resized
from lorgnette.data.conversation import find_image_marker
from lorgnette.data.formats import messages as message_format
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.features.decode_pool import Pixels
from lorgnette.io.parse import shorten
from lorgnette.processing.image_processor import ImageProcessor
from lorgnette.processing.processor import OverlongError, Processor
from lorgnette.server.api_errors import ApiError
from lorgnette.server.chat_request import ContentPart, ImageUrl, Message
from lorgnette.server.models import ServedModel
from lorgnette.server.uploads import MAX_IMAGES, UploadStore, explain_upload
from lorgnette.types import Encoded, Example, ImageGrid

NUM_THREADS = min(max((os.cpu_count() or 1) // 4, 2), 4)
"""A photograph takes a thread some milliseconds. More threads would hold Python's lock against the device thread."""
MAX_PENDING, MAX_PENDING_CHARACTERS = 64, 2**28
"""Requests that wait for a thread, and the characters of their texts and images: they are in memory."""
MAX_CHARACTERS = 2**18
"""Of the texts of a request: far more than the tokens that an answer has room for."""
MAX_PIXEL_BYTES = 64 * 2**20
"""Of the images that are kept for the next request: the same image is often asked about with and without an adapter."""
_MAX_CACHED_IMAGES, _MAX_CACHED_CHARACTERS = 4096, 2**22
"""What the processors' caches may hold of requests before they are emptied."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

Prompt = tuple[Encoded, dict[ImageGrid, Pixels]]


class TooManyPromptsError(Exception):
    """As many requests wait for a thread as may wait."""


class PromptEncoder:
    """Encodes the messages of requests on its own threads."""

    def __init__(self, uploads: UploadStore) -> None:
        self._uploads = uploads
        self._pool = ThreadPoolExecutor(NUM_THREADS, "lorgnette prompts")
        self._pending: list[int] = []
        self._pixels = PixelLru(MAX_PIXEL_BYTES)
        self._numbers: dict[ProcessorSettings, int] = {}
        self._lock = Lock()
        self._cached: dict[Processor, tuple[int, int]] = {}
        """Images and characters that a processor has seen since its caches were emptied."""

    async def encode(self, model: ServedModel, messages: list[Message]) -> Prompt:
        """The prompt, and the pixels of its images. Raises ApiError for messages that the model cannot be asked, and
        TooManyPromptsError.

        messages: empty afterwards. They hold images as text, and the pool's queue keeps a request that is cancelled.
        """
        size = sum(len(part.text or "") + len(_get_url(part) or "") for each in messages for part in _list_parts(each))
        if self._pending and (len(self._pending) >= MAX_PENDING or sum(self._pending) + size > MAX_PENDING_CHARACTERS):
            raise TooManyPromptsError("too many requests and images wait already")
        number = self._numbers.setdefault(model.processor.settings, len(self._numbers))
        self._pending.append(size)
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, self._encode, model, number, messages)
        finally:
            self._pending.remove(size)
            messages.clear()

    def close(self) -> None:
        """End the threads, and delete the uploads."""
        self._pool.shutdown(cancel_futures=True)
        self._uploads.close()

    def _encode(self, model: ServedModel, number: int, messages: Sequence[Message]) -> Prompt:
        processor = model.processor
        with self._uploads.keep():
            record, places = self._build_record(messages, model.prompt, number)
            self._limit_caches(processor, len(places), _count_characters(messages))
            try:
                encoded = processor.encode(_read_example(record), add_generation_prompt=True)
                pixels = {grid: self._pixels.get(grid, processor.image_processor) for grid in encoded.grids}
                _check_sizes(pixels, processor.image_processor.patch_size)
            except OverlongError as error:
                raise ApiError(400, error.message, param="messages", code="context_length_exceeded") from None
            except LorgnetteError as error:
                if error.where in places:
                    raise explain_upload(error, places[error.where]) from None
                raise ApiError(400, error.message, param="messages") from None
        return encoded, pixels

    def _build_record(
        self, messages: Sequence[Message], prompt: str, number: int
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The record of data/formats/messages.py, and the key of the request for each image's path.

        Without any text of the user, the prompt is asked at the end.
        """
        _check_messages(messages)
        places: dict[str, str] = {}
        items: list[dict[str, Any]] = []
        for i, message in enumerate(messages):
            content: list[dict[str, str]] = []
            for j, part in enumerate(_list_parts(message)):
                if (url := _get_url(part)) is None:
                    content.append({"type": "text", "text": part.text or ""})
                    continue
                where = f"messages.{i}.content.{j}.image_url"
                path = str(self._uploads.add(url, where, number))
                places[path] = where
                content.append({"type": "image", "image": path})
            items.append({"role": _ROLES[message.role], "content": content})
        texts = (part.get("text", "") for item in items if item["role"] == "user" for part in item["content"])
        if not any(text.strip() for text in texts):
            items[-1]["content"] = [
                *(part for part in items[-1]["content"] if part["type"] == "image"),
                {"type": "text", "text": prompt},
            ]
        return {"messages": items}, places

    def _limit_caches(self, processor: Processor, num_images: int, num_characters: int) -> None:
        """Keep the processor's caches, which hold sizes of images and tokens of texts, from growing for ever."""
        with self._lock:
            seen = self._cached.get(processor, (0, 0))
            images, characters = seen[0] + num_images, seen[1] + num_characters
            if images > _MAX_CACHED_IMAGES or characters > _MAX_CACHED_CHARACTERS:
                processor.forget_requests()
                images = characters = 0
            self._cached[processor] = images, characters


class PixelLru:
    """Decoded images, for any thread; those used longest ago leave. Threads that want one image decode it once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[ImageGrid, Future[Pixels]] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()

    def get(self, grid: ImageGrid, image_processor: ImageProcessor) -> Pixels:
        """The resized pixels. Raises LorgnetteError if the image cannot be decoded."""
        with self._lock:
            future = self._images.get(grid)
            is_new = future is None
            if future is None:
                future = self._images[grid] = Future()
            self._images.move_to_end(grid)
        if is_new:
            try:
                pixels = load_resized(grid.image.path, image_processor.resize)
            except BaseException as error:
                with self._lock:
                    del self._images[grid]
                future.set_exception(error)
            else:
                with self._lock:
                    future.set_result(pixels)
                    self._num_bytes += pixels.nbytes
                    self._evict()
        return future.result()

    def _evict(self) -> None:
        while self._num_bytes > self._max_bytes and (oldest := next(iter(self._images.values()))).done():
            self._images.popitem(last=False)
            self._num_bytes -= oldest.result().nbytes


def _check_sizes(pixels: Mapping[ImageGrid, Pixels], patch_size: int) -> None:
    """Raise LorgnetteError for an image that is not what its header says: it would be an error of the device thread."""
    for grid, image in pixels.items():
        if image.shape[:2] != (grid.h * patch_size, grid.w * patch_size):
            raise LorgnetteError("the image has another size than its header says", where=str(grid.image.path))


def _read_example(record: dict[str, Any]) -> Example:
    return message_format.read_record(record, RowLocation(Path("request"), 1, 1), alternates=False)


def _list_parts(message: Message) -> Sequence[ContentPart]:
    """A text is one part."""
    content = message.content
    return [ContentPart(type="text", text=content)] if isinstance(content, str) else content or []


def _get_url(part: ContentPart) -> str | None:
    """None if it is a text."""
    if part.type != "image_url":
        return None
    return part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url


def _count_characters(messages: Sequence[Message]) -> int:
    return sum(len(part.text or "") for message in messages for part in _list_parts(message))


def _check_messages(messages: Sequence[Message]) -> None:
    """Raise ApiError for messages that no model here can be asked."""
    for i, message in enumerate(messages):
        _check_message(message, f"messages.{i}")
    if messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", param="messages")
    num_images = sum(part.type == "image_url" for message in messages for part in _list_parts(message))
    if num_images > MAX_IMAGES:
        raise ApiError(400, f"{num_images} images, more than {MAX_IMAGES}", param="messages")
    if (count := _count_characters(messages)) > MAX_CHARACTERS:
        message_text = f"the texts have {count:,} characters, more than {MAX_CHARACTERS:,}"
        raise ApiError(400, message_text, param="messages", code="context_length_exceeded")


def _check_message(message: Message, where: str) -> None:
    if message.role not in _ROLES:
        text = f"the role {shorten(repr(message.role))} is not supported, only {', '.join(_ROLES)}"
        raise ApiError(400, text, param=f"{where}.role", code="unsupported_parameter")
    for key in ("tool_calls", "function_call", "audio"):
        if (message.model_extra or {}).get(key):
            raise ApiError(400, f"{key} is not supported", param=f"{where}.{key}", code="unsupported_parameter")
    if message.content is None:
        raise ApiError(400, "the message has no content", param=f"{where}.content")
    for j, part in enumerate(_list_parts(message)):
        _check_part(part, f"{where}.content.{j}")
        if message.role == "user" and (marker := find_image_marker(part.text or "")):
            text = f"the text has {marker}, which stands for no image; send each image as an image_url entry"
            raise ApiError(400, text, param=f"{where}.content")


def _check_part(part: ContentPart, where: str) -> None:
    if part.type not in ("text", "image_url"):
        text = f"content of the type {shorten(repr(part.type))} is not supported, only 'text' and 'image_url'"
        raise ApiError(400, text, param=f"{where}.type", code="unsupported_parameter")
    if getattr(part, part.type) is None:
        raise ApiError(400, f"the content has no {part.type}", param=f"{where}.{part.type}")
