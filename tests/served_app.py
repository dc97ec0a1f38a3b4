"""Servers on loopback, in threads of this process.

fake_server  the real app with a scheduler that has no model: errors, full queues and slow answers at will
real_server  the real app with the built-in model and two adapters that change its answers
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.inference.continuous_batch import ContinuousBatch, DecodeRow
from lorgnette.inference.loading import ModelSpec
from lorgnette.lora import peft_files
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.server.app import build_app
from lorgnette.server.guard import GuardSettings
from lorgnette.server.http_server import HttpServer, open_port
from lorgnette.server.models import ServedModel, load_models
from lorgnette.server.prompts import PromptEncoder
from lorgnette.server.scheduler import GenerationError, QueueFullError, Scheduler, TokenStream
from lorgnette.server.stats import SchedulerStats
from lorgnette.server.uploads import UploadStore

FAKE_ANSWERS = {
    None: "The image shows a small red car to the left of a big green tree.",
    0: "A small red car to the left of a big green tree.",
    1: "Two cats.",
}
"""Number of the adapter → what FakeScheduler says."""

ADAPTERS: dict[str, LoraSettings] = {
    "captions": LoraSettings(rank=4, alpha=8),
    "colors": LoraSettings(rank=2, alpha=2, target_modules=("q_proj", "o_proj", "down_proj")),
}
"""Name → the adapter of real_server."""


@dataclass
class Served:
    """A server that answers. root: its URL without a slash at the end; api: the URL for OpenAI's clients."""

    root: str
    models: Any
    scheduler: Any
    settings: GuardSettings

    @property
    def api(self) -> str:
        return f"{self.root}/v1"

    @property
    def page(self) -> str:
        return f"{self.root}/?token={self.settings.token}"


@contextmanager
def start_server(models: Any, scheduler: Any, **guard: Any) -> Iterator[Served]:
    """The app on a free port. guard: more of GuardSettings."""
    encoder = PromptEncoder(UploadStore())
    with open_port("127.0.0.1", 0) as port, closing(encoder):
        settings = GuardSettings("127.0.0.1", port.getsockname()[1], **guard)
        app = build_app(models, scheduler, encoder, settings)
        with HttpServer(app, port, on_stop=scheduler.close):
            yield Served(f"http://127.0.0.1:{settings.port}", models, scheduler, settings)


@dataclass
class FakeModels:
    """A ModelSet without weights."""

    models: Sequence[ServedModel]
    base_model: str = "demo"

    def find(self, name: str) -> ServedModel | None:
        return next((model for model in self.models if name in (model.name, *model.aliases)), None)


@dataclass
class FakeScheduler:
    """Says the tokens of `answers`, by the number of the adapter. Set what goes wrong; `reset` sets it back.

    fails_after: the number of tokens before it fails. step_seconds: between two tokens. rows: the requests so far.
    cancelled: the outcomes of those that were cancelled.
    """

    encode: Callable[[str], list[int]]
    answers: dict[int | None, str] = field(default_factory=lambda: dict(FAKE_ANSWERS))
    state: str = "ready"
    max_tokens: int = 2048
    step_seconds: float = 0.0
    fails_after: int | None = None
    error: GenerationError = field(default_factory=lambda: GenerationError("the device is lost: test", "device_lost"))
    num_refusals: int = 0
    rows: list[DecodeRow] = field(default_factory=list)
    pixels: list[Mapping[Any, Any]] = field(default_factory=list)
    cancelled: list[DecodeRow] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    _num_expected: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def reset(self) -> None:
        fresh = FakeScheduler(self.encode)
        for name in ("answers", "state", "max_tokens", "step_seconds", "fails_after", "error", "num_refusals"):
            setattr(self, name, getattr(fresh, name))
        for seen in (self.rows, self.pixels, self.cancelled, self.outcomes):
            seen.clear()

    @contextmanager
    def expect_request(self) -> Iterator[None]:
        self._num_expected += 1
        try:
            yield
        finally:
            self._num_expected -= 1

    def count_refusal(self) -> None:
        self.outcomes.append("refused")

    def submit(self, row: DecodeRow, pixels: Mapping[Any, Any]) -> TokenStream:
        assert self._num_expected
        self.rows.append(row)
        self.pixels.append(pixels)
        if self.num_refusals:
            self.num_refusals -= 1
            raise QueueFullError("64 requests wait already")
        if self.state != "ready":
            raise self.error

        def cancel(outcome: str) -> None:
            self.cancelled.append(row)
            self.outcomes.append(outcome)

        stream = TokenStream(cancel)
        task = asyncio.get_running_loop().create_task(self._answer(row, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def _answer(self, row: DecodeRow, stream: TokenStream) -> None:
        token_ids = self.encode(self.answers[row.adapter])
        for i, token_id in enumerate(token_ids[: row.sampling.max_new_tokens]):
            if i == self.fails_after:
                stream.receive([], self.error)
                return
            await asyncio.sleep(self.step_seconds)
            stream.receive([token_id], None)
        stream.receive([], "length" if len(token_ids) > row.sampling.max_new_tokens else "stop")

    def read_stats(self) -> SchedulerStats:
        return SchedulerStats()

    def close(self) -> None:
        self.state = "closed"


@pytest.fixture(scope="session")
def built_in_processor() -> Processor:
    return Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(112, 112)))


@pytest.fixture(scope="module")
def module_fake_server(built_in_processor: Processor) -> Iterator[Served]:
    common: Any = {"processor": built_in_processor, "prompt": "COCO Yes:", "max_new_tokens": 128}
    tuned = ServedModel(name="captions", aliases=(), adapter=0, parent="base", fingerprint="3f9a21c0", **common)
    other = ServedModel(name="cats/v2:best", aliases=(), adapter=1, parent="base", fingerprint="11111111", **common)
    base = ServedModel(name="base", aliases=("demo",), adapter=None, parent=None, fingerprint="00c0ffee", **common)
    scheduler = FakeScheduler(built_in_processor.tokenizer.encode)
    with start_server(FakeModels((tuned, other, base)), scheduler) as served:
        yield served


@pytest.fixture
def fake_server(module_fake_server: Served) -> Served:
    """`captions`, `cats/v2:best` and `base`, said by a FakeScheduler that was reset."""
    module_fake_server.scheduler.reset()
    return module_fake_server


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → an adapter of the built-in model with random factors."""
    spec = ModelSpec.from_names("demo", None, Terminal())
    assert spec.metadata is not None
    random = torch.Generator().manual_seed(0)
    folders = {}
    for name, lora in ADAPTERS.items():
        folders[name] = folder = tmp_path_factory.mktemp("adapters") / name
        folder.mkdir()
        shape = AdapterShape.from_settings(spec.checkpoint.load_text_config(), lora)
        state = {key: torch.randn(size, generator=random) * 0.2 for key, size in shape.factor_shapes().items()}
        metadata = spec.metadata.model_copy(update={"model": "demo", "prompt": "COCO Yes:"})
        peft_files.write_adapter(folder, state, spec.checkpoint.family, lora, metadata)
    return folders


@pytest.fixture(scope="session")
def real_server(adapter_folders: dict[str, Path]) -> Iterator[Served]:
    """`captions`, `colors` and `base`, by the built-in model."""
    specs = {name: ModelSpec.from_names(None, folder, Terminal()) for name, folder in adapter_folders.items()}
    models = load_models(specs, "cpu")
    batch = ContinuousBatch(models.generator, models.adapter_ranks)
    scheduler = Scheduler(batch, models.features, models.eos_token_ids)
    scheduler.wait_until_ready()
    with start_server(models, scheduler) as served:
        yield served
