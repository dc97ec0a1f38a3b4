"""Parity 5 and 6: the adapter is PEFT's own, in both directions, and merged it answers as it did unmerged."""

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
from lorgnette.engine import peft_adapter as adapters
from lorgnette.engine.hf_loading import load_base_model as load_weights
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.hf_generate import EOS_TOKENS, SamplingParams, generate_answers
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.packing import pack
from lorgnette.types import Encoded, Example

ENCODE = ProcessorSettings(image_size=None, image_tokens=(4, 30))
LORA = LoraSettings(rank=8, alpha=32, dropout=0.05)
SAMPLING = SamplingParams(max_new_tokens=12, batch_size=2)
CONTRACT = AdapterMetadata(
    family="qwen2_vl", model="tiny", revision=None, fingerprint="f", prompt="p", chat_template="t", processor=ENCODE
)


@pytest.fixture(scope="module")
def bench(make_bench: Callable[..., Any]) -> Any:
    return make_bench(LORA, ENCODE)


@pytest.fixture(scope="module")
def saved(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    peft_files.write_adapter(folder, adapters.get_adapter_state(bench.model), FAMILIES["qwen2_vl"], LORA, CONTRACT)
    return folder


@pytest.fixture(scope="module")
def encoded(bench: Any, conversations: list[Example]) -> list[Encoded]:
    return [bench.encoder.encode(example) for example in conversations]


def plain(tiny: Path) -> Any:
    """The base model as anybody would load it."""
    return Qwen2VLForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32).eval()


def plain_logits(model: Any, bench: Any, encoded: list[Encoded]) -> Tensor:
    inputs = bench.padded_inputs(encoded)
    labels = inputs.pop("labels")
    with torch.no_grad():
        return model(**inputs).logits[:, :-1][labels[:, 1:] >= 0]


def our_losses(bench: Any, model: Any, encoded: list[Encoded]) -> Tensor:
    features = Features(HfVisionTower(model.get_base_model()), bench.encoder.rule, is_live=False)
    batch = pack(encoded, 1)
    features.prepare(batch.grids)
    with torch.no_grad():
        return ReferenceEngine(model.eval(), features).compute_label_losses(batch)


def plain_texts(model: Any, bench: Any, examples: list[Example]) -> list[str]:
    control = bench.encoder.tokenizer.control
    settings = GenerationConfig(
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=[control[end] for end in EOS_TOKENS],
        pad_token_id=control[EOS_TOKENS[1]],
    )
    texts = []
    for example in examples:  # one by one: no padding that could hide a fault of ours
        inputs = bench.padded_inputs([bench.encoder.encode(example, answer=True)])
        inputs.pop("labels")
        row = model.generate(**inputs, generation_config=settings)[0, inputs["input_ids"].shape[1] :].tolist()
        texts.append(bench.encoder.tokenizer.text_of(row))
    return texts


def test_plain_peft_loads_ours(
    tiny: Path, bench: Any, saved: Path, conversations: list[Example], encoded: list[Encoded]
) -> None:
    theirs = PeftModel.from_pretrained(plain(tiny), saved).eval()
    losses = our_losses(bench, bench.model, encoded)
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    logits = plain_logits(theirs, bench, encoded)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, targets, reduction="none"), losses, atol=1e-5, rtol=0
    )
    pictured = [conversations[i] for i in (0, 1, 3, 4)]
    given = [p.text for p in generate_answers(bench.model, bench.encoder, pictured, SAMPLING, adapter="tuned")]
    assert given == plain_texts(theirs, bench, pictured)
    assert len(set(given)) > 1


def test_ours_loads_plain_pefts(tiny: Path, bench: Any, tmp_path: Path, encoded: list[Encoded]) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    theirs = get_peft_model(plain(tiny), LoraConfig(r=4, lora_alpha=8, target_modules=names, init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    CONTRACT.write(tmp_path)
    base = load_weights(BaseCheckpoint.from_folder(tiny), torch.device("cpu"), torch.float32)
    losses = our_losses(bench, adapters.load_adapter(base, tmp_path), encoded)
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    logits = plain_logits(theirs.eval(), bench, encoded)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, targets, reduction="none"), losses, atol=1e-5, rtol=0
    )


def test_the_comparison_can_fail(
    tiny: Path, bench: Any, saved: Path, conversations: list[Example], encoded: list[Encoded]
) -> None:
    """Negative control: the base model, and an adapter scaled by 1.1, give other losses and texts."""
    losses = our_losses(bench, bench.model, encoded)
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    base = plain(tiny)
    untuned = torch.nn.functional.cross_entropy(plain_logits(base, bench, encoded), targets, reduction="none")
    assert (untuned - losses).abs().max() > 1e-2
    pictured = conversations[:1]
    assert plain_texts(base, bench, pictured) == [
        p.text for p in generate_answers(bench.model, bench.encoder, pictured, SAMPLING)
    ]
    settings = json.loads((saved / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny"


def test_without_the_adapter_the_base_answers(tiny: Path, bench: Any, conversations: list[Example]) -> None:
    pictured = conversations[:2]
    tuned, untuned = (
        [p.text for p in generate_answers(bench.model, bench.encoder, pictured, SAMPLING, adapter=name)]
        for name in ("tuned", None)
    )
    assert untuned == plain_texts(plain(tiny), bench, pictured)
    assert tuned != untuned


def test_merged_equals_adapter(tiny: Path, bench: Any, saved: Path, encoded: list[Encoded]) -> None:
    merged = PeftModel.from_pretrained(plain(tiny), saved).merge_and_unload()
    targets = torch.from_numpy(pack(encoded, 1).targets).long()
    logits = plain_logits(merged, bench, encoded)
    found = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(found, our_losses(bench, bench.model, encoded), atol=1e-5, rtol=0)


def test_sampled_answers_follow_the_seed(bench: Any, conversations: list[Example]) -> None:
    def drawn(seed: int) -> list[str]:
        sampling = SamplingParams(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=seed)
        return [p.text for p in generate_answers(bench.model, bench.encoder, conversations, sampling, adapter="tuned")]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
