"""Answers equal those of transformers' `generate`, token for token; each decode step's logits equal a full pass."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.engine.loading import load_decoder
from lorgnette.engine.peft_engine import add_adapter, load_base_model
from lorgnette.features.image_features import Features
from lorgnette.inference import decode, hf_generate
from lorgnette.inference.generator import Generator
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.vision_tower import VisionTower
from lorgnette.processing.processor import Processor
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import Encoded, Example, Image, Turn

PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=16, dropout=0.0)
SAMPLING = SamplingParams(max_new_tokens=12)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


FAMILIES = [{}, {"model_type": "qwen2_5_vl", "is_tied": False}, {"model_type": "qwen3_vl"}]
"""Options of make_pair. The first is Qwen2-VL."""
IDS = [str(options.get("model_type", "qwen2_vl")) for options in FAMILIES]

FIRST_FAMILY = pytest.mark.parametrize("options", FAMILIES[:1], ids=IDS[:1], indirect=True)
"""For what no family changes."""
FIRST_AND_LAST = pytest.mark.parametrize("options", FAMILIES[::2], ids=IDS[::2], indirect=True)
"""Without deepstack and with it."""


def build_generator(pair: Any, dtype: torch.dtype = torch.float32) -> Generator:
    """The pair's weights and adapter in the fast engine's decoder."""
    checkpoint = BaseCheckpoint.from_folder(pair.folder)
    shape = AdapterShape(checkpoint.load_text_config(), LORA.target_modules, LORA.rank, LORA.alpha / LORA.rank)
    decoder = load_decoder(checkpoint, shape, pair.engine.device, dtype)
    adapter = FlatLoraParams(shape, pair.engine.device)
    state = {n.replace(".default.", "."): p.detach() for n, p in pair.model.named_parameters() if "lora_" in n}
    adapter.load_state_dict(state)
    adapter.attach(decoder)
    return Generator(decoder, pair.features)


@pytest.fixture(scope="module", params=FAMILIES, ids=IDS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=[CPU, pytest.param(CUDA, marks=NEEDS_CUDA)], ids=str)
def pair(make_pair: Callable[..., Any], options: dict[str, Any], request: pytest.FixtureRequest) -> Any:
    return make_pair(LORA, PROCESSOR, request.param, torch.float32, **options)


@pytest.fixture(scope="module")
def generator(pair: Any) -> Generator:
    return build_generator(pair)


@pytest.fixture(scope="module")
def examples(conversations: list[Example], example: Callable[..., Example]) -> list[Example]:
    """The suite's conversations, and prompts that share a prefix, end in an image or are repeated."""
    return [
        *conversations,
        example(("user", "no image, and longer"), ("assistant", "a")),
        example(("user", 0, 1, 2, 3, "which?"), ("assistant", "b")),
        example(("user", "look: ", 4), ("assistant", "c")),
        conversations[0],
    ]


@pytest.fixture(scope="module", params=["tuned", None], ids=["tuned", "base"])
def adapter(request: pytest.FixtureRequest) -> str | None:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def expected(pair: Any, examples: list[Example], adapter: str | None) -> list[tuple[str, bool]]:
    """transformers' answers in batches of one: no padding."""
    single = replace(SAMPLING, batch_size=1)
    return to_pairs(hf_generate.generate_answers(pair.model, pair.processor, examples, single, adapter=adapter))


def to_pairs(predictions: Any) -> list[tuple[str, bool]]:
    return [(p.text, p.is_complete) for p in predictions]


