"""Parity 5: the adapter is PEFT's own in both directions in every family, and the merged model answers like it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GenerationConfig

from lorgnette.config import TARGET_MODULES, LoraSettings, ProcessorSettings
from lorgnette.engine import peft_engine
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.hf_generate import generate_answers
from lorgnette.inference.sampling import EOS_TOKENS, SamplingParams
from lorgnette.lora import peft_files
from lorgnette.lora.inspect import inspect_adapter
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.packing import pack
from lorgnette.types import Encoded, Example

PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=32, dropout=0.05)
SAMPLING = SamplingParams(max_new_tokens=6, batch_size=2)
METADATA = AdapterMetadata(
    family="qwen2_vl", model="tiny", revision=None, fingerprint="f", prompt="p", chat_template="t", processor=PROCESSOR
)


class Plain(NamedTuple):
    """The losses of labels and the greedy answers of plain transformers."""

    losses: Tensor
    texts: list[str]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(make_pair: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    return make_pair(LORA, PROCESSOR, model_type=request.param)


@pytest.fixture(scope="module")
def saved(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    peft_files.write_adapter(folder, peft_engine.get_adapter_state(pair.model), pair.family, LORA, METADATA)
    return folder


@pytest.fixture(scope="module")
def encoded(pair: Any, conversations: list[Example]) -> list[Encoded]:
    return [pair.processor.encode(example) for example in conversations]


@pytest.fixture(scope="module")
def ours(pair: Any, encoded: list[Encoded]) -> Tensor:
    """Our losses with the adapter."""
    return compute_our_losses(pair, pair.model, encoded)


@pytest.fixture(scope="module")
def base(pair: Any, encoded: list[Encoded], conversations: list[Example]) -> Plain:
    """Without the adapter."""
    return run_plain(load_plain(pair), pair, encoded, conversations)


def load_plain(pair: Any) -> Any:
    """Load the base model in plain transformers."""
    return getattr(transformers, pair.family.class_name).from_pretrained(pair.folder, dtype=torch.float32).eval()


def run_plain(model: Any, pair: Any, encoded: list[Encoded], conversations: list[Example]) -> Plain:
    return Plain(compute_plain_losses(model, pair, encoded), generate_plain_texts(model, pair, conversations[:3]))


def compute_plain_losses(model: Any, pair: Any, encoded: list[Encoded]) -> Tensor:
    inputs = pair.build_padded_inputs(encoded)
    labels = inputs.pop("labels")
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1][labels[:, 1:] >= 0]
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def compute_our_losses(pair: Any, model: Any, encoded: list[Encoded]) -> Tensor:
    features = Features(HfVisionTower(model.get_base_model()), pair.processor.image_processor, is_live=False)
    batch = pack(encoded, 1)
    features.prepare(batch.grids)
    with torch.no_grad():
        return ReferenceEngine(model.eval(), features).compute_label_losses(batch)


def generate_our_texts(pair: Any, conversations: list[Example], adapter: str | None) -> list[str]:
    """Two prompts of different lengths in a batch: padding must not change an answer."""
    predictions = generate_answers(pair.model, pair.processor, conversations[:3], SAMPLING, adapter=adapter)
    return [prediction.text for prediction in predictions]


def generate_plain_texts(model: Any, pair: Any, examples: list[Example]) -> list[str]:
    control_tokens = pair.processor.tokenizer.control_tokens
    settings = GenerationConfig(
        max_new_tokens=SAMPLING.max_new_tokens,
        do_sample=False,
        eos_token_id=[control_tokens[token] for token in EOS_TOKENS],
        pad_token_id=control_tokens[EOS_TOKENS[1]],
    )
    texts = []
    for example in examples:  # one by one: padding could hide an error of ours
        inputs = pair.build_padded_inputs([pair.processor.encode(example, add_generation_prompt=True)])
        inputs.pop("labels")
        row = model.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :].tolist()
        texts.append(pair.processor.tokenizer.decode(row))
    return texts


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_plain_peft_loads_ours(
    pair: Any, saved: Path, ours: Tensor, base: Plain, conversations: list[Example], encoded: list[Encoded]
) -> None:
    """With the base model's losses and answers as negative controls, and the merged model."""
    model = PeftModel.from_pretrained(load_plain(pair), saved).eval()
    theirs = run_plain(model, pair, encoded, conversations)
    assert_equal(theirs.losses, ours)
    assert (base.losses - ours).abs().max() > 1e-2
    assert theirs.texts == generate_our_texts(pair, conversations, "tuned")
    assert base.texts == generate_our_texts(pair, conversations, None)
    assert theirs.texts != base.texts
    assert len(set(theirs.texts)) > 1
    assert_equal(compute_plain_losses(model.merge_and_unload(), pair, encoded), ours)
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_ours_loads_plain_pefts(pair: Any, tmp_path: Path, encoded: list[Encoded]) -> None:
    """PEFT's seven names adapt other modules than ours in some families; PEFT can adapt experts too."""
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if pair.family.expert_linears else None
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=list(TARGET_MODULES), target_parameters=experts, init_lora_weights=False
    )
    theirs = get_peft_model(load_plain(pair), config)
    theirs.save_pretrained(tmp_path)
    report = inspect_adapter(SavedAdapter.load(tmp_path))
    assert report.problems == ()
    assert ("it adapts experts" in str(report.merge_reason)) == bool(experts)
    METADATA.write(tmp_path)
    model = peft_engine.load_base_model(BaseCheckpoint.from_folder(pair.folder), torch.device("cpu"), torch.float32)
    losses = compute_our_losses(pair, peft_engine.load_adapter(model, tmp_path), encoded)
    assert_equal(compute_plain_losses(theirs.eval(), pair, encoded), losses)


def test_vllm_loads_it(saved: Path) -> None:
    """Its modules are linear layers of the decoder, under the names that vLLM knows."""
    assert inspect_adapter(SavedAdapter.load(saved)).merge_reason is None


def test_sampled_answers_follow_the_seed(make_pair: Callable[..., Any], conversations: list[Example]) -> None:
    pair = make_pair(LORA, PROCESSOR)

    def sample_answers(seed: int) -> list[str]:
        sampling = SamplingParams(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=seed)
        return [p.text for p in generate_answers(pair.model, pair.processor, conversations, sampling, adapter="tuned")]

    assert sample_answers(1) == sample_answers(1)
    assert sample_answers(1) != sample_answers(2)
