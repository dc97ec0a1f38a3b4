"""The tutorial's recipe on real photographs with the real tokenizer; its adapter in plain PEFT."""

from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lorgnette import cli
from lorgnette.report import run_log
from lorgnette.report.predictions import read_predictions
from lorgnette.types import PredictionRow

PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    + "<|image_pad|>" * 100
    + "<|vision_end|>COCO Yes:<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def run(tiny_real: Path, shared: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "coco"
    words = [
        "train", "coco-caption", f"model={tiny_real}", f"data={shared('coco') / 'captions.csv'}", f"run={folder}",
        "data.max_rows=36", "train.batch_size=8", "train.epochs=3", "train.learning_rate=5e-3",
        "train.logging_steps=3", "report_to=none", "predict.max_new_tokens=12",
    ]  # fmt: skip
    cli.app(words, standalone_mode=False)
    return folder


def test_loss_falls(run: Path) -> None:
    losses = run_log.select_series(run_log.read_log(run / "log.jsonl"), "train", "loss")
    evals = run_log.select_series(run_log.read_log(run / "log.jsonl"), "eval", "eval_loss")
    assert losses[-1][1] < losses[0][1] - 0.5
    assert evals[-1][1] < evals[0][1] - 0.3


def answer_plainly(model: torch.nn.Module, tokenizer: object, row: PredictionRow) -> tuple[str, torch.Tensor]:
    """What anybody's script would do: the image at 280×280, the template by hand, generate; and the next logits."""
    image = PIL.Image.open(row.images[0]).convert("RGB").resize((280, 280), PIL.Image.Resampling.BICUBIC)
    images = Qwen2VLImageProcessorPil()(image, return_tensors="pt")
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids  # type: ignore[operator]
    types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()  # type: ignore[attr-defined]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **images}
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=[151645, 151643], pad_token_id=151643)
    with torch.no_grad():
        text = model.generate(**inputs, generation_config=settings)[0, ids.shape[1] :]  # type: ignore[operator]
        return tokenizer.decode(text, skip_special_tokens=True), model(**inputs).logits[0, -1]  # type: ignore[attr-defined]


def test_plain_peft_says_the_same(run: Path, tiny_real: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_real)
    base = Qwen2VLForConditionalGeneration.from_pretrained(tiny_real, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, run / "adapter").eval()
    rows = read_predictions(run / "predictions.jsonl")
    assert rows
    for row in rows:
        text, logits = answer_plainly(tuned, tokenizer, row)
        assert text == row.tuned
        with tuned.disable_adapter():
            untuned, before = answer_plainly(tuned, tokenizer, row)
        assert untuned == row.base
        assert (logits - before).abs().max() > 0.1  # the adapter does something