@pytest.mark.parametrize(
    ("options", "adapter"),
    [*((options, "tuned") for options in FAMILIES), (FAMILIES[0], None), (FAMILIES[2], None)],
    ids=[*(f"{name}-tuned" for name in IDS), f"{IDS[0]}-base", f"{IDS[2]}-base"],
    indirect=True,
)  # Qwen2.5-VL's decoder is Qwen2-VL's
def test_greedy_answers_equal_transformers(
    pair: Any,
    generator: Generator,
    examples: list[Example],
    expected: list[tuple[str, bool]],
    adapter: str | None,
    options: dict[str, Any],
) -> None:
    for batch_size in [4] if options or adapter is None else [1, 4, 32]:
        sampling = replace(SAMPLING, batch_size=batch_size)
        answers = decode.generate_answers(generator, pair.processor, examples, sampling, adapter=adapter)
        assert to_pairs(answers) == expected
    assert len({text for text, _ in expected}) > 4


@FIRST_FAMILY
def test_the_adapter_changes_the_answers(pair: Any, generator: Generator, examples: list[Example]) -> None:
    tuned, base = (
        to_pairs(decode.generate_answers(generator, pair.processor, examples, SAMPLING, adapter=name))
        for name in ("t", None)
    )
    assert tuned != base


@FIRST_FAMILY
def test_an_answer_ends_where_transformers_ends_it(pair: Any, generator: Generator, examples: list[Example]) -> None:
    """The end tokens are ones the tiny model generates: at once, later, and never, in one batch."""
    prompts = encode_prompts(pair, examples)
    all_logits = decode.generate_tokens(generator, prompts, choose_greedily, 12, [], use_adapter=True)
    eos_token_ids = [int(all_logits[0, 0]), int(all_logits[1, 4])]
    rows = decode.generate_tokens(generator, prompts, choose_greedily, 12, eos_token_ids, use_adapter=True).tolist()
    lengths = set()
    for prompt, row, unstopped in zip(prompts, rows, all_logits.tolist(), strict=True):
        length = next((i for i, token in enumerate(unstopped) if token in eos_token_ids), 12)
        lengths.add(length)
        assert row == [*unstopped[: length + 1], *[unstopped[min(length, 11)]] * 12][: len(row)]
        assert generate_with_transformers(pair, prompt, eos_token_ids) == unstopped[: length + 1]
    assert 0 in lengths
    assert len(lengths) > 1


def choose_greedily(logits: Tensor, index: int) -> Tensor:
    return logits.argmax(-1)


def encode_prompts(pair: Any, examples: Sequence[Example]) -> list[Encoded]:
    prompts = [pair.processor.encode(example, add_generation_prompt=True) for example in examples]
    assert not pair.features.prepare(grid for prompt in prompts for grid in prompt.grids)
    return prompts


def generate_with_transformers(pair: Any, prompt: Encoded, eos_token_ids: list[int]) -> list[int]:
    from transformers import GenerationConfig

    pair.model.eval()
    inputs = hf_generate._pad_batch([prompt], pair.processor, pair.engine.device)
    settings = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=eos_token_ids, pad_token_id=eos_token_ids[0]
    )
    with torch.no_grad():
        row = pair.model.generate(**inputs, generation_config=settings)[0]
    return row[len(prompt.input_ids) :].tolist()  # type: ignore[no-any-return]


@FIRST_FAMILY
def test_generation_stops_when_all_answers_have_ended(pair: Any, generator: Generator, examples: list[Example]) -> None:
    prompts = encode_prompts(pair, examples[:1] * 3)
    first = int(decode.generate_tokens(generator, prompts, choose_greedily, 1, [], use_adapter=True)[0, 0])
    assert decode.generate_tokens(generator, prompts, choose_greedily, 100, [first], use_adapter=True).shape == (
        3,
        decode.CHECK_INTERVAL,
    )


def extend_prompt(prompt: Encoded, tokens: Sequence[int]) -> Encoded:
    """The prompt with the answer so far."""
    answer_ids = np.array(tokens, np.int32)
    position_ids = prompt.position_ids.max() + 1 + np.arange(len(answer_ids), dtype=np.int32)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, answer_ids]),
        position_ids=np.concatenate([prompt.position_ids, np.stack([position_ids] * 3)], 1),
    )


