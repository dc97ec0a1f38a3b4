"""Answers of both engines come in order, and do not depend on the batch. (They equal transformers': parity/.)"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import TARGET_MODULES, LoraSettings, ProcessorSettings
from lorgnette.engine.loading import build_features, load_decoder
from lorgnette.engine.peft_engine import add_adapter, get_adapter_state, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.inference import decode, hf_generate, sampling
from lorgnette.inference.decode import CHECK_INTERVAL, generate_tokens
from lorgnette.inference.generator import Generator
from lorgnette.inference.sampling import AnswerWatcher, SamplingParams
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, Prediction, Turn

SAMPLING = SamplingParams(max_new_tokens=6, batch_size=2)
CPU = torch.device("cpu")
Answer = Callable[..., list[Prediction]]
Generate = Callable[..., Iterator[Prediction]]


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


@pytest.fixture(scope="module")
def generator(tiny: Path, processor: Processor) -> Generator:
    """A model of the fast engine, whose adapter changes its answers."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    shape = AdapterShape(checkpoint.load_text_config(), TARGET_MODULES, 4, 4.0)
    adapter = FlatLoraParams(shape, CPU)
    torch.manual_seed(2)
    adapter.values.data.normal_(0, 0.2)
    decoder = load_decoder(checkpoint, shape, CPU, torch.float32)
    adapter.attach(decoder)
    return Generator(decoder, build_features(checkpoint, processor.image_processor, CPU, torch.float32))


@pytest.fixture(scope="module")
def peft_model(tiny: Path) -> Any:
    """A model of the reference engine, whose adapter changes its answers."""
    base = load_base_model(BaseCheckpoint.from_folder(tiny), CPU, torch.float32)
    tuned = add_adapter(base, FAMILIES["qwen2_vl"], LoraSettings(rank=4, alpha=16), seed=0)
    torch.manual_seed(2)
    for parameter in get_adapter_state(tuned).values():
        parameter.data.normal_(0, 0.2)
    return tuned


@pytest.fixture(scope="module", params=["fast", "reference"])
def generate(request: pytest.FixtureRequest, processor: Processor) -> Generate:
    """`generate_answers` of an engine, with its model and processor."""
    if request.param == "fast":
        return partial(decode.generate_answers, request.getfixturevalue("generator"), processor)
    return partial(hf_generate.generate_answers, request.getfixturevalue("peft_model"), processor)


@pytest.fixture(scope="module")
def answer(generate: Generate) -> Answer:
    def list_answers(examples: list[Example], sampling: SamplingParams = SAMPLING, **options: Any) -> list[Prediction]:
        return list(generate(examples, sampling, **{"adapter": "tuned", **options}))

    return list_answers


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def test_answers_keep_order_and_do_not_depend_on_the_batch(answer: Answer, conversations: list[Example]) -> None:
    alone = answer(conversations, replace(SAMPLING, batch_size=1))
    assert [p.example for p in alone] == conversations
    assert len(set(texts(alone))) > 2
    for size in (2, 32):
        assert texts(answer(conversations, replace(SAMPLING, batch_size=size))) == texts(alone)


