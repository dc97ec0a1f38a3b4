"""The witness is asked in training and again afterwards: whatever has changed between the two shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine import peft_adapter
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.models.qwen2_vl.family import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.verification import reference_sample
from lorgnette.verification.reference_sample import IMAGE_FILE, SAMPLE_FILE, TOLERANCE, ReferenceSample

ENCODE = ProcessorSettings(
    image_size=(56, 84), max_length=8
)  # fewer tokens than the witness has: it is asked all the same


def write(folder: Path, model: Any, encoder: Processor, *, live: bool = False) -> None:
    """As a training does it."""
    engine = ReferenceEngine(
        model, Features(HfVisionTower(model.get_base_model()), encoder.image_processor, is_live=live)
    )
    folder.mkdir(exist_ok=True)
    asked = reference_sample.make_sample(folder, encoder, "What?")
    engine.features.prepare(asked.grids)
    reference_sample.record_sample(engine, asked, encoder, "What?").save(folder)


@pytest.fixture
def encoder(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, ENCODE)


@pytest.fixture
def kept(tuned: Any, encoder: Processor, tmp_path: Path) -> Path:
    """A folder with the witness of a tuned model."""
    write(tmp_path, tuned, encoder)
    return tmp_path


def test_it_is_small_and_complete(kept: Path, encoder: Processor) -> None:
    assert {path.name for path in kept.iterdir()} == {IMAGE_FILE, SAMPLE_FILE}
    assert sum(path.stat().st_size for path in kept.iterdir()) < 20_000
    made = ReferenceSample.load(kept)
    assert made is not None
    assert (made.prompt, made.processor, made.dtype) == ("What?", ENCODE, "float32")
    assert list(made.prompt_ids).count(encoder.tokenizer.control_tokens["<|image_pad|>"]) == 2 * 3
    assert encoder.tokenizer.decode_with_control_tokens(made.prompt_ids).endswith(
        "What?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert encoder.tokenizer.decode_with_control_tokens(made.answer_ids).endswith(".<|im_end|>")
    assert made.describe_change(kept, encoder, "What?") is None


def test_asking_changes_nothing_about_a_training(tuned: Any, encoder: Processor, kept: Path, tmp_path: Path) -> None:
    """No random number is drawn, no gradient left."""
    tuned.train()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    write(tmp_path / "again", tuned, encoder)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in peft_adapter.get_adapter_state(tuned).values())
    assert (tmp_path / "again" / SAMPLE_FILE).read_bytes() == (kept / SAMPLE_FILE).read_bytes()
    tuned.eval()


def test_live_features_give_the_same_loss(tuned: Any, encoder: Processor, kept: Path, tmp_path: Path) -> None:
    write(tmp_path / "live", tuned, encoder, live=True)
    one, other = ReferenceSample.load(kept), ReferenceSample.load(tmp_path / "live")
    assert one is not None
    assert other is not None
    assert abs(one.loss - other.loss) < 1e-5


def test_other_weights_have_another_loss(loaded: Any, encoder: Processor, kept: Path, tmp_path: Path) -> None:
    """The tolerance is far below what another adapter makes of it, even on a model that knows nothing."""
    found = ReferenceSample.load(kept)
    assert found is not None
    for name in ("other", "half"):
        model = peft_adapter.add_adapter(loaded(), FAMILIES["qwen2_vl"], LoraSettings(rank=4, alpha=8), seed=0)
        torch.manual_seed(0)
        for parameter in peft_adapter.get_adapter_state(model).values():
            parameter.data.normal_(0, 0.05 if name == "half" else 0.1)
            if name == "half" and parameter.shape[0] > 4:
                parameter.data.zero_()
        write(tmp_path / name, model, encoder)
        now = ReferenceSample.load(tmp_path / name)
        assert now is not None
        assert abs(now.loss - found.loss) > 10 * TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": (56, 56)}, "image_size is [56, 56], was [56, 84]"),
        ({"size": None}, "image_size is None, was [56, 84]"),
        ({"image_tokens": (4, 9)}, "image_tokens is [4, 9], was [4, 1280]"),
        ({"end_token": "<|endoftext|>"}, "eos_token is <|endoftext|>, was template"),
    ],
)
def test_other_settings_are_named(kept: Path, tiny: Path, changed: dict[str, Any], said: str) -> None:
    found = ReferenceSample.load(kept)
    assert found is not None
    told = found.describe_change(kept, Processor.from_folder(tiny, ENCODE.model_copy(update=changed)), "What?")
    assert told is not None
    assert told.endswith(said)


def test_other_words_are_named(kept: Path, tiny: Path, encoder: Processor, tmp_path: Path) -> None:
    found = ReferenceSample.load(kept)
    assert found is not None
    assert found.describe_change(kept, encoder, "Why?") == "the prompt is another than in training: 'Why?', was 'What?'"
    base = shutil.copytree(tiny, tmp_path / "base")
    template = json.loads((base / "chat_template.json").read_text())["chat_template"]
    for path in base.glob("*template*"):
        path.write_text(json.dumps({"chat_template": template.replace("helpful", "short")}))
    told = found.describe_change(kept, Processor.from_folder(base, ENCODE), "What?")
    assert told is not None
    assert told.startswith("template, tokenizer or picture rule make other tokens than in training, from token ")
    assert "short" in told or "helpful" in told


def test_another_picture_rule_is_noticed(kept: Path, tiny: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    rule = json.loads((base / "preprocessor_config.json").read_text())
    (base / "preprocessor_config.json").write_text(json.dumps(rule | {"patch_size": 7}))
    found = ReferenceSample.load(kept)
    assert found is not None
    assert "other tokens than in training" in (
        found.describe_change(kept, Processor.from_folder(base, ENCODE), "What?") or ""
    )


def test_an_adapter_without_one(tmp_path: Path) -> None:
    assert ReferenceSample.load(tmp_path) is None
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / IMAGE_FILE)
    with pytest.raises(LorgnetteError, match=r"witness.json is missing"):
        ReferenceSample.load(tmp_path)
    for content in ("{", "{}", "[]"):
        (tmp_path / SAMPLE_FILE).write_text(content)
        with pytest.raises(LorgnetteError, match=r"witness.json cannot be read"):
            ReferenceSample.load(tmp_path)
    (tmp_path / IMAGE_FILE).unlink()
    with pytest.raises(LorgnetteError, match=r"witness.png is missing"):
        ReferenceSample.load(tmp_path)
