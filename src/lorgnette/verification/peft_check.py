"""What a process without lorgnette finds: base, adapter and merged model under plain transformers and peft.

The asking side. `plain.py`, the side that is asked, runs in a process of its own and hands its findings back as JSON.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict

from lorgnette import data
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.errors import LorgnetteError
from lorgnette.inference.hf_generate import EOS_TOKENS
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Example, Image, Turn
from lorgnette.verification import reference_sample
from lorgnette.verification.reference_sample import ReferenceSample

WORKER = Path(__file__).with_name("peft_worker.py")
NUM_IMAGES = 4
MAX_NEW_TOKENS = 32


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distance(_FrozenModel):
    """Between two models along one answer. kl in nats and total_variation (0 … 1) are means over its tokens;
    first_choices: at how many of them the likeliest token differs; largest: the largest difference of a
    log-probability among tokens that either gives 1 % or more."""

    num_tokens: int
    kl: float
    total_variation: float
    num_argmax_changes: int
    max_logprob_difference: float

    @classmethod
    def from_parts(cls, parts: Sequence["Distance"]) -> "Distance":
        """Of several answers: every token counts alike."""
        tokens = sum(part.num_tokens for part in parts)
        return cls(
            num_tokens=tokens,
            kl=sum(part.kl * part.num_tokens for part in parts) / tokens,
            total_variation=sum(part.total_variation * part.num_tokens for part in parts) / tokens,
            num_argmax_changes=sum(part.num_argmax_changes for part in parts),
            max_logprob_difference=max(part.max_logprob_difference for part in parts),
        )


class AnswerComparison(_FrozenModel):
    """Greedy texts of the three; moved: adapter against base, rounded: adapter against merged, both along the
    adapter's answer."""

    base: str
    adapter: str
    merged: str
    adapter_effect: Distance
    merge_error: Distance


class NameMatch(_FrozenModel):
    """missing: tensors PEFT wants and the file has not; left_over: those it has and PEFT has no use for."""

    num_matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


class SampleResult(_FrozenModel):
    has_same_tokens: bool
    loss: float | None


class PeftResult(_FrozenModel):
    """names, samples: what was found; failed: why PEFT does not take the adapter, and then there is nothing else.

    lacking: weights that are in no file of the merged folder, or of the base's, and then there is nothing else.

    same_inputs: whether a merged folder's processor makes what the base's makes; None where no folder was asked.
    of_lorgnette: modules of ours in that process: none.
    """

    load_error: str | None = None
    missing_weights: tuple[str, ...] = ()
    names: NameMatch = NameMatch(num_matched=0, missing=(), unexpected=())
    reference_sample: SampleResult | None = None
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
) -> PeftResult:
    """Ask the examples' prompts (or, where there are none, `prompt` over drawn scenes) of base, adapter, and the
    merged model: `merged`, or base and adapter added up in that process.

    Raises LorgnetteError where the process breaks off.
    """
    kept = ReferenceSample.load(adapter)
    with TemporaryDirectory() as place:
        folder = Path(place)
        asked: dict[str, Any] = {
            "base": str(base.folder.resolve()),
            "adapter": str(adapter.resolve()),
            "merged": str(merged.resolve()) if merged else None,
            "processor": base.family.class_name.replace("ForConditionalGeneration", "Processor"),
            "device": device,
            "processor_settings": processor.settings.model_dump(mode="json"),
            "resized": processor.image_processor.compute_size(1, 1),  # of a fixed size: any picture's
            "ends": [processor.tokenizer.control_tokens[name] for name in EOS_TOKENS],
            "max_new_tokens": MAX_NEW_TOKENS,
            "samples": [_build_messages(example, folder) for example in examples or _make_examples(folder, prompt)],
            "witness": None,
        }
        if kept is not None:
            turn = Turn("user", (Image(adapter / reference_sample.IMAGE_FILE), kept.prompt))
            messages = _build_messages(Example("witness", (turn,), adapter, 1), folder)
            asked["witness"] = {"messages": messages, "tokens": kept.prompt_ids, "answer": kept.answer_ids}
        return _run_worker(asked, folder)


def _run_worker(asked: dict[str, Any], folder: Path) -> PeftResult:
    source, out = folder / "asked.json", folder / "found.json"
    source.write_text(json.dumps(asked), encoding="utf-8")
    # -P: the script's own folder is not searched for modules.
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", str(WORKER), str(source), str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        full = done.returncode == -9 or "out of memory" in done.stderr or "can't allocate memory" in done.stderr
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise LorgnetteError(
            f"plain transformers and peft break off: {'memory is full' if full else said}",
            where=asked["adapter"],
            hint="free some, or use --device cpu" if full else "see whether it loads with other versions of them",
        )
    return PeftResult.model_validate_json(out.read_text(encoding="utf-8"))


def _make_examples(folder: Path, prompt: str) -> list[Example]:
    made = []
    for seed in range(NUM_IMAGES):
        picture = folder / f"scene-{seed}.png"
        draw_scene(sample_scene(random.Random(seed))).save(picture)
        made.append(Example(picture.name, (Turn("user", (Image(picture), prompt)),), picture, 1))
    return made


def _build_messages(example: Example, folder: Path) -> list[dict[str, Any]]:
    """The prompt as transformers' templates take it; its pictures as plain RGB files, for any reader."""
    messages = []
    for turn in example.without_answer.turns:
        content: list[dict[str, str]] = []
        for part in turn.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                path = folder / f"picture-{len(list(folder.iterdir()))}.png"
                data.load_image(part.path).save(path)
                content.append({"type": "image", "path": str(path)})
        messages.append({"role": turn.role, "content": content})
    return messages
