"""Rooms are used anew, prompts' common rows are read once, and a step waits for nothing. (That what is said is
transformers': parity/test_decode.py.)"""

from pathlib import Path

import pytest
import torch

from lorgnette.config import Encode
from lorgnette.engine.loading import features_of, opened
from lorgnette.inference import generator
from lorgnette.inference.generator import MOST_ROOMS, Speaker
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.processing.processor import Encoder
from lorgnette.types import Encoded, Example

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
ENCODE = Encode(size=None, image_tokens=(4, 30))


def speaker(tiny: Path, prompts: list[Encoded], device: str, dtype: torch.dtype = torch.float32) -> Speaker:
    checkpoint, rule = Checkpoint.at(tiny), Encoder.of_folder(tiny, ENCODE).rule
    features = features_of(checkpoint, rule, torch.device(device), dtype)
    features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return opened(checkpoint, None, features, dtype).speaker


@pytest.fixture(scope="module")
def prompts(tiny: Path, conversations: list[Example]) -> list[Encoded]:
    encoder = Encoder.of_folder(tiny, ENCODE)
    return [encoder.encode(example, answer=True) for example in conversations]


def test_rooms_are_few_and_used_anew(tiny: Path, prompts: list[Encoded]) -> None:
    made = speaker(tiny, prompts, "cpu")
    first = made.begin(prompts[:2], 3, tuned=False)
    logits = first.logits.clone()
    assert made.begin(prompts[:2], 3, tuned=False) is first
    for more in range(4, 4 + MOST_ROOMS):
        made.begin(prompts[:2], more, tuned=False)
    again = made.begin(prompts[:2], 3, tuned=False)
    assert again is not first
    assert torch.equal(again.logits, logits)


def test_a_used_room_does_not_remember(tiny: Path, prompts: list[Encoded]) -> None:
    made = speaker(tiny, prompts, "cpu")
    cache = made.begin(prompts, 4, tuned=False)
    wanted = made.step(cache, cache.logits.argmax(-1), tuned=False).clone()
    made.step(cache, torch.zeros(len(prompts), dtype=torch.int64), tuned=False)
    for layer in cache.layers:
        layer.add_(100.0)  # what a longer answer may have left there
    assert made.begin(prompts, 4, tuned=False) is cache
    assert torch.equal(made.step(cache, cache.logits.argmax(-1), tuned=False), wanted)


def test_what_prompts_have_in_common_is_read_once(
    tiny: Path, prompts: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    whole = generator.hidden_states

    def counted(decoder: object, x: torch.Tensor, *words: object, **named: object) -> torch.Tensor:
        rows.append(len(x))
        return whole(decoder, x, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(generator, "hidden_states", counted)
    made = speaker(tiny, prompts, "cpu")
    made.begin([prompts[0]] * 3, 1, tuned=False)
    made.begin(prompts, 1, tuned=False)
    assert rows[0] == len(prompts[0].tokens)
    assert rows[1] < sum(len(prompt.tokens) for prompt in prompts)


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_is_the_step_and_waits_for_nothing(
    tiny: Path, prompts: list[Encoded], dtype: torch.dtype
) -> None:
    made = speaker(tiny, prompts, "cuda", dtype)
    said = []
    for _ in range(2):  # launched one by one at first, then played back
        cache = made.begin(prompts, 9, tuned=False)
        logits, rows = cache.logits[: len(prompts)], []
        for place in range(8):
            rows.append(logits.clone())
            tokens = torch.arange(len(prompts), device="cuda") + 50 * place
            if cache.graphs.get(False) is not None:
                torch.cuda.set_sync_debug_mode("error")
            logits = made.step(cache, tokens, tuned=False)
            torch.cuda.set_sync_debug_mode("default")
        said.append(torch.stack(rows))
    assert cache.graphs[False] is not None
    torch.testing.assert_close(said[0], said[1], atol=1e-4 if dtype == torch.float32 else 1e-1, rtol=0)
