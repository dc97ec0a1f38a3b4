"""A few steps of pretraining from start to finish, and its loss against transformers' own forward pass."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import evaluation, pretrain
from demo_model.batches import Batch, build_batch, load_tokenizer
from demo_model.pretrain import FACT_WEIGHT, compute_loss, compute_token_weights, parse_arguments
from demo_model.schedule import PretrainSettings
from demo_model.vision import patchify
from torch.nn import functional
from transformers import Qwen2VLForConditionalGeneration

from lorgnette.demo.scenes import sample_scene


@pytest.fixture(autouse=True)
def _generate_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MAX_NEW_TOKENS", 4)


def make_batch(folder: Path, size: int) -> Batch:
    rng = random.Random(0)
    return build_batch([sample_scene(rng) for _ in range(size)], load_tokenizer(folder).backend_tokenizer, rng)


def test_the_loss_equals_transformers(untrained: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(untrained, dtype=torch.float32)
    batch = make_batch(untrained, 3)
    tokens = torch.from_numpy(batch.input_ids).long()
    weights = compute_token_weights(PretrainSettings(untrained), torch.device("cpu"))
    logits = model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        mm_token_type_ids=(tokens == model.config.image_token_id).int(),
        pixel_values=patchify(torch.from_numpy(batch.images)).flatten(0, 1),
        image_grid_thw=torch.tensor([[1, 8, 8]] * 3),
    ).logits.flatten(0, 1)[torch.from_numpy(batch.label_indices).long()]
    expected = functional.cross_entropy(logits, torch.from_numpy(batch.labels).long(), weight=weights)
    torch.testing.assert_close(compute_loss(model, batch, weights), expected, atol=1e-5, rtol=0)


def test_words_that_only_the_image_determines_weigh_more(untrained: Path) -> None:
    tokenizer = load_tokenizer(untrained)
    weights = compute_token_weights(PretrainSettings(untrained), torch.device("cpu"))
    red, image = (tokenizer(word).input_ids[0] for word in (" red", " image"))
    assert (weights[red], weights[image]) == (FACT_WEIGHT, 1.0)


def test_every_weight_gets_a_gradient(untrained: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(untrained, dtype=torch.float32)
    compute_loss(model, make_batch(untrained, 2), torch.ones(1024)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_run_from_start_to_finish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    settings = PretrainSettings(
        out, steps=3, batch_size=4, num_workers=0, device="cpu", num_eval_scenes=2, log_seconds=1e-9
    )
    manifest = pretrain.pretrain(settings)
    assert json.loads(json.dumps(manifest)) == json.loads((out / "manifest.json").read_text())
    assert (manifest["steps"], manifest["images_seen"]) == (3, 12)
    assert manifest["parameters"] <= 6_000_000
    assert manifest["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert {"objects", "colors", "relation", "correct"} <= set(manifest["held_out"])
    _, info = Qwen2VLForConditionalGeneration.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert {name: keys for name, keys in info.items() if keys} == {}
    assert "step 3" in capsys.readouterr().out


def test_a_repeated_batch_is_learned(untrained: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(untrained, dtype=torch.float32).train()
    batch, weights = make_batch(untrained, 1), torch.ones(1024)
    before = compute_loss(model, batch, weights).item()
    settings = PretrainSettings(untrained, steps=12, batch_size=1, log_seconds=1e9)
    progress = pretrain.train(model, itertools.repeat(batch), settings, started_at=0.0)
    assert before > 6.5
    assert progress.loss < before
    after = compute_loss(model, batch, weights).item()
    assert after < 5.0
    shuffled = replace(batch, labels=np.random.default_rng(0).permutation(batch.labels))
    assert after < compute_loss(model, shuffled, weights).item() - 0.3, "the words alone, whatever is before them"


def test_an_interrupted_run_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream_then_interrupt(settings: PretrainSettings) -> Iterator[Batch]:
        yield make_batch(settings.out, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "start_batch_stream", stream_then_interrupt)
    manifest = pretrain.pretrain(PretrainSettings(tmp_path, batch_size=2, device="cpu", num_eval_scenes=1))
    assert (manifest["steps"], manifest["loss"]) == (1, None)
    assert (tmp_path / "model.safetensors").exists()


def test_the_command_line_and_the_settings_agree(tmp_path: Path) -> None:
    assert parse_arguments(["--out", str(tmp_path)]) == PretrainSettings(tmp_path)
    assert parse_arguments(["--out", "x", "--steps", "7", "--minutes", "2", "--num-workers", "3"]).steps == 7
