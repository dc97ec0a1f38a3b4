"""The arithmetic of the worker, and that it does not import lorgnette. Its results are tested in test_peft_check.py."""

import ast
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import write_nf4_checkpoint

from lorgnette.config import ProcessorSettings
from lorgnette.engine.nf4_linear import Nf4Linear
from lorgnette.engine.peft_engine import load_base_model
from lorgnette.inference.hf_generate import _pad_batch
from lorgnette.kernels import NF4_BLOCK_SIZE
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import FAMILIES
from lorgnette.processing.processor import Processor
from lorgnette.types import Example
from lorgnette.verification import peft_worker
from lorgnette.verification.peft_check import WORKER, _describe_quantization


def test_worker_does_not_import_lorgnette() -> None:
    assert Path(peft_worker.__file__) == WORKER
    imports = [
        name
        for node in ast.walk(ast.parse(WORKER.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    ]  # fmt: skip
    assert "transformers" in imports
    assert not [name for name in imports if name.startswith("lorgnette")]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_answers_have_no_image_tokens(
    model_type: str, tiny_family: Callable[[str], Path], conversations: list[Example]
) -> None:
    """The likeliest tokens are those of images. If an answer had one, the model would look for its image."""
    folder = tiny_family(model_type)
    processor = Processor.from_folder(folder, ProcessorSettings(image_size=None, image_tokens=(4, 30)))
    request = {"eos_token_ids": [processor.tokenizer.control_tokens["<|im_end|>"]], "max_new_tokens": 3}
    model, _ = peft_worker._load_model({"device": "cpu", "base": "", "quantization": None}, str(folder))
    prompt = _pad_batch(
        [processor.encode(conversations[1], add_generation_prompt=True)], processor, torch.device("cpu")
    )
    names = ("image", "video", "vision_start", "vision_end")
    image_tokens = [getattr(model.config, f"{name}_token_id") for name in names]

    def prefer_image_tokens(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_add(
            -1, torch.tensor(image_tokens), torch.tensor([4e4, 3e4, 2e4, 1e4]).expand(*logits.shape[:-1], 4)
        )

    model.lm_head.register_forward_hook(prefer_image_tokens)
    answer = peft_worker._generate_greedy(request, model, prompt)
    assert "pixel_values" in prompt
    assert not set(answer) & set(image_tokens)
    assert len(peft_worker._compute_log_probs(model, prompt, answer)) == len(answer)


def test_distance_of_known_distributions() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.1, 0.1]]).clamp_min(1e-30).log()
    log_q = torch.tensor([[0.25, 0.75, 0.0], [0.8, 0.1, 0.1]]).clamp_min(1e-30).log()
    distance = peft_worker._compute_distance(log_p, log_q)
    assert distance["num_tokens"] == 2
    assert math.isclose(distance["kl"], (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel_tol=1e-5)
    assert math.isclose(distance["total_variation"], 0.25 / 2, rel_tol=1e-5)
    assert distance["num_argmax_changes"] == 1
    # The third token of the first row does not count: both models give it less than 1 %.
    assert math.isclose(distance["max_logprob_difference"], math.log(2), rel_tol=1e-5)
    assert peft_worker._compute_distance(log_p, log_p)["max_logprob_difference"] == 0


@pytest.mark.usefixtures("wrong_bitsandbytes")
def test_nf4_weights_have_the_scales_of_their_blocks(tiny: Path, tmp_path: Path) -> None:
    """Also where bitsandbytes has wrong ones for a matrix, and blocks go on in the next row."""
    folder = write_nf4_checkpoint(tmp_path / "model", tiny)
    quantization = _describe_quantization(BaseCheckpoint.from_folder(folder))
    request = {"device": "cpu", "base": str(folder), "quantization": quantization}
    model, _ = peft_worker._load_model(request, str(folder))
    reference = load_base_model(BaseCheckpoint.from_folder(folder), torch.device("cpu"), torch.float32)
    layers = {name: layer for name, layer in reference.named_modules() if isinstance(layer, Nf4Linear)}
    assert any(layer.in_features % NF4_BLOCK_SIZE for layer in layers.values())
    for name, layer in layers.items():
        assert torch.equal(model.get_submodule(name).weight, layer.dequantize())
