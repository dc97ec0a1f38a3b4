"""Answers in order, each as if asked alone. (That they are transformers' own: parity/test_adapter.py.)"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine.hf_loading import load_base_model
from lorgnette.engine.peft_adapter import add_adapter, get_adapter_state
from lorgnette.errors import LorgnetteError
from lorgnette.inference.hf_generate import SamplingParams, generate_answers
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, Prediction, Turn

SAMPLING = SamplingParams(max_new_tokens=6, batch_size=2)


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Processor:
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


Ask = Callable[..., list[Prediction]]


@pytest.fixture(scope="module")
def ask(model: Any, encoder: Processor) -> Ask:
    def asked(examples: list[Example], sampling: SamplingParams = SAMPLING, **rest: Any) -> list[Prediction]:
        return list(generate_answers(model, encoder, examples, sampling, **{"adapter": "tuned", **rest}))

    return asked


def texts(predictions: list[Prediction]) -> list[str]:
    return [prediction.text for prediction in predictions]


def test_answers_come_in_order_and_do_not_depend_on_the_batch(ask: Ask, conversations: list[Example]) -> None:
    alone = ask(conversations, replace(SAMPLING, batch_size=1))
    assert [p.example for p in alone] == conversations
    assert len(set(texts(alone))) > 2
    for size in (2, 32):
        assert texts(ask(conversations, replace(SAMPLING, batch_size=size))) == texts(alone)


def test_what_the_example_says_after_the_question_is_not_looked_at(ask: Ask, conversations: list[Example]) -> None:
    first = conversations[0]
    other = replace(first, turns=(first.turns[0], Turn("assistant", ("something else",))))
    prompt = first.without_answer
    assert len(set(texts(ask([first, other, prompt])))) == 1


def test_progress_is_told_batch_by_batch(ask: Ask, conversations: list[Example]) -> None:
    seen: list[int] = []
    ask(conversations, seen=seen.append)
    assert seen == [2, 2, 1]
    assert ask([]) == []


def test_an_answer_ends_at_an_end_token_or_is_said_to_be_cut_off(
    ask: Ask, model: Any, encoder: Processor, conversations: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(p.is_complete for p in ask(conversations[:1], replace(SAMPLING, max_new_tokens=1)))
    ids = encoder.tokenizer.encode("a red car")
    control = encoder.tokenizer.control_tokens

    def spoken(*, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
        ends = [control["<|im_end|>"], control["<|endoftext|>"], control["<|vision_start|>"]]
        rows = [[*ids, end, *ids] for end in ends]
        return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    monkeypatch.setattr(model, "generate", spoken)
    found = ask([conversations[2]] * 3, replace(SAMPLING, batch_size=3))
    assert texts(found) == ["a red car", "a red car", "a red cara red car"]
    assert [p.is_complete for p in found] == [True, True, False]


def test_the_adapter_is_set_aside_only_while_the_base_answers(ask: Ask, conversations: list[Example]) -> None:
    tuned, base = ask(conversations[:3]), ask(conversations[:3], adapter=None)
    assert {p.adapter for p in tuned} == {"tuned"}
    assert {p.adapter for p in base} == {None}
    assert texts(tuned) != texts(base)


def test_before_and_after_can_be_asked_side_by_side(
    ask: Ask, model: Any, encoder: Processor, conversations: list[Example]
) -> None:
    """One iterator of answers, half read, does not decide what another one says."""
    one = replace(SAMPLING, batch_size=1)
    both = [generate_answers(model, encoder, conversations[:3], one, adapter=name) for name in (None, "tuned")]
    pairs = list(zip(*both, strict=True))
    assert texts([base for base, _ in pairs]) == texts(ask(conversations[:3], one, adapter=None))
    assert texts([tuned for _, tuned in pairs]) == texts(ask(conversations[:3], one))


def test_greedy_is_the_same_under_every_seed_and_sampling_is_not(ask: Ask, conversations: list[Example]) -> None:
    def said(**sampling: Any) -> list[str]:
        return texts(ask(conversations[:2], replace(SAMPLING, **sampling)))

    assert said(seed=1) == said(seed=2)
    assert said(seed=1, temperature=2.0) == said(seed=1, temperature=2.0) != said(seed=2, temperature=2.0)
    assert said(seed=3, temperature=2.0, top_p=1e-6) == said()


def test_a_picture_that_cannot_be_read_is_an_error_with_its_name(ask: Ask, tmp_path: Path) -> None:
    asked = Example("x", (Turn("user", (Image(tmp_path / "gone.png"), "what?")),), Path("x.csv"), 1)
    with pytest.raises(LorgnetteError, match=r"gone\.png"):
        ask([asked])
