"""Answers come in order, and do not depend on the batch. (They equal transformers': parity/test_adapter.py.)"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine.peft_engine import add_adapter, get_adapter_state, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.inference.hf_generate import generate_answers
from lorgnette.inference.sampling import SamplingParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, Prediction, Turn

SAMPLING = SamplingParams(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope="module")
def processor(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    """A model whose adapter changes its answers."""
    base = load_base_model(BaseCheckpoint.from_folder(tiny), torch.device("cpu"), torch.float32)
    tuned = add_adapter(base, FAMILIES["qwen2_vl"], LoraSettings(rank=4, alpha=16), seed=0)
    torch.manual_seed(2)
    for parameter in get_adapter_state(tuned).values():
        parameter.data.normal_(0, 0.2)
    return tuned


Answer = Callable[..., list[Prediction]]


@pytest.fixture(scope="module")
def answer(model: Any, processor: Processor) -> Answer:
    def generate(examples: list[Example], sampling: SamplingParams = SAMPLING, **options: Any) -> list[Prediction]:
        return list(generate_answers(model, processor, examples, sampling, **{"adapter": "tuned", **options}))

    return generate


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def test_answers_keep_order_and_do_not_depend_on_the_batch(answer: Answer, conversations: list[Example]) -> None:
    alone = answer(conversations, replace(SAMPLING, batch_size=1))
    assert [p.example for p in alone] == conversations
    assert len(set(texts(alone))) > 2
    for size in (2, 32):
        assert texts(answer(conversations, replace(SAMPLING, batch_size=size))) == texts(alone)


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


def test_an_answer_ends_at_an_end_token_or_is_said_to_be_cut_off(
    answer: Answer, model: Any, processor: Processor, conversations: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(p.is_complete for p in answer(conversations[:1], replace(SAMPLING, max_new_tokens=1)))
    ids = processor.tokenizer.encode("a red car")
    control = processor.tokenizer.control_tokens

    def generate(*, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        ends = [control["<|im_end|>"], control["<|endoftext|>"], control["<|vision_start|>"]]
        rows = [[*ids, end, *ids] for end in ends]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    answers = answer([conversations[2]] * 3, replace(SAMPLING, batch_size=3))
    assert texts(answers) == ["a red car", "a red car", "a red cara red car"]
    assert [p.is_complete for p in answers] == [True, True, False]


def test_the_adapter_is_disabled_only_for_the_base_model(answer: Answer, conversations: list[Example]) -> None:
    tuned, base = answer(conversations[:3]), answer(conversations[:3], adapter=None)
    assert {p.adapter for p in tuned} == {"tuned"}
    assert {p.adapter for p in base} == {None}
    assert texts(tuned) != texts(base)


def test_two_iterators_of_answers_are_independent(
    answer: Answer, model: Any, processor: Processor, conversations: list[Example]
) -> None:
    """Reading one with the adapter and one without in turn changes neither."""
    single = replace(SAMPLING, batch_size=1)
    both = [generate_answers(model, processor, conversations[:3], single, adapter=name) for name in (None, "tuned")]
    pairs = list(zip(*both, strict=True))
    assert texts([base for base, _ in pairs]) == texts(answer(conversations[:3], single, adapter=None))
    assert texts([tuned for _, tuned in pairs]) == texts(answer(conversations[:3], single))


def test_only_sampling_depends_on_the_seed(answer: Answer, conversations: list[Example]) -> None:
    def sample(**sampling: Any) -> list[str]:
        return texts(answer(conversations[:2], replace(SAMPLING, **sampling)))

    assert sample(seed=1) == sample(seed=2)
    assert sample(seed=1, temperature=2.0) == sample(seed=1, temperature=2.0) != sample(seed=2, temperature=2.0)
    assert sample(seed=3, temperature=2.0, top_p=1e-6) == sample()


def test_an_unreadable_image_is_an_error_with_its_name(answer: Answer, tmp_path: Path) -> None:
    example = Example("x", (Turn("user", (Image(tmp_path / "gone.png"), "what?")),), Path("x.csv"), 1)
    with pytest.raises(LorgnetteError, match=r"gone\.png"):
        answer([example])
