"""Answers from our own decoder are those of transformers' `generate`, token for token; every step's logits are those
of a full pass over the text so far."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.engine.build_decoder import empty_adapter_shape, load_decoder
from lorgnette.engine.hf_loading import load_base_model
from lorgnette.engine.loading import FastModel
from lorgnette.engine.peft_adapter import add_adapter
from lorgnette.features.image_features import Features
from lorgnette.inference import decode, hf_generate
from lorgnette.inference.generator import Generator
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.processing.processor import Processor
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import Encoded, Example, Image, Turn

ENCODE = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
SAMPLING = SamplingParams(max_new_tokens=12)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def fast(bench: Any, folder: Path, dtype: torch.dtype = torch.float32) -> FastModel:
    """The bench's weights and adapter in our own decoder."""
    checkpoint = BaseCheckpoint.from_folder(folder)
    shape = AdapterShape(
        TextConfig.from_hf_config(load_hf_config(checkpoint)), LORA.target_modules, LORA.rank, LORA.alpha / LORA.rank
    )
    decoder = load_decoder(checkpoint, shape, bench.engine.device, dtype)
    adapter = FlatLoraParams(shape, bench.engine.device)
    state = {n.replace(".default.", "."): p.detach() for n, p in bench.model.named_parameters() if "lora_" in n}
    adapter.load_state_dict(state)
    adapter.attach(decoder)
    return FastModel(decoder, adapter, bench.features)


@pytest.fixture(scope="module", params=[CPU, pytest.param(CUDA, marks=NEEDS_CUDA)], ids=str)
def bench(make_bench: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    return make_bench(LORA, ENCODE, request.param, torch.float32)


@pytest.fixture(scope="module")
def model(bench: Any, tiny: Path) -> FastModel:
    return fast(bench, tiny)


@pytest.fixture(scope="module")
def asked(conversations: list[Example], example: Callable[..., Example]) -> list[Example]:
    """The suite's conversations, and prompts that others begin with, end in a picture or stand twice."""
    return [
        *conversations,
        example(("user", "no picture, and longer"), ("assistant", "a")),
        example(("user", 0, 1, 2, 3, "which?"), ("assistant", "b")),
        example(("user", "look: ", 4), ("assistant", "c")),
        conversations[0],
    ]


@pytest.fixture(scope="module", params=["tuned", None], ids=["tuned", "base"])
def adapter(request: pytest.FixtureRequest) -> str | None:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def theirs(bench: Any, asked: list[Example], adapter: str | None) -> list[tuple[str, bool]]:
    """transformers' answers, each asked alone: no padding that could matter."""
    one = replace(SAMPLING, batch_size=1)
    return said(hf_generate.generate_answers(bench.model, bench.encoder, asked, one, adapter=adapter))


def said(predictions: Any) -> list[tuple[str, bool]]:
    return [(p.text, p.stopped) for p in predictions]


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_greedy_answers_are_transformers(
    bench: Any,
    model: FastModel,
    asked: list[Example],
    theirs: list[tuple[str, bool]],
    adapter: str | None,
    batch_size: int,
) -> None:
    sampling = replace(SAMPLING, batch_size=batch_size)
    assert said(decode.generate_answers(model, bench.encoder, asked, sampling, adapter=adapter)) == theirs
    assert len({text for text, _ in theirs}) > 4


def test_tuned_and_base_are_not_the_same(bench: Any, model: FastModel, asked: list[Example]) -> None:
    tuned, base = (
        said(decode.generate_answers(model, bench.encoder, asked, SAMPLING, adapter=name)) for name in ("t", None)
    )
    assert tuned != base


def test_an_answer_ends_where_transformers_ends_it(bench: Any, model: FastModel, asked: list[Example]) -> None:
    """With tokens that the tiny model does say as ends: at once, later, and not at all, in one batch."""
    prompts = prepared(bench, asked)
    whole = decode.generate_tokens(model.speaker, prompts, greedy, 12, [], use_adapter=True)
    ends = [int(whole[0, 0]), int(whole[1, 4])]
    rows = decode.generate_tokens(model.speaker, prompts, greedy, 12, ends, use_adapter=True).tolist()
    lengths = set()
    for prompt, row, free in zip(prompts, rows, whole.tolist(), strict=True):
        length = next((i for i, token in enumerate(free) if token in ends), 12)
        lengths.add(length)
        assert row == [*free[: length + 1], *[free[min(length, 11)]] * 12][: len(row)]
        assert generated(bench, prompt, ends) == free[: length + 1]
    assert 0 in lengths
    assert len(lengths) > 1


def greedy(logits: Tensor, place: int) -> Tensor:
    return logits.argmax(-1)


def prepared(bench: Any, examples: Sequence[Example]) -> list[Encoded]:
    prompts = [bench.encoder.encode(example, answer=True) for example in examples]
    assert not bench.features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return prompts


def generated(bench: Any, prompt: Encoded, ends: list[int]) -> list[int]:
    from transformers import GenerationConfig

    bench.model.eval()
    inputs = hf_generate._pad_batch([prompt], bench.encoder, bench.engine.device)
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=ends[0])
    with torch.no_grad():
        row = bench.model.generate(**inputs, generation_config=settings)[0]
    return row[len(prompt.input_ids) :].tolist()  # type: ignore[no-any-return]


