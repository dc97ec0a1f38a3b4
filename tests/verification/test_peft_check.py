"""A process of plain transformers + PEFT gives the same answers and losses as lorgnette."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine import peft_engine
from lorgnette.engine.peft_engine import ReferenceEngine, load_base_model
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.hf_generate import generate_answers
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import Example
from lorgnette.verification import peft_check, reference_sample
from lorgnette.verification.peft_check import Distance, check_with_peft

pytestmark = pytest.mark.usefixtures("forked_peft_worker")

CPU = torch.device("cpu")
LORA = LoraSettings(rank=4, alpha=8)


def save_random_adapter(tiny: Path, settings: ProcessorSettings, folder: Path) -> tuple[Any, Processor]:
    """Save an adapter with random A and B and its reference sample."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    base, processor = load_base_model(checkpoint, CPU, torch.float32), Processor.from_folder(tiny, settings)
    family = checkpoint.family
    model = peft_engine.add_adapter(base, family, LORA, seed=0)
    torch.manual_seed(1)
    for parameter in peft_engine.get_adapter_state(model).values():
        parameter.data.normal_(0, 0.1)
    metadata = AdapterMetadata(
        family=family.model_type, model=str(tiny), revision=None, fingerprint=checkpoint.fingerprint, prompt="What?",
        chat_template=processor.chat_template.source, processor=settings,
    )  # fmt: skip
    folder.mkdir()
    peft_files.write_adapter(folder, peft_engine.get_adapter_state(model), family, LORA, metadata)
    engine = ReferenceEngine(model, Features(HfVisionTower(base), processor.image_processor, is_live=False))
    encoded = reference_sample.make_sample(processor, "What?")
    engine.features.prepare(encoded.grids)
    reference_sample.record_sample(engine, encoded, processor, "What?").save(folder)
    return model.eval(), processor


@pytest.mark.parametrize(("model_type", "size"), [*((name, None) for name in FAMILIES), ("qwen2_vl", (56, 84))])
def test_worker_agrees_with_lorgnette(
    model_type: str,
    size: tuple[int, int] | None,
    tiny_family: Callable[[str], Path],
    conversations: list[Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In every family, with odd image shapes, several images and text alone, of a fixed size and of their own."""
    monkeypatch.setattr(peft_check, "MAX_NEW_TOKENS", 6)
    folder, adapter = tiny_family(model_type), tmp_path / "adapter"
    settings = ProcessorSettings(image_size=size, image_tokens=(4, 30))
    model, processor = save_random_adapter(folder, settings, adapter)
    examples = conversations[1:3]
    result = check_with_peft(BaseCheckpoint.from_folder(folder), adapter, processor, "What?", examples, device="cpu")
    assert (result.load_error, result.lorgnette_modules) == (None, ())
    assert result.saved_names == result.expected_names == tuple(sorted(SavedAdapter.load(adapter).state))
    sample = reference_sample.ReferenceSample.load(adapter)
    assert sample is not None
    assert result.sample_loss == pytest.approx(sample.loss, abs=1e-5)
    for field, name in (("adapter", "tuned"), ("base", None)):
        sampling = SamplingParams(max_new_tokens=6, batch_size=1)
        predictions = generate_answers(model, processor, examples, sampling, adapter=name)
        texts = [getattr(answer, field).rpartition("</think>")[2].lstrip("\n") for answer in result.answers]
        assert texts == [p.text.lstrip("\n") for p in predictions]
    assert all(answer.merged == answer.adapter != answer.base for answer in result.answers)
    assert all(answer.adapter_effect.total_variation > 0.05 for answer in result.answers)
    assert all(answer.merge_error and answer.merge_error.max_logprob_difference < 1e-3 for answer in result.answers)


def test_adapter_that_peft_cannot_load(tiny: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    _, processor = save_random_adapter(tiny, ProcessorSettings(image_size=(28, 28)), adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    result = check_with_peft(BaseCheckpoint.from_folder(tiny), adapter, processor, "What?", device="cpu")
    assert result.load_error is not None
    assert "size mismatch for " in result.load_error.splitlines()[1]
    assert not result.answers


def test_failed_process(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, script = tmp_path / "adapter", tmp_path / "broken.py"
    _, processor = save_random_adapter(tiny, ProcessorSettings(image_size=(28, 28)), adapter)
    monkeypatch.setattr(peft_check, "WORKER", script)
    for code, message in (
        ("raise ValueError('odd')", "process failed: ValueError: odd"),
        ("raise RuntimeError('CUDA out of memory. Tried')", "process failed: out of memory"),
        ("import os; os.kill(os.getpid(), 9)", "process failed: out of memory"),
    ):
        script.write_text(code)
        with pytest.raises(LorgnetteError, match=message):
            check_with_peft(BaseCheckpoint.from_folder(tiny), adapter, processor, "What?", device="cpu")


def test_distances_are_weighted_by_tokens() -> None:
    parts = [
        Distance(num_tokens=1, kl=0.4, total_variation=0.2, num_argmax_changes=1, max_logprob_difference=2.0),
        Distance(num_tokens=3, kl=0.0, total_variation=0.6, num_argmax_changes=0, max_logprob_difference=3.0),
    ]
    whole = Distance.from_parts(parts)
    assert (whole.num_tokens, whole.num_argmax_changes, whole.max_logprob_difference) == (4, 1, 3.0)
    assert (whole.kl, whole.total_variation) == (pytest.approx(0.1), pytest.approx(0.5))