def compare_with_full_passes(
    generator: Generator, prompts: list[Encoded], shift: int = 0, steps: int = 10
) -> list[float]:
    """Per step, the largest difference to a full pass over prompt and answer. shift: added to the next position."""
    cache = generator.prefill(prompts, steps + 1, use_adapter=True)
    cache.position_ids.add_(shift)
    errors, answers = [], [[] for _ in prompts]
    logits = cache.logits[: len(prompts)].clone()
    for _ in range(steps):
        tokens = logits.argmax(-1)
        for row, token in zip(answers, tokens.tolist(), strict=True):
            row.append(token)
        logits = generator.decode_step(cache, tokens, use_adapter=True).clone()
        state = [part.clone() for part in (cache.lengths, cache.position_ids)]
        fresh = Generator(generator.decoder, generator.features)
        extended = [extend_prompt(prompt, row) for prompt, row in zip(prompts, answers, strict=True)]
        full_logits = fresh.prefill(extended, 1, use_adapter=True).logits[: len(prompts)]
        assert all(torch.equal(a, b) for a, b in zip(state, (cache.lengths, cache.position_ids), strict=True))
        errors.append((logits - full_logits).abs().max().item())
    return errors


@FIRST_AND_LAST
def test_every_steps_logits_equal_a_full_pass(pair: Any, generator: Generator, examples: list[Example]) -> None:
    assert max(compare_with_full_passes(generator, encode_prompts(pair, examples))) < 1e-4


@FIRST_FAMILY
def test_a_wrong_position_shows_in_every_step(pair: Any, generator: Generator, examples: list[Example]) -> None:
    """Negative control: the next position is off by one."""
    assert min(compare_with_full_passes(generator, encode_prompts(pair, examples), shift=1, steps=3)) > 1e-2


