"""Answers in order, each as if asked alone. (That they are transformers' own: parity/test_decode.py.)"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import TARGET_MODULES, ProcessorSettings
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.engine.loading import FastModel, build_features
from lorgnette.errors import LorgnetteError
from lorgnette.inference.decode import CHECK_INTERVAL, generate_answers, generate_tokens
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, Prediction, Turn

SAMPLING = SamplingParams(max_new_tokens=6, batch_size=2)
CPU = torch.device("cpu")
Ask = Callable[..., list[Prediction]]


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ProcessorSettings(image_size=None, image_tokens=(4, 30)))


@pytest.fixture(scope="module")
def model(tiny: Path, encoder: Processor) -> FastModel:
    """A model whose adapter changes its answers."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    shape = AdapterShape(TextConfig.from_hf_config(load_hf_config(checkpoint)), TARGET_MODULES, 4, 4.0)
    adapter = FlatLoraParams(shape, CPU)
    torch.manual_seed(2)
    adapter.values.data.normal_(0, 0.2)
    decoder = load_decoder(checkpoint, shape, CPU, torch.float32)
    adapter.attach(decoder)
    return FastModel(decoder, adapter, build_features(checkpoint, encoder.image_processor, CPU, torch.float32))


@pytest.fixture(scope="module")
def ask(model: FastModel, encoder: Processor) -> Ask:
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


def test_progress_is_told_batch_by_batch(ask: Ask, conversations: list[Example]) -> None:
    seen: list[int] = []
    ask(conversations, seen=seen.append)
    assert seen == [2, 2, 1]
    assert ask([]) == []


def test_the_adapter_is_set_aside_only_while_the_base_answers(ask: Ask, conversations: list[Example]) -> None:
    tuned, base = ask(conversations[:3]), ask(conversations[:3], adapter=None)
    assert {p.adapter for p in tuned} == {"tuned"}
    assert {p.adapter for p in base} == {None}
    assert texts(tuned) != texts(base)


def test_before_and_after_can_be_asked_side_by_side(
    ask: Ask, model: FastModel, encoder: Processor, conversations: list[Example]
) -> None:
    """One iterator of answers, half read, does not decide what another one says."""
    one = replace(SAMPLING, batch_size=1)
    both = [generate_answers(model, encoder, conversations[:3], one, adapter=name) for name in (None, "tuned")]
    pairs = list(zip(*both, strict=True))
    assert texts([base for base, _ in pairs]) == texts(ask(conversations[:3], one, adapter=None))
    assert texts([tuned for _, tuned in pairs]) == texts(ask(conversations[:3], one))


def test_sampled_answers_follow_seed_and_example_and_not_the_batch(ask: Ask, conversations: list[Example]) -> None:
    def said(**sampling: Any) -> list[str]:
        return texts(ask(conversations[:3], replace(SAMPLING, **sampling)))

    assert said(seed=1) == said(seed=2)
    drawn = said(seed=1, temperature=2.0)
    assert drawn == said(seed=1, temperature=2.0, batch_size=3) != said(seed=2, temperature=2.0)
    assert said(seed=3, temperature=2.0, top_p=1e-6) == said()
    assert len(set(texts(ask([conversations[0]] * 3, replace(SAMPLING, temperature=2.0))))) > 1


def test_the_host_looks_seldom_and_stops_when_all_have_ended(
    model: FastModel, encoder: Processor, conversations: list[Example]
) -> None:
    prompts = [encoder.encode(example, add_generation_prompt=True) for example in conversations]

    def scripted(place: int) -> list[int]:
        return [7 if place >= row + at else 100 + place for row, at in enumerate((0, 0, 5, 6, 0))]

    def choose(logits: torch.Tensor, place: int) -> torch.Tensor:
        return torch.tensor(scripted(place))

    rows = generate_tokens(model.speaker, prompts, choose, 50, [7, 8], use_adapter=True)
    assert rows.shape == (5, 2 * CHECK_INTERVAL)  # the last one ends at its tenth token
    assert rows[3, :10].tolist() == [*range(100, 109), 7]
    assert (rows[3, 9:] == 7).all()
    assert (rows[0] == 7).all()


def test_a_picture_that_cannot_be_read_is_an_error_with_its_name(
    ask: Ask, pictures: list[Path], tmp_path: Path
) -> None:
    gone, cut = tmp_path / "gone.png", tmp_path / "cut.png"
    cut.write_bytes(pictures[0].read_bytes()[:2000])  # its header is whole
    for path in (gone, cut):
        with pytest.raises(LorgnetteError, match=path.name):
            ask([Example("x", (Turn("user", (Image(path), "what?")),), Path("x.csv"), 1)])
