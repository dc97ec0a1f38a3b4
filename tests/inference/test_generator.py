"""Caches are reused, shared prefixes are computed once, and a decode step does not wait for the device.

(The tokens equal transformers': parity/test_decode.py.)
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from lorgnette.config import ProcessorSettings
from lorgnette.device import release_workspaces
from lorgnette.engine.loading import build_features, load_fast_model
from lorgnette.inference import generator as generator_module
from lorgnette.inference.generator import MAX_CACHES, Generator
from lorgnette.inference.kv_cache import CacheShape, KVCache
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))


def build_generator(tiny: Path, prompts: list[Encoded], device: str, dtype: torch.dtype = torch.float32) -> Generator:
    checkpoint, image_processor = (
        BaseCheckpoint.from_folder(tiny),
        Processor.from_folder(tiny, PROCESSOR).image_processor,
    )
    features = build_features(checkpoint, image_processor, torch.device(device), dtype)
    features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return Generator(load_fast_model(checkpoint, None, features, dtype).decoder, features)


@pytest.fixture(scope="module")
def prompts(tiny: Path, conversations: list[Example]) -> list[Encoded]:
    processor = Processor.from_folder(tiny, PROCESSOR)
    return [processor.encode(example, add_generation_prompt=True) for example in conversations]


def test_caches_are_few_and_reused(tiny: Path, prompts: list[Encoded]) -> None:
    generator = build_generator(tiny, prompts, "cpu")
    first = generator.prefill(prompts[:2], 3, use_adapter=False)
    logits = first.logits.clone()
    assert generator.prefill(prompts[:2], 3, use_adapter=False) is first
    for max_new_tokens in range(4, 4 + MAX_CACHES):
        generator.prefill(prompts[:2], max_new_tokens, use_adapter=False)
    third = generator.prefill(prompts[:2], 3, use_adapter=False)
    assert third is not first
    assert torch.equal(third.logits, logits)


def test_a_reused_cache_starts_empty(tiny: Path, prompts: list[Encoded]) -> None:
    generator = build_generator(tiny, prompts, "cpu")
    cache = generator.prefill(prompts, 4, use_adapter=False)
    expected = generator.decode_step(cache, cache.logits.argmax(-1), use_adapter=False).clone()
    generator.decode_step(cache, torch.zeros(len(prompts), dtype=torch.int64), use_adapter=False)
    for layer in cache.layers:
        layer.add_(100.0)  # as a longer answer leaves it
    assert generator.prefill(prompts, 4, use_adapter=False) is cache
    assert torch.equal(generator.decode_step(cache, cache.logits.argmax(-1), use_adapter=False), expected)


def test_a_shared_prefix_is_computed_once(tiny: Path, prompts: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    num_tokens: list[int] = []
    compute = generator_module.compute_hidden_states

    def count_tokens(decoder: object, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        num_tokens.append(len(x))
        return compute(decoder, x, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(generator_module, "compute_hidden_states", count_tokens)
    generator = build_generator(tiny, prompts, "cpu")
    generator.prefill([prompts[0]] * 3, 1, use_adapter=False)
    generator.prefill(prompts, 1, use_adapter=False)
    assert num_tokens[0] == len(prompts[0].input_ids)
    assert num_tokens[1] < sum(len(prompt.input_ids) for prompt in prompts)


def test_prompts_go_into_any_rows_and_leave_the_others(tiny: Path, prompts: list[Encoded]) -> None:
    generator = build_generator(tiny, prompts, "cpu")
    expected = generator.prefill(prompts, 4, use_adapter=False)
    lengths = [len(prompt.input_ids) for prompt in prompts]
    cache = KVCache.from_config(CacheShape(9, 512), generator.decoder.config, torch.device("cpu"), torch.float32)
    for tensor in (*cache.layers, cache.logits):
        tensor.fill_(7.0)
    rows = [4, 8, 1, 5, 2]
    generator.prefill_rows(cache, rows, prompts, use_adapter=False)
    assert torch.equal(cache.logits[rows], expected.logits)
    for layer, other in zip(cache.layers, expected.layers, strict=True):
        for row, source, length in zip(rows, other, lengths, strict=True):
            assert torch.equal(layer[row, :length], source[:length])
            assert (layer[row, length:] == 7).all()
        assert (layer[[0, 3, 6, 7]] == 7).all()
    assert (cache.logits[[0, 3, 6, 7]] == 7).all()


def test_a_free_row_and_a_full_one_write_into_no_other(tiny: Path, prompts: list[Encoded]) -> None:
    generator, length = build_generator(tiny, prompts, "cpu"), len(prompts[2].input_ids)
    shape = CacheShape(4, length + 2)
    cache = KVCache.from_config(shape, generator.decoder.config, torch.device("cpu"), torch.float32)
    cache.num_active_rows = 4
    generator.prefill_rows(cache, [0, 2], [prompts[2]] * 2, use_adapter=False)
    cache.state.copy_(torch.tensor([[length, 0, length, 0], [length, 0, length, 0], [1, 0, 1, 0]]))
    for step in range(5):  # three more than there is room for
        before = [layer.clone() for layer in cache.layers]
        generator.decode_step(cache, torch.full((4,), 40 + step), use_adapter=False)
        slot = min(length + step, shape.num_slots - 1)
        written = torch.tensor([[0, slot], [1, 0], [2, slot], [3, 0]])
        for layer, old in zip(cache.layers, before, strict=True):
            changed = (layer != old).flatten(2).any(-1).nonzero()
            assert torch.equal(changed, written)
        assert torch.equal(cache.logits[0], cache.logits[2])
    assert cache.lengths.tolist() == [length + 5, 0, length + 5, 0]  # only those of rows that are answered


@NEEDS_CUDA
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_captured_step_equals_the_eager_one_and_does_not_wait(
    tiny_family: Callable[[str], Path], conversations: list[Example], model_type: str, dtype: torch.dtype
) -> None:
    folder = tiny_family(model_type)
    processor = Processor.from_folder(folder, PROCESSOR)
    prompts = [processor.encode(example, add_generation_prompt=True) for example in conversations]
    generator = build_generator(folder, prompts, "cuda", dtype)
    runs = []
    for _ in range(2):  # eager first, then replayed
        cache = generator.prefill(prompts, 9, use_adapter=False)
        logits, steps = cache.logits[: len(prompts)], []
        for step in range(8):
            steps.append(logits.clone())
            tokens = torch.arange(len(prompts), device="cuda") + 50 * step
            if cache.graphs.get(False) is not None:
                torch.cuda.set_sync_debug_mode("error")
            logits = generator.decode_step(cache, tokens, use_adapter=False)
            torch.cuda.set_sync_debug_mode("default")
        runs.append(torch.stack(steps))
    assert cache.graphs[False] is not None
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4 if dtype == torch.float32 else 1e-1, rtol=0)


@pytest.mark.parametrize(("free", "is_released"), [(0, True), (2**40, False)])
def test_a_capture_takes_what_torch_keeps_only_where_little_is_free(
    tiny: Path, prompts: list[Encoded], free: int, is_released: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = build_generator(tiny, prompts, "cpu")
    released: list[bool] = []
    graph = MagicMock()
    monkeypatch.setattr(generator, "_graph_stream", object())
    monkeypatch.setattr(generator_module, "capture_graph", lambda *_: nullcontext(graph))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(True))
    cache = generator.prefill(prompts, 9, use_adapter=False)
    for _ in range(3):  # eager, captured, replayed
        generator.decode_step(cache, torch.zeros(len(prompts), dtype=torch.int64), use_adapter=False)
    assert bool(released) is is_released
    assert cache.graphs[False] is graph
    assert graph.replay.call_count == 2


@NEEDS_CUDA
def test_a_capture_keeps_the_memory_that_torch_has_pinned(
    tiny: Path, prompts: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To pin it anew takes longer than a copy into it."""
    generator = build_generator(tiny, prompts, "cuda", torch.bfloat16)
    cache = generator.prefill(prompts, 9, use_adapter=False)
    address = torch.empty(2**24, pin_memory=True).data_ptr()
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    for _ in range(3):  # eager, captured, replayed
        generator.decode_step(cache, torch.zeros(len(prompts), dtype=torch.int64, device="cuda"), use_adapter=False)
    assert cache.graphs[False] is not None
    assert torch.empty(2**24, pin_memory=True).data_ptr() == address


@NEEDS_CUDA
def test_a_graph_outlives_a_release_of_workspaces(tiny: Path, prompts: list[Encoded]) -> None:
    """As of a training in the same process. When the graphs are gone, nothing keeps their memory."""
    generator = build_generator(tiny, prompts, "cuda", torch.bfloat16)
    cache = generator.prefill(prompts, 9, use_adapter=False)
    tokens = torch.zeros(len(prompts), dtype=torch.int64, device="cuda")
    steps = []
    for _ in range(3):  # eager, captured, replayed
        generator.decode_step(cache, tokens, use_adapter=False)
    lengths, position_ids = cache.lengths.clone(), cache.position_ids.clone()
    for _ in range(2):
        cache.lengths.copy_(lengths)
        cache.position_ids.copy_(position_ids)
        steps.append(generator.decode_step(cache, tokens, use_adapter=False).clone())
        release_workspaces()
        others = [torch.full((2**21,), float("nan"), device="cuda") for _ in range(16)]  # in freed memory, if any
    assert torch.equal(*steps)
    pool = generator._graph_pool
    del cache, others
    generator.drop_caches()
    assert all(tuple(segment["segment_pool_id"]) != tuple(pool) for segment in torch.cuda.memory_snapshot())