@FIRST_AND_LAST
def test_deepstack_reaches_the_logits_of_prompts_with_images(
    pair: Any, generator: Generator, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control."""
    prompts = encode_prompts(pair, examples)
    logits = generator.prefill(prompts, 1, use_adapter=True).logits[: len(prompts)].clone()
    monkeypatch.setattr("lorgnette.inference.generator.add_level", lambda *_: None)
    without_levels = generator.prefill(prompts, 1, use_adapter=True).logits[: len(prompts)]
    has_images = torch.tensor([bool(prompt.grids) for prompt in prompts])
    is_different = (logits - without_levels).abs().amax(1).cpu() > 1e-2
    assert torch.equal(is_different, has_images & bool(generator.decoder.config.num_deepstack_levels))
    assert has_images.any()
    assert not has_images.all()


@FIRST_AND_LAST
def test_prefill_in_microbatches_gives_the_same_logits(
    pair: Any, generator: Generator, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = encode_prompts(pair, examples)
    all_logits = generator.prefill(prompts, 1, use_adapter=True).logits[: len(prompts)].clone()
    monkeypatch.setattr("lorgnette.inference.generator.MAX_PREFILL_TOKENS", 60)
    split_logits = (
        Generator(generator.decoder, generator.features).prefill(prompts, 1, use_adapter=True).logits[: len(prompts)]
    )
    torch.testing.assert_close(split_logits, all_logits, atol=1e-4, rtol=0)


@FIRST_FAMILY
def test_a_changed_adapter_is_used_at_once(pair: Any, examples: list[Example]) -> None:
    """The next answer uses what the optimizer wrote, captured or not."""
    generator = build_generator(pair)
    before = [
        to_pairs(decode.generate_answers(generator, pair.processor, examples, SAMPLING, adapter="t")) for _ in range(2)
    ]
    for linear in generator.decoder.linears:
        linear.weight[:, linear.in_features :].zero_()
    after = to_pairs(decode.generate_answers(generator, pair.processor, examples, SAMPLING, adapter="t"))
    assert before[0] == before[1] != after
    assert after == to_pairs(decode.generate_answers(generator, pair.processor, examples, SAMPLING))


@pytest.fixture(scope="module")
def demo() -> Any:
    """The built-in model, trained to end its answers, with a random adapter."""
    checkpoint, processor = (
        BaseCheckpoint.from_folder(BUILT_IN_MODEL),
        Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(112, 112))),
    )
    model = add_adapter(load_base_model(checkpoint, CPU, torch.float32), checkpoint.family, LORA, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02)
    features = Features(
        VisionTower.from_checkpoint(checkpoint, CPU, torch.float32), processor.image_processor, is_live=False
    )
    engine = SimpleNamespace(device=CPU)
    return SimpleNamespace(model=model, processor=processor, features=features, engine=engine, folder=BUILT_IN_MODEL)


@pytest.fixture(scope="module")
def scene_examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder, rng = tmp_path_factory.mktemp("drawings"), random.Random(3)
    scenes = []
    for i in range(3):
        draw_scene(sample_scene(rng)).save(folder / f"{i}.png")
        turn = Turn("user", (Image(folder / f"{i}.png"), "COCO Yes:"))
        scenes.append(Example(str(i), (turn,), folder / "captions.csv", i))
    return scenes


def test_captions_of_the_built_in_model_equal_transformers(
    demo: Any, scene_examples: list[Example], adapter: str | None
) -> None:
    """Tower and decoder against transformers', with answers of different lengths in a batch."""
    sampling = SamplingParams(max_new_tokens=90 if adapter is None else 40, batch_size=3)
    expected = to_pairs(
        hf_generate.generate_answers(demo.model, demo.processor, scene_examples, sampling, adapter=adapter)
    )
    assert (
        to_pairs(
            decode.generate_answers(build_generator(demo), demo.processor, scene_examples, sampling, adapter=adapter)
        )
        == expected
    )
    if adapter is None:
        assert all(is_complete for _, is_complete in expected)
        assert len({len(text) for text, _ in expected}) > 1


def test_a_decoder_without_adapter_columns(demo: Any, scene_examples: list[Example]) -> None:
    checkpoint = BaseCheckpoint.from_folder(BUILT_IN_MODEL)
    shape = AdapterShape.empty(checkpoint.load_text_config())
    generator = Generator(load_decoder(checkpoint, shape, CPU, torch.float32), demo.features)
    expected = to_pairs(decode.generate_answers(build_generator(demo), demo.processor, scene_examples, SAMPLING))
    for name in (None, "merged"):
        assert (
            to_pairs(decode.generate_answers(generator, demo.processor, scene_examples, SAMPLING, adapter=name))
            == expected
        )


@NEEDS_CUDA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_to_fp32_as_transformers(
    make_pair: Callable[..., Any], options: dict[str, Any], examples: list[Example], dtype: torch.dtype
) -> None:
    """The logits of every answer's first token, from prefill and from transformers' forward."""
    fp32, half = (make_pair(LORA, PROCESSOR, CUDA, kind, **options) for kind in (torch.float32, dtype))
    prompts = encode_prompts(fp32, examples)
    encode_prompts(half, examples)
    expected = build_generator(fp32).prefill(prompts, 1, use_adapter=True).logits[: len(prompts)].clone()
    actual = build_generator(half, dtype).prefill(prompts, 1, use_adapter=True).logits[: len(prompts)]
    half.model.eval()
    with torch.no_grad(), torch.autocast("cuda", dtype):
        inputs = [hf_generate._pad_batch([prompt], half.processor, CUDA) for prompt in prompts]
        theirs = torch.cat([half.model(**batch).logits[:, -1].float() for batch in inputs])

    def rms_error(logits: Tensor) -> float:
        return (logits - expected).square().mean().sqrt().item()

    assert 0 < rms_error(actual) <= 1.1 * rms_error(theirs)
