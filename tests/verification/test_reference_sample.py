"""A reference sample shows every change between training and the later check."""

import json
import shutil
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine import peft_engine
from lorgnette.engine.peft_engine import ReferenceEngine
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features, HfVisionTower
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.verification import reference_sample
from lorgnette.verification.reference_sample import IMAGE_FILE, SAMPLE_FILE, TOLERANCE, ReferenceSample

SETTINGS = ProcessorSettings(image_size=(56, 84), max_length=8)
"""The sample has more than 8 tokens: the limit does not apply to it."""


def save_sample(folder: Path, model: Any, processor: Processor, *, is_live: bool = False) -> ReferenceSample:
    """Record and save a sample as training does."""
    features = Features(HfVisionTower(model.get_base_model()), processor.image_processor, is_live=is_live)
    engine = ReferenceEngine(model, features)
    folder.mkdir(exist_ok=True)
    encoded = reference_sample.make_sample(processor, "What?")
    engine.features.prepare(encoded.grids)
    sample = reference_sample.record_sample(engine, encoded, processor, "What?")
    sample.save(folder)
    return sample


@pytest.fixture
def processor(tiny: Path) -> Processor:
    return Processor.from_folder(tiny, SETTINGS)


@pytest.fixture
def sample(tuned: Any, processor: Processor, tmp_path: Path) -> ReferenceSample:
    """The sample of a tuned model, also saved in tmp_path."""
    return save_sample(tmp_path, tuned, processor)


def test_sample_is_small_and_complete(sample: ReferenceSample, processor: Processor, tmp_path: Path) -> None:
    assert {path.name for path in tmp_path.iterdir()} == {IMAGE_FILE, SAMPLE_FILE}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 20_000
    assert ReferenceSample.load(tmp_path) == sample
    assert (sample.prompt, sample.processor, sample.dtype) == ("What?", SETTINGS, "float32")
    assert list(sample.prompt_ids).count(processor.tokenizer.control_tokens["<|image_pad|>"]) == 2 * 3
    decode = processor.tokenizer.decode_with_control_tokens
    assert decode(sample.prompt_ids).endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    assert decode(sample.answer_ids).endswith(".<|im_end|>")
    assert sample.describe_change(tmp_path, processor, "What?") is None


def test_recording_does_not_affect_training(
    tuned: Any, processor: Processor, sample: ReferenceSample, tmp_path: Path
) -> None:
    """It draws no random number and leaves no gradient."""
    tuned.train()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    assert save_sample(tmp_path / "second", tuned, processor) == sample
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(p.grad is not None and p.grad.any() for p in tuned.parameters())
    tuned.eval()


def test_live_features_give_the_same_loss(
    tuned: Any, processor: Processor, sample: ReferenceSample, tmp_path: Path
) -> None:
    live = save_sample(tmp_path / "live", tuned, processor, is_live=True)
    assert abs(live.loss - sample.loss) < 1e-5


def test_other_weights_give_another_loss(
    load_tiny_model: Any, processor: Processor, sample: ReferenceSample, tmp_path: Path
) -> None:
    """The difference is far above the tolerance, even for a model with random weights."""
    for name in ("other", "half"):
        model = peft_engine.add_adapter(load_tiny_model(), FAMILIES["qwen2_vl"], LoraSettings(rank=4, alpha=8), seed=0)
        torch.manual_seed(0)
        for parameter in peft_engine.get_adapter_state(model).values():
            parameter.data.normal_(0, 0.05 if name == "half" else 0.1)
            if name == "half" and parameter.shape[0] > 4:
                parameter.data.zero_()
        other = save_sample(tmp_path / name, model, processor)
        assert abs(other.loss - sample.loss) > 10 * TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"image_size": (56, 56)}, "image_size is [56, 56], was [56, 84]"),
        ({"image_size": None}, "image_size is None, was [56, 84]"),
        ({"image_tokens": (4, 9)}, "image_tokens is [4, 9], was [4, 1280]"),
        ({"eos_token": "<|endoftext|>"}, "eos_token is <|endoftext|>, was template"),
    ],
)
def test_changed_settings_are_named(
    sample: ReferenceSample, tiny: Path, tmp_path: Path, changed: dict[str, Any], text: str
) -> None:
    processor = Processor.from_folder(tiny, SETTINGS.model_copy(update=changed))
    assert sample.describe_change(tmp_path, processor, "What?") == f"processor settings differ from training: {text}"


def test_changed_prompt_and_template_are_named(
    sample: ReferenceSample, tiny: Path, processor: Processor, tmp_path: Path
) -> None:
    assert sample.describe_change(tmp_path, processor, "Why?") == (
        "the prompt differs from training: 'Why?', was 'What?'"
    )
    base = shutil.copytree(tiny, tmp_path / "base")
    template = json.loads((base / "chat_template.json").read_text())["chat_template"]
    for path in base.glob("*template*"):
        path.write_text(json.dumps({"chat_template": template.replace("helpful", "short")}))
    message = sample.describe_change(tmp_path, Processor.from_folder(base, SETTINGS), "What?") or ""
    assert message.startswith(
        "chat template, tokenizer or image processor give other token ids than in training, from "
    )
    assert "short" in message or "helpful" in message


def test_changed_image_processor_is_noticed(sample: ReferenceSample, tiny: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    for name in ("preprocessor_config.json", "config.json"):  # the tower has to take such patches
        (base / name).write_text((base / name).read_text().replace('"patch_size": 14', '"patch_size": 7'))
    message = sample.describe_change(tmp_path, Processor.from_folder(base, SETTINGS), "What?") or ""
    assert "other token ids than in training" in message


def test_missing_or_broken_sample(tmp_path: Path) -> None:
    assert ReferenceSample.load(tmp_path) is None
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / IMAGE_FILE)
    with pytest.raises(LorgnetteError, match=r"reference_sample.json is missing"):
        ReferenceSample.load(tmp_path)
    for content in ("{", "{}", "[]"):
        (tmp_path / SAMPLE_FILE).write_text(content)
        with pytest.raises(LorgnetteError, match=r"reference_sample.json cannot be read"):
            ReferenceSample.load(tmp_path)
    (tmp_path / IMAGE_FILE).unlink()
    with pytest.raises(LorgnetteError, match=r"reference_sample.png is missing"):
        ReferenceSample.load(tmp_path)
