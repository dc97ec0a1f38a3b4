"""Parity 5: the adapter is PEFT's own in both directions, and the merged model answers like the adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import GenerationConfig, Qwen2VLForConditionalGeneration

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine import peft_engine
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.hf_generate import generate_answers
from lorgnette.inference.sampling import EOS_TOKENS, SamplingParams
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.packing import pack
from lorgnette.types import Encoded, Example

PROCESSOR = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=32, dropout=0.05)
SAMPLING = SamplingParams(max_new_tokens=12, batch_size=2)
METADATA = AdapterMetadata(
    family="qwen2_vl", model="tiny", revision=None, fingerprint="f", prompt="p", chat_template="t", processor=PROCESSOR
)


@pytest.fixture(scope="module")
def pair(make_pair: Callable[..., Any]) -> Any:
    return make_pair(LORA, PROCESSOR)


@pytest.fixture(scope="module")
def saved(pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    peft_files.write_adapter(folder, peft_engine.get_adapter_state(pair.model), FAMILIES["qwen2_vl"], LORA, METADATA)
    return folder


@pytest.fixture(scope="module")
def encoded(pair: Any, conversations: list[Example]) -> list[Encoded]:
    return [pair.processor.encode(example) for example in conversations]


def load_plain(tiny: Path) -> Any:
    """Load the base model in plain transformers."""
    return Qwen2VLForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32).eval()


def compute_plain_logits(model: Any, pair: Any, encoded: list[Encoded]) -> Tensor:
    inputs = pair.build_padded_inputs(encoded)
    labels = inputs.pop("labels")
    with torch.no_grad():
        return model(**inputs).logits[:, :-1][labels[:, 1:] >= 0]


def compute_our_losses(pair: Any, model: Any, encoded: list[Encoded]) -> Tensor:
    features = Features(HfVisionTower(model.get_base_model()), pair.processor.image_processor, is_live=False)
    batch = pack(encoded, 1)
    features.prepare(batch.grids)
    with torch.no_grad():
        return ReferenceEngine(model.eval(), features).compute_label_losses(batch)


def generate_plain_texts(model: Any, pair: Any, examples: list[Example]) -> list[str]:
    control_tokens = pair.processor.tokenizer.control_tokens
    settings = GenerationConfig(
        max_new_tokens=12,
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


def test_plain_peft_loads_ours(
    tiny: Path, pair: Any, saved: Path, conversations: list[Example], encoded: list[Encoded]
) -> None:
    theirs = PeftModel.from_pretrained(load_plain(tiny), saved).eval()
    losses = compute_our_losses(pair, pair.model, encoded)
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    logits = compute_plain_logits(theirs, pair, encoded)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, targets, reduction="none"), losses, atol=1e-5, rtol=0
    )
    with_images = [conversations[i] for i in (0, 1, 3, 4)]
    texts = [p.text for p in generate_answers(pair.model, pair.processor, with_images, SAMPLING, adapter="tuned")]
    assert texts == generate_plain_texts(theirs, pair, with_images)
    assert len(set(texts)) > 1


def test_ours_loads_plain_pefts(tiny: Path, pair: Any, tmp_path: Path, encoded: list[Encoded]) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = get_peft_model(
        load_plain(tiny), LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False)
    )
    theirs.save_pretrained(tmp_path)
    METADATA.write(tmp_path)
    base = peft_engine.load_base_model(BaseCheckpoint.from_folder(tiny), torch.device("cpu"), torch.float32)
    losses = compute_our_losses(pair, peft_engine.load_adapter(base, tmp_path), encoded)
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    logits = compute_plain_logits(theirs.eval(), pair, encoded)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, targets, reduction="none"), losses, atol=1e-5, rtol=0
    )


def test_the_comparison_can_fail(
    tiny: Path, pair: Any, saved: Path, conversations: list[Example], encoded: list[Encoded]
) -> None:
    """Negative control: the base model gives other losses and texts."""
    losses = compute_our_losses(pair, pair.model, encoded)
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    base = load_plain(tiny)
    untuned = torch.nn.functional.cross_entropy(compute_plain_logits(base, pair, encoded), targets, reduction="none")
    assert (untuned - losses).abs().max() > 1e-2
    with_images = conversations[:1]
    assert generate_plain_texts(base, pair, with_images) == [
        p.text for p in generate_answers(pair.model, pair.processor, with_images, SAMPLING)
    ]
    settings = json.loads((saved / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny"


def test_without_the_adapter_the_base_answers(tiny: Path, pair: Any, conversations: list[Example]) -> None:
    with_images = conversations[:2]
    tuned, untuned = (
        [p.text for p in generate_answers(pair.model, pair.processor, with_images, SAMPLING, adapter=name)]
        for name in ("tuned", None)
    )
    assert untuned == generate_plain_texts(load_plain(tiny), pair, with_images)
    assert tuned != untuned


def test_merged_equals_adapter(tiny: Path, pair: Any, saved: Path, encoded: list[Encoded]) -> None:
    merged = PeftModel.from_pretrained(load_plain(tiny), saved).merge_and_unload()
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    logits = compute_plain_logits(merged, pair, encoded)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses, compute_our_losses(pair, pair.model, encoded), atol=1e-5, rtol=0)


def test_sampled_answers_follow_the_seed(pair: Any, conversations: list[Example]) -> None:
    def sample_answers(seed: int) -> list[str]:
        sampling = SamplingParams(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=seed)
        return [p.text for p in generate_answers(pair.model, pair.processor, conversations, sampling, adapter="tuned")]

    assert sample_answers(1) == sample_answers(1)
    assert sample_answers(1) != sample_answers(2)