def test_a_batch_that_does_not_fit_is_answered_in_halves(
    generator: Generator, processor: Processor, conversations: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    prefill, most = Generator.prefill, 1

    def run(self: Generator, prompts: list[Any], *rest: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("short")
        return prefill(self, prompts, *rest, **options)

    expected = texts(list(decode.generate_answers(generator, processor, conversations, SAMPLING, "tuned")))
    monkeypatch.setattr(Generator, "prefill", run)
    progress: list[int] = []
    large = replace(SAMPLING, batch_size=4)
    answers = decode.generate_answers(generator, processor, conversations, large, "tuned", progress.append)
    assert texts(list(answers)) == expected
    assert sizes == [4, 2, 1, 1, 1, 1, 1]
    assert progress == [1] * 5
    most = 0
    with pytest.raises(torch.OutOfMemoryError, match="short"):
        list(decode.generate_answers(generator, processor, conversations, large, "tuned"))


def test_the_example_s_own_answer_is_not_read(answer: Answer, conversations: list[Example]) -> None:
    first = conversations[0]
    other = replace(first, turns=(first.turns[0], Turn("assistant", ("something else",))))
    prompt = first.without_answer()
    assert len(set(texts(answer([first, other, prompt])))) == 1


def test_progress_is_reported_per_batch(answer: Answer, conversations: list[Example]) -> None:
    progress: list[int] = []
    answer(conversations, on_progress=progress.append)
    assert progress == [2, 2, 1]
    assert answer([]) == []


def test_the_adapter_is_disabled_only_for_the_base_model(answer: Answer, conversations: list[Example]) -> None:
    tuned, base = answer(conversations[:3]), answer(conversations[:3], adapter=None)
    assert {p.adapter for p in tuned} == {"tuned"}
    assert {p.adapter for p in base} == {None}
    assert texts(tuned) != texts(base)


def test_two_iterators_of_answers_are_independent(
    answer: Answer, generate: Generate, conversations: list[Example]
) -> None:
    """Reading one with the adapter and one without in turn changes neither."""
    single = replace(SAMPLING, batch_size=1)
    both = [generate(conversations[:3], single, adapter=name) for name in (None, "tuned")]
    pairs = list(zip(*both, strict=True))
    assert texts([base for base, _ in pairs]) == texts(answer(conversations[:3], single, adapter=None))
    assert texts([tuned for _, tuned in pairs]) == texts(answer(conversations[:3], single))


def test_only_sampling_depends_on_the_seed(answer: Answer, conversations: list[Example]) -> None:
    def sample(**sampling: Any) -> list[str]:
        return texts(answer(conversations[:2], replace(SAMPLING, **sampling)))

    assert sample(seed=1) == sample(seed=2)
    assert sample(seed=1, temperature=2.0) == sample(seed=1, temperature=2.0) != sample(seed=2, temperature=2.0)
    assert sample(seed=3, temperature=2.0, top_p=1e-6) == sample()


def test_an_answer_without_an_end_token_is_said_to_be_cut(answer: Answer, conversations: list[Example]) -> None:
    assert not any(p.is_complete for p in answer(conversations[:1], replace(SAMPLING, max_new_tokens=1)))


def test_the_tokens_of_growing_answers_are_shown(
    answer: Answer, processor: Processor, conversations: list[Example]
) -> None:
    """By example, without end tokens; an answer that is ended keeps what was shown, and the others go on."""
    sampling = replace(SAMPLING, max_new_tokens=3 * CHECK_INTERVAL)
    whole = answer(conversations[:3], sampling)
    shown: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}

    def show(index: int, ids: Sequence[int]) -> bool:
        shown[index].append(list(ids))
        return index != 1 or len(shown[1]) < 2

    answers = answer(conversations[:3], sampling, on_tokens=show)
    for index in (0, 2):
        assert answers[index] == whole[index]
        assert processor.tokenizer.decode(shown[index][-1]) == whole[index].text
        assert len(shown[index]) > 1
        assert all(longer[: len(ids)] == ids for ids, longer in pairwise(shown[index]))
    assert len(shown[1]) == 2, "it is not shown again"
    assert answers[1].text == processor.tokenizer.decode(shown[1][-1])
    assert whole[1].text.startswith(answers[1].text)
    assert len(answers[1].text) < len(whole[1].text)
    assert not answers[1].is_complete
    ids = processor.tokenizer.encode("a red car")
    eos = processor.tokenizer.control_tokens["<|im_end|>"]
    calls: list[tuple[int, list[int]]] = []
    watcher = AnswerWatcher(lambda index, ids: bool(calls.append((index, list(ids)))), [5, 6], [eos])
    assert watcher.show([[*ids, eos, eos], ids]) == [1], "an answer with its end token has ended by itself"
    assert watcher.show([[*ids, eos, eos, eos], [*ids, 1]]) == [1]
    assert calls == [(5, ids), (6, ids)]
    assert watcher.cut([[*ids, eos, eos, eos], [*ids, 1]]) == [[*ids, eos, eos, eos], ids]


def test_an_unreadable_image_is_an_error_with_its_name(answer: Answer, image_files: list[Path], tmp_path: Path) -> None:
    gone, cut = tmp_path / "gone.png", tmp_path / "cut.png"
    cut.write_bytes(image_files[0].read_bytes()[:2000])  # the header is complete
    for path in (gone, cut):
        with pytest.raises(LorgnetteError, match=path.name):
            answer([Example("x", (Turn("user", (Image(path), "what?")),), Path("x.csv"), 1)])


def test_sampled_answers_of_the_fast_engine_depend_on_seed_and_example_only(
    generator: Generator, processor: Processor, conversations: list[Example]
) -> None:
    def sample(examples: list[Example], **sampling: Any) -> list[str]:
        params = replace(SAMPLING, temperature=2.0, **sampling)
        return texts(list(decode.generate_answers(generator, processor, examples, params, adapter="tuned")))

    assert sample(conversations[:3]) == sample(conversations[:3], batch_size=3)
    assert len(set(sample([conversations[0]] * 3))) > 1


def test_answers_of_the_reference_engine_end_at_either_end_token(
    peft_model: Any, processor: Processor, conversations: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = processor.tokenizer.encode("a red car")
    control = processor.tokenizer.control_tokens

    def generate(*, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        ends = [control["<|im_end|>"], control["<|endoftext|>"], control["<|vision_start|>"]]
        rows = [[*ids, end, *ids] for end in ends]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    monkeypatch.setattr(peft_model, "generate", generate)
    three = replace(SAMPLING, batch_size=3)
    answers = list(hf_generate.generate_answers(peft_model, processor, [conversations[2]] * 3, three, adapter="tuned"))
    assert texts(answers) == ["a red car", "a red car", "a red cara red car"]
    assert [p.is_complete for p in answers] == [True, True, False]


def test_decoding_stops_when_a_check_finds_all_answers_ended(
    generator: Generator, processor: Processor, conversations: list[Example]
) -> None:
    prompts = [processor.encode(example, add_generation_prompt=True) for example in conversations]
    generator.features.prepare([grid for prompt in prompts for grid in prompt.grids])

    def sampler(logits: torch.Tensor, token_index: int) -> torch.Tensor:
        """Answer n ends at token n, later for two of them."""
        ends = (row + delay for row, delay in enumerate((0, 0, 5, 6, 0)))
        return torch.tensor([7 if token_index >= end else 100 + token_index for end in ends])

    rows = generate_tokens(generator, prompts, sampler, 50, [7, 8], use_adapter=True)
    assert rows.shape == (5, 2 * CHECK_INTERVAL)  # the last one ends at its tenth token
    assert rows[3, :10].tolist() == [*range(100, 109), 7]
    assert (rows[3, 9:] == 7).all()
    assert (rows[0] == 7).all()


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_probabilities_of_tokens_are_those_of_a_forward_pass(
    generate: Generate, peft_model: Any, processor: Processor, conversations: list[Example],
    monkeypatch: pytest.MonkeyPatch, temperature: float | None,
) -> None:  # fmt: skip
    calls: list[tuple[Any, ...]] = []
    for module in (decode, hf_generate):
        monkeypatch.setattr(module, "build_prediction", lambda *arguments: calls.append(arguments))
    params = replace(SAMPLING, temperature=temperature, top_p=0.9, with_boxes=True)
    list(generate(conversations[:3], params, adapter=None))
    assert len(calls) == 3
    for _, example, answer_ids, _, probabilities in calls:
        inputs = hf_generate._pad_batch([processor.encode(example, add_generation_prompt=True)], processor, CPU)
        start = inputs["input_ids"].shape[1]
        for name, value in (("input_ids", answer_ids), ("attention_mask", [1] * 6), ("mm_token_type_ids", [0] * 6)):
            inputs[name] = torch.cat([inputs[name], torch.tensor([value])], dim=1)
        with torch.no_grad(), peft_model.disable_adapter():
            logits = peft_model(**inputs).logits[0]
        expected = [logits[start - 1 + i].softmax(-1)[token].item() for i, token in enumerate(answer_ids)]
        assert probabilities == pytest.approx(expected, abs=1e-5)
        shifted = [logits[start + i].softmax(-1)[token].item() for i, token in enumerate(answer_ids)]
        assert probabilities != pytest.approx(shifted, abs=1e-3)


def test_probabilities_are_computed_only_for_boxes(
    answer: Answer, conversations: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    for module in (sampling, hf_generate):
        monkeypatch.setattr(module, "compute_probabilities", refuse)
    assert len(answer(conversations[:1])) == 1
    with pytest.raises(AssertionError):
        answer(conversations[:1], replace(SAMPLING, with_boxes=True))
