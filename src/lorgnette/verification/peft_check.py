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
from lorgnette.demo.scenes import draw, random_scene
from lorgnette.errors import LorgnetteError
from lorgnette.inference.hf_generate import ENDS
from lorgnette.models.base_checkpoint import Checkpoint
from lorgnette.processing.processor import Encoder
from lorgnette.types import Example, Picture, Turn
from lorgnette.verification import reference_sample
from lorgnette.verification.reference_sample import Witness

SCRIPT = Path(__file__).with_name("peft_worker.py")
SCENES = 4
MAX_NEW_TOKENS = 32


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distance(_Frozen):
    """Between two models along one answer. kl in nats and total_variation (0 … 1) are means over its tokens;
    first_choices: at how many of them the likeliest token differs; largest: the largest difference of a
    log-probability among tokens that either gives 1 % or more."""

    tokens: int
    kl: float
    total_variation: float
    first_choices: int
    largest: float

    @classmethod
    def over(cls, parts: Sequence["Distance"]) -> "Distance":
        """Of several answers: every token counts alike."""
        tokens = sum(part.tokens for part in parts)
        return cls(
            tokens=tokens,
            kl=sum(part.kl * part.tokens for part in parts) / tokens,
            total_variation=sum(part.total_variation * part.tokens for part in parts) / tokens,
            first_choices=sum(part.first_choices for part in parts),
            largest=max(part.largest for part in parts),
        )


class Sample(_Frozen):
    """Greedy texts of the three; moved: adapter against base, rounded: adapter against merged, both along the
    adapter's answer."""

    base: str
    adapter: str
    merged: str
    moved: Distance
    rounded: Distance


class Names(_Frozen):
    """missing: tensors PEFT wants and the file has not; left_over: those it has and PEFT has no use for."""

    matched: int
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


class Replayed(_Frozen):
    same_tokens: bool
    loss: float | None


class Found(_Frozen):
    """names, samples: what was found; failed: why PEFT does not take the adapter, and then there is nothing else.

    lacking: weights that are in no file of the merged folder, or of the base's, and then there is nothing else.

    same_inputs: whether a merged folder's processor makes what the base's makes; None where no folder was asked.
    of_lorgnette: modules of ours in that process: none.
    """

    failed: str | None = None
    lacking: tuple[str, ...] = ()
    names: Names = Names(matched=0, missing=(), left_over=())
    reference_sample: Replayed | None = None
    same_inputs: bool | None = None
    samples: tuple[Sample, ...] = ()
    versions: dict[str, str] = {}
    of_lorgnette: tuple[str, ...] = ()


def ask(
    base: Checkpoint,
    adapter: Path,
    encoder: Encoder,
    prompt: str,
    examples: Sequence[Example] = (),
    *,
    merged: Path | None = None,
    device: str,
) -> Found:
    """Ask the examples' prompts (or, where there are none, `prompt` over drawn scenes) of base, adapter, and the
    merged model: `merged`, or base and adapter added up in that process.

    Raises LorgnetteError where the process breaks off.
    """
    kept = Witness.read(adapter)
    with TemporaryDirectory() as place:
        folder = Path(place)
        asked: dict[str, Any] = {
            "base": str(base.folder.resolve()),
            "adapter": str(adapter.resolve()),
            "merged": str(merged.resolve()) if merged else None,
            "processor": base.family.class_name.replace("ForConditionalGeneration", "Processor"),
            "device": device,
            "encode": encoder.settings.model_dump(mode="json"),
            "resized": encoder.rule.resized(1, 1),  # of a fixed size: any picture's
            "ends": [encoder.tokenizer.control[name] for name in ENDS],
            "max_new_tokens": MAX_NEW_TOKENS,
            "samples": [_messages(example, folder) for example in examples or _scenes(folder, prompt)],
            "witness": None,
        }
        if kept is not None:
            turn = Turn("user", (Picture(adapter / reference_sample.PICTURE), kept.prompt))
            messages = _messages(Example("witness", (turn,), adapter, 1), folder)
            asked["witness"] = {"messages": messages, "tokens": kept.tokens, "answer": kept.answer}
        return _found(asked, folder)


def _found(asked: dict[str, Any], folder: Path) -> Found:
    source, out = folder / "asked.json", folder / "found.json"
    source.write_text(json.dumps(asked), encoding="utf-8")
    # -P: the script's own folder is not searched for modules.
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-P", str(SCRIPT), str(source), str(out)],
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
            remedy="free some, or use --device cpu" if full else "see whether it loads with other versions of them",
        )
    return Found.model_validate_json(out.read_text(encoding="utf-8"))


def _scenes(folder: Path, prompt: str) -> list[Example]:
    made = []
    for seed in range(SCENES):
        picture = folder / f"scene-{seed}.png"
        draw(random_scene(random.Random(seed))).save(picture)
        made.append(Example(picture.name, (Turn("user", (Picture(picture), prompt)),), picture, 1))
    return made


def _messages(example: Example, folder: Path) -> list[dict[str, Any]]:
    """The prompt as transformers' templates take it; its pictures as plain RGB files, for any reader."""
    messages = []
    for turn in example.prompt.turns:
        content: list[dict[str, str]] = []
        for part in turn.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                path = folder / f"picture-{len(list(folder.iterdir()))}.png"
                data.load(part.path).save(path)
                content.append({"type": "image", "path": str(path)})
        messages.append({"role": turn.role, "content": content})
    return messages
