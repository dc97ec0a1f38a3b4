"""Rooms are used anew, prompts' common rows are read once, and a step waits for nothing. (That what is said is
transformers': parity/test_decode.py.)"""

from pathlib import Path

import pytest
import torch

from lorgnette.config import ProcessorSettings
from lorgnette.engine.loading import build_features, load_fast_model
from lorgnette.inference import generator
from lorgnette.inference.generator import MAX_CACHES, Generator
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
ENCODE = ProcessorSettings(image_size=None, image_tokens=(4, 30))


def speaker(tiny: Path, prompts: list[Encoded], device: str, dtype: torch.dtype = torch.float32) -> Generator:
    checkpoint, rule = BaseCheckpoint.from_folder(tiny), Processor.from_folder(tiny, ENCODE).image_processor
    features = build_features(checkpoint, rule, torch.device(device), dtype)
    features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return load_fast_model(checkpoint, None, features, dtype).speaker


@pytest.fixture(scope="module")
def prompts(tiny: Path, conversations: list[Example]) -> list[Encoded]:
    encoder = Processor.from_folder(tiny, ENCODE)
    return [encoder.encode(example, add_generation_prompt=True) for example in conversations]


def test_rooms_are_few_and_used_anew(tiny: Path, prompts: list[Encoded]) -> None:
    made = speaker(tiny, prompts, "cpu")
    first = made.prefill(prompts[:2], 3, use_adapter=False)
    logits = first.logits.clone()
    assert made.prefill(prompts[:2], 3, use_adapter=False) is first
    for more in range(4, 4 + MAX_CACHES):
        made.prefill(prompts[:2], more, use_adapter=False)
    again = made.prefill(prompts[:2], 3, use_adapter=False)
    assert again is not first
    assert torch.equal(again.logits, logits)


def test_a_used_room_does_not_remember(tiny: Path, prompts: list[Encoded]) -> None:
    made = speaker(tiny, prompts, "cpu")
    cache = made.prefill(prompts, 4, use_adapter=False)
    wanted = made.decode_step(cache, cache.logits.argmax(-1), use_adapter=False).clone()
    made.decode_step(cache, torch.zeros(len(prompts), dtype=torch.int64), use_adapter=False)
    for layer in cache.layers:
        layer.add_(100.0)  # what a longer answer may have left there
    assert made.prefill(prompts, 4, use_adapter=False) is cache
    assert torch.equal(made.decode_step(cache, cache.logits.argmax(-1), use_adapter=False), wanted)


def test_what_prompts_have_in_common_is_read_once(
    tiny: Path, prompts: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    whole = generator.compute_hidden_states

    def counted(decoder: object, x: torch.Tensor, *words: object, **named: object) -> torch.Tensor:
        rows.append(len(x))
        return whole(decoder, x, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(generator, "compute_hidden_states", counted)
    made = speaker(tiny, prompts, "cpu")
    made.prefill([prompts[0]] * 3, 1, use_adapter=False)
    made.prefill(prompts, 1, use_adapter=False)
    assert rows[0] == len(prompts[0].input_ids)
    assert rows[1] < sum(len(prompt.input_ids) for prompt in prompts)


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_is_the_step_and_waits_for_nothing(
    tiny: Path, prompts: list[Encoded], dtype: torch.dtype
) -> None:
    made = speaker(tiny, prompts, "cuda", dtype)
    said = []
    for _ in range(2):  # launched one by one at first, then played back
        cache = made.prefill(prompts, 9, use_adapter=False)
        logits, rows = cache.logits[: len(prompts)], []
        for place in range(8):
            rows.append(logits.clone())
            tokens = torch.arange(len(prompts), device="cuda") + 50 * place
            if cache.graphs.get(False) is not None:
                torch.cuda.set_sync_debug_mode("error")
            logits = made.decode_step(cache, tokens, use_adapter=False)
            torch.cuda.set_sync_debug_mode("default")
        said.append(torch.stack(rows))
    assert cache.graphs[False] is not None
    torch.testing.assert_close(said[0], said[1], atol=1e-4 if dtype == torch.float32 else 1e-1, rtol=0)