def test_when_all_have_ended_nothing_more_is_said(bench: Any, model: FastModel, asked: list[Example]) -> None:
    prompts = prepared(bench, asked[:1] * 3)
    first = int(decode.generate_tokens(model.speaker, prompts, greedy, 1, [], use_adapter=True)[0, 0])
    assert decode.generate_tokens(model.speaker, prompts, greedy, 100, [first], use_adapter=True).shape == (
        3,
        decode.CHECK_INTERVAL,
    )


def longer(prompt: Encoded, tokens: Sequence[int]) -> Encoded:
    """The prompt with the answer so far."""
    more = np.array(tokens, np.int32)
    positions = prompt.position_ids.max() + 1 + np.arange(len(more), dtype=np.int32)
    return replace(
        prompt,
        tokens=np.concatenate([prompt.input_ids, more]),
        positions=np.concatenate([prompt.position_ids, np.stack([positions] * 3)], 1),
    )


def distances(model: FastModel, prompts: list[Encoded], shift: int = 0, steps: int = 10) -> list[float]:
    """Of each step's logits from those of one pass over prompt and answer so far. shift: added to the next position."""
    cache = model.speaker.prefill(prompts, steps + 1, use_adapter=True)
    cache.position_ids.add_(shift)
    found, spoken = [], [[] for _ in prompts]
    logits = cache.logits[: len(prompts)].clone()
    for _ in range(steps):
        tokens = logits.argmax(-1)
        for row, token in zip(spoken, tokens.tolist(), strict=True):
            row.append(token)
        logits = model.speaker.decode_step(cache, tokens, use_adapter=True).clone()
        kept = [part.clone() for part in (cache.lengths, cache.position_ids)]
        other = Generator(model.decoder, model.features)
        texts = [longer(prompt, row) for prompt, row in zip(prompts, spoken, strict=True)]
        full = other.prefill(texts, 1, use_adapter=True).logits[: len(prompts)]
        assert all(torch.equal(a, b) for a, b in zip(kept, (cache.lengths, cache.position_ids), strict=True))
        found.append((logits - full).abs().max().item())
    return found


def test_every_steps_logits_are_those_of_a_full_pass(bench: Any, model: FastModel, asked: list[Example]) -> None:
    assert max(distances(model, prepared(bench, asked))) < 1e-4


def test_the_comparison_can_fail(bench: Any, model: FastModel, asked: list[Example]) -> None:
    """Negative control: a next position that is off by one shows in every step."""
    assert min(distances(model, prepared(bench, asked), shift=1, steps=3)) > 1e-2


