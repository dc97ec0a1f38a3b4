"""Runs base, adapter and merged model in a separate process of plain transformers + PEFT.

Writes the request for `peft_worker.py`, the script of that process, and reads its result; both are JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import PIL.Image
from PIL.Image import Transpose
from pydantic import BaseModel, ConfigDict

from lorgnette import data
from lorgnette.errors import LorgnetteError
from lorgnette.inference.sampling import EOS_TOKENS
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.lora.rename import write_renamed
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.quantization import require_bitsandbytes
from lorgnette.processing.processor import Processor
from lorgnette.types import Box, Example, Image, Turn
from lorgnette.verification.reference_sample import IMAGE, IMAGE_FILE, ReferenceSample

WORKER = Path(__file__).with_name("peft_worker.py")
MAX_NEW_TOKENS = 32
_VIEWS = (None, Transpose.FLIP_LEFT_RIGHT, Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_90)
"""How the reference image is turned, so that there are four different images."""


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distance(_FrozenModel):
    """The distance between two models' next-token distributions along one answer.

    kl: KL divergence in nats; total_variation: 0 … 1; both are means over the tokens. num_argmax_changes: tokens where
    the most likely token differs. max_logprob_difference: over tokens to which either model gives at least 1 %.
    """

    num_tokens: int
    kl: float
    total_variation: float
    num_argmax_changes: int
    max_logprob_difference: float

    @classmethod
    def from_parts(cls, parts: Sequence["Distance"]) -> "Distance":
        """Combine the distances of several answers, weighted by their tokens."""
        num_tokens = sum(part.num_tokens for part in parts)
        return cls(
            num_tokens=num_tokens,
            kl=sum(part.kl * part.num_tokens for part in parts) / num_tokens,
            total_variation=sum(part.total_variation * part.num_tokens for part in parts) / num_tokens,
            num_argmax_changes=sum(part.num_argmax_changes for part in parts),
            max_logprob_difference=max(part.max_logprob_difference for part in parts),
        )


class AnswerComparison(_FrozenModel):
    """Greedy answers of the three models to one prompt.

    adapter_effect: distance adapter ↔ base; merge_error: distance adapter ↔ merged; both along the adapter's answer.
    merged and merge_error are None if the adapter was not merged.
    """

    base: str
    adapter: str
    merged: str | None
    adapter_effect: Distance
    merge_error: Distance | None


class PeftResult(_FrozenModel):
    """The worker's result.

    load_error: what PEFT raised when it loaded the adapter. missing_weights: names that no file of the base or merged
    checkpoint has. With either, the other fields are empty. saved_names, expected_names: of the adapter's tensors, in
    its file and in PEFT's model. merge_failure: what PEFT raised when it merged. sample_loss: of the reference sample;
    None if it gives other token ids. has_same_inputs: base and merged processor give equal inputs; None without a
    merged checkpoint. lorgnette_modules: lorgnette modules imported in that process; must be empty.
    """

    load_error: str | None = None
    missing_weights: tuple[str, ...] = ()
    saved_names: tuple[str, ...] = ()
    expected_names: tuple[str, ...] = ()
    merge_failure: str | None = None
    sample_loss: float | None = None
    has_same_inputs: bool | None = None
    answers: tuple[AnswerComparison, ...] = ()
    versions: dict[str, str] = {}
    lorgnette_modules: tuple[str, ...] = ()


def check_with_peft(
    base: BaseCheckpoint,
    adapter: Path,
    processor: Processor,
    prompt: str,
    examples: Sequence[Example] = (),
    *,
    merged: Path | None = None,
    device: str,
    is_mergeable: bool = True,
    is_base_changed: bool = False,
) -> PeftResult:
    """Answer the examples' prompts with base, adapter and merged model.

    Without examples, `prompt` is asked about four views of the reference image. Without `merged`, the worker merges
    base and adapter itself, if it is mergeable. is_base_changed: whether loading the adapter changes the base model's
    weights, so that the worker must load them again. An adapter with names from before transformers 4.52 is renamed
    first. Raises LorgnetteError if the process fails, UsageError if it needs bitsandbytes.
    """
    sample = ReferenceSample.load(adapter)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        request: dict[str, Any] = {
            "base": str(base.folder.resolve()),
            "adapter": str(_rename_tensors(adapter, folder / "adapter").resolve()),
            "is_mergeable": is_mergeable,
            "is_base_changed": is_base_changed,
            "merged": str(merged.resolve()) if merged else None,
            "quantization": _describe_quantization(base),
            "template_options": dict(base.family.template_options),
            "device": device,
            "processor_settings": processor.settings.model_dump(mode="json"),
            "fixed_size": processor.image_processor.compute_size(1, 1),  # (height, width), if image_size is set
            "eos_token_ids": [processor.tokenizer.control_tokens[name] for name in EOS_TOKENS],
            "max_new_tokens": MAX_NEW_TOKENS,
            "prompts": [
                _build_messages(processor.write_boxes(example), folder)
                for example in examples or _make_examples(folder, prompt)
            ],
            "sample": None,
        }
        if sample is not None:
            turn = Turn("user", (Image(adapter / IMAGE_FILE), sample.prompt))
            messages = _build_messages(Example("reference sample", (turn,), adapter, 1), folder)
            request["sample"] = sample.model_dump(include={"prompt_ids", "answer_ids"}) | {"messages": messages}
        return _run_worker(request, folder, adapter)


def _run_worker(request: dict[str, Any], folder: Path, adapter: Path) -> PeftResult:
    request_file, result_file = folder / "request.json", folder / "result.json"
    request_file.write_text(json.dumps(request), encoding="utf-8")
    # -P: do not search the script's folder for modules.
    command = [sys.executable, "-P", str(WORKER), str(request_file), str(result_file)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
    if process.returncode:
        errors = process.stderr
        reason = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        hint = "try other versions of transformers and peft"
        if process.returncode == -9 or "out of memory" in errors or "can't allocate memory" in errors:
            reason, hint = "out of memory", "free memory, or use --device cpu"
        message = f"the transformers + PEFT process failed: {reason}"
        raise LorgnetteError(message, where=str(adapter), hint=hint)
    return PeftResult.model_validate_json(result_file.read_text(encoding="utf-8"))


def _describe_quantization(base: BaseCheckpoint) -> dict[str, Any] | None:
    """How the base model's weights are NF4; options: of transformers' BitsAndBytesConfig."""
    if base.quantization is None:
        return None
    require_bitsandbytes()
    return {"is_stored": base.quantization.is_stored, "options": base.build_bitsandbytes_options()}


def _rename_tensors(adapter: Path, copy: Path) -> Path:
    """The adapter, or a copy with current names if its names are from before transformers 4.52."""
    saved = SavedAdapter.load(adapter)
    if not saved.has_old_names:
        return adapter
    copy.mkdir()
    write_renamed(saved, copy, use_old_names=False)
    return copy


def _make_examples(folder: Path, prompt: str) -> list[Example]:
    examples = []
    for number, view in enumerate(_VIEWS):
        path = folder / f"view-{number}.png"
        with PIL.Image.open(IMAGE) as image:
            (image if view is None else image.transpose(view)).save(path)
        examples.append(Example(path.name, (Turn("user", (Image(path), prompt)),), path, 1))
    return examples


def _build_messages(example: Example, folder: Path) -> list[dict[str, Any]]:
    """Convert the prompt to chat-template messages; write its images to `folder` as plain RGB files."""
    messages = []
    for turn in example.without_answer().turns:
        content: list[dict[str, str]] = []
        for part in turn.parts:
            if not isinstance(part, Image):
                content.append({"type": "text", "text": part.text if isinstance(part, Box) else part})
                continue
            path = folder / f"image-{len(list(folder.iterdir()))}.png"
            data.load_image(part.path).save(path)
            content.append({"type": "image", "path": str(path)})
        messages.append({"role": turn.role, "content": content})
    return messages
