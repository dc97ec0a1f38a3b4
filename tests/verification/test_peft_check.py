"""Plain transformers and peft, in a process of their own, find what we find."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorgnette.config import Encode, Lora
from lorgnette.engine import peft_adapter as adapters
from lorgnette.engine.hf_loading import load
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, Tower
from lorgnette.inference.hf_generate import Sampling, answers
from lorgnette.lora import peft_files
from lorgnette.lora.metadata import Contract
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.processor import Encoder
from lorgnette.types import Example
from lorgnette.verification import peft_check, reference_sample
from lorgnette.verification.peft_check import MAX_NEW_TOKENS, Distance, ask

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8)


def lively(tiny: Path, encode: Encode, folder: Path) -> tuple[Any, Encoder]:
    """A tiny model with an adapter moved from zero, saved into the folder with its witness."""
    checkpoint = Checkpoint.at(tiny)
    base, encoder = load(checkpoint, CPU, torch.float32), Encoder.of_folder(tiny, encode)
    model = adapters.attach(base, FAMILIES["qwen2_vl"], LORA, seed=0)
    torch.manual_seed(1)
    for parameter in adapters.adapter_state(model).values():
        parameter.data.normal_(0, 0.1)
    contract = Contract(
        family="qwen2_vl", model=str(tiny), revision=None, fingerprint=checkpoint.fingerprint, prompt="What?",
        chat_template=encoder.template.source, encode=encode,
    )  # fmt: skip
    folder.mkdir()
    peft_files.write(folder, adapters.adapter_state(model), FAMILIES["qwen2_vl"], LORA, contract)
    engine = ReferenceEngine(model, Features(Tower(base), encoder.rule, live=False))
    asked = reference_sample.question(folder, encoder, "What?")
    engine.features.prepare(asked.grids)
    reference_sample.witnessed(engine, asked, encoder, "What?").write(folder)
    return model.eval(), encoder


@pytest.mark.parametrize(
    "encode", [Encode(size=(56, 84)), Encode(size=None, image_tokens=(4, 30))], ids=["fixed", "free"]
)
def test_it_finds_what_we_find(encode: Encode, tiny: Path, conversations: list[Example], tmp_path: Path) -> None:
    """Odd shapes, several pictures, text alone; the pictures at a fixed size, and as they are within limits."""
    model, encoder = lively(tiny, encode, tmp_path / "adapter")
    examples = conversations[:4]
    found = ask(Checkpoint.at(tiny), tmp_path / "adapter", encoder, "What?", examples, device="cpu")
    assert (found.failed, found.of_lorgnette) == (None, ())
    assert (found.names.matched, found.names.missing, found.names.left_over) == (28, (), ())
    kept = reference_sample.Witness.read(tmp_path / "adapter")
    assert kept is not None
    assert found.witness is not None
    assert found.witness.loss == pytest.approx(kept.loss, abs=1e-5)
    for name, adapter in (("adapter", "tuned"), ("base", None)):
        sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, batch_size=1)
        ours = [p.text for p in answers(model, encoder, examples, sampling, adapter=adapter)]
        assert [getattr(sample, name) for sample in found.samples] == ours
    assert all(sample.merged == sample.adapter != sample.base for sample in found.samples)
    assert all(sample.moved.total_variation > 0.05 for sample in found.samples)
    assert all(sample.rounded.largest < 1e-3 for sample in found.samples)


def test_an_adapter_that_plain_peft_refuses(tiny: Path, tmp_path: Path) -> None:
    _, encoder = lively(tiny, Encode(size=(28, 28)), tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    found = ask(Checkpoint.at(tiny), tmp_path / "adapter", encoder, "What?", device="cpu")
    assert found.failed is not None
    assert found.failed.startswith("size mismatch for ")
    assert not found.samples


def test_a_process_that_breaks_off(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, encoder = lively(tiny, Encode(size=(28, 28)), tmp_path / "adapter")
    broken = tmp_path / "broken.py"
    for code, said in (
        ("raise ValueError('odd')", "break off: ValueError: odd"),
        ("raise RuntimeError('CUDA out of memory. Tried')", "break off: memory is full"),
        ("import os; os.kill(os.getpid(), 9)", "break off: memory is full"),
    ):
        broken.write_text(code)
        monkeypatch.setattr(peft_check, "SCRIPT", broken)
        with pytest.raises(LorgnetteError, match=said):
            ask(Checkpoint.at(tiny), tmp_path / "adapter", encoder, "What?", device="cpu")


def test_distances_add_up_by_token() -> None:
    parts = [
        Distance(tokens=1, kl=0.4, total_variation=0.2, first_choices=1, largest=2.0),
        Distance(tokens=3, kl=0.0, total_variation=0.6, first_choices=0, largest=3.0),
    ]
    whole = Distance.over(parts)
    assert (whole.tokens, whole.first_choices, whole.largest) == (4, 1, 3.0)
    assert (whole.kl, whole.total_variation) == (pytest.approx(0.1), pytest.approx(0.5))