def test_prompts_cut_into_passes_are_the_prompts(
    bench: Any, model: FastModel, asked: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = prepared(bench, asked)
    whole = model.speaker.prefill(prompts, 1, use_adapter=True).logits[: len(prompts)].clone()
    monkeypatch.setattr("lorgnette.inference.generator.MAX_PREFILL_TOKENS", 60)
    cut = Generator(model.decoder, model.features).prefill(prompts, 1, use_adapter=True).logits[: len(prompts)]
    torch.testing.assert_close(cut, whole, atol=1e-4, rtol=0)


def test_a_changed_adapter_answers_at_once(bench: Any, tiny: Path, asked: list[Example]) -> None:
    """What the optimizer writes is what the next answer is made with, recorded or not."""
    model = fast(bench, tiny)
    before = [said(decode.generate_answers(model, bench.encoder, asked, SAMPLING, adapter="t")) for _ in range(2)]
    for linear in model.decoder.linears:
        linear.weight[:, linear.in_features :].zero_()
    after = said(decode.generate_answers(model, bench.encoder, asked, SAMPLING, adapter="t"))
    assert before[0] == before[1] != after
    assert after == said(decode.generate_answers(model, bench.encoder, asked, SAMPLING))


@pytest.fixture(scope="module")
def demo() -> Any:
    """The built-in model, which has learned to speak and to stop, with an adapter that disturbs it."""
    checkpoint, encoder = (
        BaseCheckpoint.from_folder(BUILT_IN_MODEL),
        Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(112, 112))),
    )
    model = add_adapter(load_base_model(checkpoint, CPU, torch.float32), checkpoint.family, LORA, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
    features = Features(
        VisionTower.from_checkpoint(checkpoint, CPU, torch.float32), encoder.image_processor, is_live=False
    )
    return SimpleNamespace(model=model, encoder=encoder, features=features, engine=SimpleNamespace(device=CPU))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder, chance = tmp_path_factory.mktemp("drawings"), random.Random(3)
    made = []
    for i in range(5):
        draw_scene(sample_scene(chance)).save(folder / f"{i}.png")
        turn = Turn("user", (Image(folder / f"{i}.png"), "COCO Yes:"))
        made.append(Example(str(i), (turn,), folder / "captions.csv", i))
    return made


def test_the_built_in_models_captions(demo: Any, drawings: list[Example], adapter: str | None) -> None:
    """Its own tower and decoder against transformers', sentences of different lengths in a batch."""
    sampling = SamplingParams(max_new_tokens=90, batch_size=3)
    wanted = said(hf_generate.generate_answers(demo.model, demo.encoder, drawings, sampling, adapter=adapter))
    assert (
        said(decode.generate_answers(fast(demo, BUILT_IN_MODEL), demo.encoder, drawings, sampling, adapter=adapter))
        == wanted
    )
    if adapter is None:
        assert all(stopped for _, stopped in wanted)
        assert len({len(text) for text, _ in wanted}) > 1


def test_a_decoder_without_room_for_an_adapter(demo: Any, drawings: list[Example]) -> None:
    checkpoint = BaseCheckpoint.from_folder(BUILT_IN_MODEL)
    shape = empty_adapter_shape(TextConfig.from_hf_config(load_hf_config(checkpoint)))
    model = FastModel(load_decoder(checkpoint, shape, CPU, torch.float32), None, demo.features)
    wanted = said(decode.generate_answers(fast(demo, BUILT_IN_MODEL), demo.encoder, drawings, SAMPLING))
    for name in (None, "merged"):
        assert said(decode.generate_answers(model, demo.encoder, drawings, SAMPLING, adapter=name)) == wanted


@NEEDS_CUDA
def test_bf16_is_no_further_from_fp32_than_transformers(
    make_bench: Callable[..., Any], tiny: Path, asked: list[Example]
) -> None:
    """The logits of every answer's first token, ours from the cache's pass and theirs from their own forward."""
    exact, half = (make_bench(LORA, ENCODE, CUDA, dtype) for dtype in (torch.float32, torch.bfloat16))
    prompts = prepared(exact, asked)
    prepared(half, asked)
    wanted = fast(exact, tiny).speaker.prefill(prompts, 1, use_adapter=True).logits[: len(prompts)].clone()
    ours = fast(half, tiny, torch.bfloat16).speaker.prefill(prompts, 1, use_adapter=True).logits[: len(prompts)]
    half.model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        inputs = [hf_generate._pad_batch([prompt], half.encoder, CUDA) for prompt in prompts]
        theirs = torch.cat([half.model(**one).logits[:, -1].float() for one in inputs])

    def error(logits: Tensor) -> float:
        return (logits - wanted).square().mean().sqrt().item()

    assert 0 < error(ours) <= 1.1 * error(theirs)
