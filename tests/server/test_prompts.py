"""Messages become the tokens and pixels of training; whatever a model cannot be asked is refused by its place."""

import asyncio
import base64
import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from transformers import AutoTokenizer

from lorgnette import data
from lorgnette.config import ProcessorSettings
from lorgnette.errors import LorgnetteError
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.server import prompts
from lorgnette.server.api_errors import ApiError
from lorgnette.server.chat_request import Message
from lorgnette.server.models import ServedModel
from lorgnette.server.prompts import PixelLru, Prompt, PromptEncoder, TooManyPromptsError
from lorgnette.server.uploads import UploadStore
from lorgnette.types import Example, Image, Turn


def to_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def image_part(path: Path, *, is_bare: bool = False) -> dict[str, Any]:
    return {"type": "image_url", "image_url": to_url(path) if is_bare else {"url": to_url(path), "detail": "low"}}


@pytest.fixture
def model() -> ServedModel:
    processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=None, image_tokens=(4, 30)))
    return ServedModel("captions", (), 0, processor, "COCO Yes:", 128, "base", "3f9a21c0")


@pytest.fixture
def encoder() -> Iterator[PromptEncoder]:
    encoder = PromptEncoder(UploadStore(max_bytes=1))  # what a request needs stays all the same
    yield encoder
    encoder.close()


@pytest.fixture
def encode(encoder: PromptEncoder, model: ServedModel) -> Callable[..., Prompt]:
    """encode({"role": …, "content": …}, …) → the prompt."""
    return lambda *messages: asyncio.run(encoder.encode(model, [Message.model_validate(each) for each in messages]))


def test_a_request_has_the_tokens_and_pixels_of_training(
    encode: Callable[..., Prompt], model: ServedModel, image_files: list[Path]
) -> None:
    """Also several images, a repeated one, a system turn and earlier answers."""
    first, second = image_files[0], image_files[1]
    encoded, pixels = encode(
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [image_part(first), {"type": "text", "text": "Compare with "}, image_part(second)]},
        {"role": "assistant", "content": "The second <image>"},
        {"role": "user", "content": [{"type": "text", "text": "and "}, image_part(first, is_bare=True)]},
    )
    expected = model.processor.encode(
        Example("", (
            Turn("system", ("Be short.",)), Turn("user", (Image(first), "Compare with ", Image(second))),
            Turn("assistant", ("The second <image>",)), Turn("user", ("and ", Image(first))),
        ), Path("x"), 1), add_generation_prompt=True,
    )  # fmt: skip
    np.testing.assert_array_equal(encoded.input_ids, expected.input_ids)
    np.testing.assert_array_equal(encoded.position_ids, expected.position_ids)
    assert encoded.image_starts == expected.image_starts
    assert len(pixels) == 2
    for grid, own in zip(encoded.grids, expected.grids, strict=True):
        resized = data.load_resized(own.image.path, model.processor.image_processor.resize)
        np.testing.assert_array_equal(pixels[grid], resized)
    assert not np.array_equal(*(image[:28, :28] for image in pixels.values()))  # control


