"""Plain transformers and peft, in a process of their own, find what we find."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine import peft_adapter as adapters
from lorgnette.engine.hf_loading import load_base_model
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.inference.hf_generate import SamplingParams, generate_answers
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import Example
from lorgnette.verification import peft_check, reference_sample
from lorgnette.verification.peft_check import MAX_NEW_TOKENS, Distance, check_with_peft

CPU = torch.device("cpu")
LORA = LoraSettings(rank=4, alpha=8)


def lively(tiny: Path, encode: ProcessorSettings, folder: Path) -> tuple[Any, Processor]:
    """A tiny model with an adapter moved from zero, saved into the folder with its witness."""
    checkpoint = BaseCheckpoint.from_folder(tiny)
    base, encoder = load_base_model(checkpoint, CPU, torch.float32), Processor.from_folder(tiny, encode)
    model = adapters.add_adapter(base, FAMILIES["qwen2_vl"], LORA, seed=0)
    torch.manual_seed(1)
    for parameter in adapters.get_adapter_state(model).values():
        parameter.data.normal_(0, 0.1)
    contract = AdapterMetadata(
        family="qwen2_vl", model=str(tiny), revision=None, fingerprint=checkpoint.fingerprint, prompt="What?",
        chat_template=encoder.chat_template.source, processor=encode,
    )  # fmt: skip
    folder.mkdir()
    peft_files.write_adapter(folder, adapters.get_adapter_state(model), FAMILIES["qwen2_vl"], LORA, contract)
    engine = ReferenceEngine(model, Features(HfVisionTower(base), encoder.image_processor, is_live=False))
    asked = reference_sample.make_sample(folder, encoder, "What?")
    engine.features.prepare(asked.grids)
    reference_sample.record_sample(engine, asked, encoder, "What?").save(folder)
    return model.eval(), encoder


@pytest.mark.parametrize(
    "encode",
    [ProcessorSettings(image_size=(56, 84)), ProcessorSettings(image_size=None, image_tokens=(4, 30))],
    ids=["fixed", "free"],
)
def test_it_finds_what_we_find(
    encode: ProcessorSettings, tiny: Path, conversations: list[Example], tmp_path: Path
) -> None:
    """Odd shapes, several pictures, text alone; the pictures at a fixed size, and as they are within limits."""
    model, encoder = lively(tiny, encode, tmp_path / "adapter")
    examples = conversations[:4]
    found = check_with_peft(
        BaseCheckpoint.from_folder(tiny), tmp_path / "adapter", encoder, "What?", examples, device="cpu"
    )
    assert (found.load_error, found.lorgnette_modules) == (None, ())
    assert (found.names.num_matched, found.names.missing, found.names.unexpected) == (28, (), ())
    kept = reference_sample.ReferenceSample.load(tmp_path / "adapter")
    assert kept is not None
    assert found.reference_sample is not None
    assert found.reference_sample.loss == pytest.approx(kept.loss, abs=1e-5)
    for name, adapter in (("adapter", "tuned"), ("base", None)):
        sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, batch_size=1)
        ours = [p.text for p in generate_answers(model, encoder, examples, sampling, adapter=adapter)]
        assert [getattr(sample, name) for sample in found.answers] == ours
    assert all(sample.merged == sample.adapter != sample.base for sample in found.answers)
    assert all(sample.adapter_effect.total_variation > 0.05 for sample in found.answers)
    assert all(sample.merge_error.max_logprob_difference < 1e-3 for sample in found.answers)


def test_an_adapter_that_plain_peft_refuses(tiny: Path, tmp_path: Path) -> None:
    _, encoder = lively(tiny, ProcessorSettings(image_size=(28, 28)), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    found = check_with_peft(BaseCheckpoint.from_folder(tiny), tmp_path / "adapter", encoder, "What?", device="cpu")
    assert found.load_error is not None
    assert found.load_error.startswith("size mismatch for ")
    assert not found.answers


def test_a_process_that_breaks_off(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder = lively(tiny, ProcessorSettings(image_size=(28, 28)), tmp_path / "adapter")
    broken = tmp_path / "broken.py"
    for code, said in (
        ("raise ValueError('odd')", "break off: ValueError: odd"),
        ("raise RuntimeError('CUDA out of memory. Tried')", "break off: memory is full"),
        ("import os; os.kill(os.getpid(), 9)", "break off: memory is full"),
    ):
        broken.write_text(code)
        monkeypatch.setattr(peft_check, "WORKER", broken)
        with pytest.raises(LorgnetteError, match=said):
            check_with_peft(BaseCheckpoint.from_folder(tiny), tmp_path / "adapter", encoder, "What?", device="cpu")


def test_distances_add_up_by_token() -> None:
    parts = [
        Distance(num_tokens=1, kl=0.4, total_variation=0.2, num_argmax_changes=1, max_logprob_difference=2.0),
        Distance(num_tokens=3, kl=0.0, total_variation=0.6, num_argmax_changes=0, max_logprob_difference=3.0),
    ]
    whole = Distance.from_parts(parts)
    assert (whole.num_tokens, whole.num_argmax_changes, whole.max_logprob_difference) == (4, 1, 3.0)
    assert (whole.kl, whole.total_variation) == (pytest.approx(0.1), pytest.approx(0.5))