@pytest.mark.parametrize("roles", ["uu", "suu", "uau", "uuau", "uaau", "au", "sau"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_roles_in_any_order_are_what_transformers_makes_of_them(
    model_type: str, roles: str, tiny_family: Callable[[str], Path], encoder: PromptEncoder, model: ServedModel
) -> None:
    """Two messages of one role stay two: the template writes each with its own role and end."""
    folder = tiny_family(model_type)
    processor = Processor.from_folder(folder, ProcessorSettings(image_size=None, image_tokens=(4, 30)))
    names = {"s": "system", "u": "user", "a": "assistant"}
    messages = [{"role": names[role], "content": f"a cat {number}"} for number, role in enumerate(roles)]
    given = [Message.model_validate(each) for each in messages]
    encoded, _ = asyncio.run(encoder.encode(replace(model, processor=processor), given))
    tokenizer, options = AutoTokenizer.from_pretrained(folder), dict(FAMILIES[model_type].template_options)
    template = processor.chat_template.source
    texts = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
    text = tokenizer.apply_chat_template(
        texts, chat_template=template, add_generation_prompt=True, tokenize=False, **options
    )
    assert encoded.input_ids.tolist() == tokenizer(text)["input_ids"]
    assert text.count("<|im_start|>") - ("s" not in roles and "helpful" in text) == len(roles) + 1


def test_without_a_text_the_prompt_of_training_is_asked(encode: Callable[..., Prompt], image_files: list[Path]) -> None:
    image = image_part(image_files[0])
    asked = encode({"role": "user", "content": [image, {"type": "text", "text": "COCO Yes:"}]})[0].input_ids
    for content in ([image], [image, {"type": "text", "text": " "}]):
        np.testing.assert_array_equal(encode({"role": "user", "content": content})[0].input_ids, asked)
    other = encode({"role": "user", "content": [image, {"type": "text", "text": "COCO No:"}]})[0].input_ids
    assert not np.array_equal(other, asked)


def test_what_cannot_be_asked_is_refused_by_its_place(encode: Callable[..., Prompt], image_files: list[Path]) -> None:
    narrow, cut, noise = io.BytesIO(), image_files[0].read_bytes()[:-500], base64.b64encode(b"hello" * 9).decode()
    PIL.Image.new("RGB", (900, 3)).save(narrow, "PNG")
    image = image_part(image_files[0])
    ask = {"role": "user", "content": "What?"}

    def build(url: str) -> dict[str, Any]:
        return {"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": url}]}

    def to_png(content: bytes) -> str:
        return "data:image/png;base64," + base64.b64encode(content).decode()

    where = "messages.0.content.1.image_url"
    for messages, param, code, text in (
        ([build("http://169.254.169.254/a.png")], where, "invalid_image_url", "http:"),
        ([build("file:///etc/passwd")], where, "invalid_image_url", "file:"),
        ([build("/etc/passwd")], where, "invalid_image_url", "data:"),
        ([build("data:image/png;base64,@@@")], where, "invalid_base64", ""),
        ([build(f"data:image/png;base64,{noise}")], where, "invalid_image", "image"),
        ([build(to_png(cut))], where, "invalid_image", "decoded"),
        ([build(to_png(narrow.getvalue()))], where, "invalid_image", "900×3"),
        ([{"role": "user", "content": [image] * 9}], "messages", None, "9 images"),
        ([{"role": "tool", "content": "a"}], "messages.0.role", "unsupported_parameter", "'tool'"),
        ([{"role": "user"}], "messages.0.content", None, "no content"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content.0.type", "unsupported_parameter",
         "'input_audio'"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content.0.image_url", None, "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text", None, "text"),
        ([ask, {"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}, ask], "messages.1.tool_calls",
         "unsupported_parameter", "tool_calls"),
        ([ask, {"role": "assistant", "content": "a"}], "messages", None, "last message"),
        ([{"role": "system", "content": [image]}, ask], "messages", None, "image"),
        ([ask, {"role": "system", "content": "a"}, ask], "messages", None, "turn 2"),
        ([{"role": "user", "content": "what is <image>"}], "messages.0.content", None, "the text has <image>"),
        ([{"role": "user", "content": [image, {"type": "text", "text": "<|image_pad|>"}]}], "messages.0.content", None,
         "the text has <|image_pad|>"),
        ([{"role": "user", "content": "a b " * 5000}], "messages", "context_length_exceeded", "tokens"),
        ([{"role": "user", "content": "a" * 300_000}], "messages", "context_length_exceeded", "300,000 characters"),
    ):  # fmt: skip
        with pytest.raises(ApiError) as caught:
            encode(*messages)
        error = caught.value
        assert (error.status, error.param, error.code) == (400, param, code), error.message
        assert text in error.message
        assert "/tmp" not in error.message
        assert len(error.message) < 300


def test_caches_of_texts_and_images_are_bounded(
    encode: Callable[..., Prompt], model: ServedModel, image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in image_files[:3]:
        encode({"role": "user", "content": [image_part(path)]})
    processor = model.processor
    assert processor._cached_grid.cache_info().currsize == 3
    monkeypatch.setattr(prompts, "_MAX_CACHED_IMAGES", 3)
    encode({"role": "user", "content": [image_part(image_files[3])]})
    assert processor._cached_grid.cache_info().currsize == 1
    monkeypatch.setattr(prompts, "_MAX_CACHED_CHARACTERS", 5)
    encode({"role": "user", "content": "longer than that"})
    encode({"role": "user", "content": "and another"})
    assert processor._cached_frame.cache_info().currsize == 1
    assert processor.tokenizer.encode_cached.cache_info().currsize < 10


def test_requests_wait_for_the_threads_only_so_far(
    encoder: PromptEncoder, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, names, lengths = threading.Event(), set[str](), list[int]()

    def wait(*_: Any) -> Any:
        names.add(threading.current_thread().name)
        assert go.wait(10)
        return None, {}

    async def ask() -> list[Any]:
        message = Message.model_validate({"role": "user", "content": "x" * 10})
        requests = [[message] for _ in range(6)]
        tasks = [asyncio.create_task(encoder.encode(model, messages)) for messages in requests]
        while len(names) < prompts.NUM_THREADS:
            await asyncio.sleep(0.001)
        tasks[3].cancel()
        await asyncio.wait(tasks[3:4])
        lengths[:] = map(len, requests)
        go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    monkeypatch.setattr(encoder, "_encode", wait)
    monkeypatch.setattr(prompts, "MAX_PENDING", 4)
    results = asyncio.run(ask())
    assert len(names) == prompts.NUM_THREADS
    assert lengths[:4] == [1, 1, 1, 0]  # the pool's queue has no images of one that is cancelled
    assert [type(result) for result in results[:4]] == [tuple, tuple, tuple, asyncio.CancelledError]
    assert all(isinstance(result, TooManyPromptsError) for result in results[4:])
    assert encoder._pending == []
    monkeypatch.setattr(prompts, "MAX_PENDING_CHARACTERS", 15)
    assert sum(isinstance(result, TooManyPromptsError) for result in asyncio.run(ask())[:3]) == 2


def test_an_image_is_decoded_once(model: ServedModel, image_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if two threads ask for it. Those used longest ago leave; an error is not kept."""
    loaded: list[Path] = []
    is_loading, go = threading.Event(), threading.Event()

    def load(path: Path, _: Any) -> Any:
        loaded.append(path)
        is_loading.set()
        assert go.wait(10)
        return np.zeros((10, 10, 3), np.uint8)

    monkeypatch.setattr(prompts, "load_resized", load)
    grids = [model.processor._compute_grid(Image(path)) for path in image_files]
    images = PixelLru(max_bytes=600)
    threads = [threading.Thread(target=images.get, args=(grids[0], model.processor.image_processor)) for _ in range(2)]
    threads[0].start()
    assert is_loading.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    for i in (1, 0, 2, 0, 1):  # 2 takes the place of 1
        images.get(grids[i], model.processor.image_processor)
    assert loaded == [image_files[i] for i in (0, 1, 2, 1)]


def test_an_image_that_cannot_be_decoded_is_tried_again(
    model: ServedModel, tmp_path: Path, image_files: list[Path]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(image_files[0].read_bytes())
    grid, images = model.processor._compute_grid(Image(path)), PixelLru(10**6)
    path.write_bytes(image_files[0].read_bytes()[:-500])
    with pytest.raises(LorgnetteError):
        images.get(grid, model.processor.image_processor)
    path.write_bytes(image_files[0].read_bytes())
    assert images.get(grid, model.processor.image_processor).shape[2] == 3


def test_an_image_that_is_not_what_its_header_says_is_refused(
    encode: Callable[..., Prompt], image_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device thread trusts sizes, and answers nobody after an error of its own."""
    load = prompts.load_resized
    monkeypatch.setattr(prompts, "load_resized", lambda *words: load(*words)[:-28])
    with pytest.raises(ApiError, match="another size than its header says") as info:
        encode({"role": "user", "content": [image_part(image_files[0])]})
    assert (info.value.status, info.value.param) == (400, "messages.0.content.0.image_url")
    assert str(image_files[0].parent) not in info.value.message
