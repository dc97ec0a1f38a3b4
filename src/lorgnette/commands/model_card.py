"""The model card of a merged model: README.md with what it was made of, its scores, and how other programs run it.

What is not known is said to be unknown. Paths are left out: people publish this file.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorgnette import config
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError
from lorgnette.hub.address import is_hub_address
from lorgnette.inference.loading import ModelSpec
from lorgnette.io.atomic import write_text
from lorgnette.io.parse import read_front_matter
from lorgnette.io.paths import split_sources
from lorgnette.io.shell import quote_word
from lorgnette.lora.merge import Rounding
from lorgnette.lora.peft_config import read_peft_config
from lorgnette.metrics.report import score_before_after
from lorgnette.metrics.score import ScoreRow
from lorgnette.processing.processor import describe_image_size
from lorgnette.report.manifest import read_manifest
from lorgnette.report.predictions import read_predictions
from lorgnette.report.run_dir import RunDir
from lorgnette.verification.checks import list_vllm_options

CARD_FILE, BASE_CARD_FILE = "README.md", "README.base.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CODE = """import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, {processor}


class Processor({processor}):  # with torchvision installed, AutoProcessor works too
    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs):
        super().__init__(image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **kwargs)


folder = "."  # this folder, or its name on the Hub
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
processor = Processor.from_pretrained(folder, backend="pil")
image = Image.open("image.png").convert("RGB"){resize}
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": {prompt}}}]}}]
text = processor.apply_chat_template(messages, add_generation_prompt=True{template_options})
inputs = processor(text=[text], images=[image], return_tensors="pt", {options})
with torch.inference_mode():
    answer = model.generate(**inputs, max_new_tokens={max_new_tokens}, do_sample=False)
print(processor.tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class RunRecord:
    """What the run's folder knows beyond the adapter's. scores: of its last adapter alone, which was merged."""

    settings: Settings
    manifest: dict[str, Any]
    num_questions: int
    scores: tuple[ScoreRow, ...]

    @classmethod
    def find(cls, adapter: Path) -> "RunRecord | None":
        """None if the adapter is not in its run's folder, or that is incomplete."""
        run = RunDir.find_of_adapter(adapter)
        if run is None or not run.manifest.is_file():
            return None
        settings = config.load_settings(config.read_recipe(run.config), where=str(run.config))
        rows = read_predictions(run.predictions) if adapter == run.adapter and run.predictions.is_file() else []
        if "demo" in settings.predict.metrics:
            from lorgnette.commands.demo import register_facts_metric

            register_facts_metric()
        scores = tuple(score_before_after(rows, settings.predict.metrics))
        return cls(settings, read_manifest(run.manifest), len(rows), scores)


def write_model_card(folder: Path, spec: ModelSpec, rounding: Rounding) -> None:
    """Write README.md into a folder with a merged model. The base model's own card is kept as README.base.md."""
    card = folder / CARD_FILE
    license_facts: dict[str, Any] = {}
    if card.is_file():
        try:
            license_facts = {k: v for k, v in read_front_matter(card).items() if k.startswith("license")}
        except LorgnetteError:  # a card is a text for people: one that cannot be read names no license
            license_facts = {}
        card.rename(folder / BASE_CARD_FILE)
    assert spec.adapter is not None
    blocks = [
        _format_front_matter(spec, license_facts),
        *_format_training(folder.name, spec, RunRecord.find(spec.adapter), rounding),
        *_format_usage(spec, rounding),
        f"## License\n\n{_describe_license(folder, spec, license_facts)}",
    ]
    write_text(card, "\n\n".join(blocks) + "\n")


def _format_front_matter(spec: ModelSpec, license_facts: dict[str, Any]) -> str:
    """The metadata that the Hub reads."""
    name = _name_base_model(spec)
    metadata: dict[str, Any] = {"base_model": name} if _HUB_NAME.fullmatch(name) else {}
    metadata |= {"library_name": "transformers", "pipeline_tag": "image-text-to-text", **license_facts}
    metadata["tags"] = ["lorgnette", "lora", "vision-language-model"]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _format_training(name: str, spec: ModelSpec, record: RunRecord | None, rounding: Rounding) -> Iterator[str]:
    """What it is, what it was trained with, how it scores."""
    assert spec.adapter is not None
    assert spec.metadata is not None
    metadata, lora = spec.metadata, read_peft_config(spec.adapter)
    yield f"# {name}"
    yield (
        f"{_name_base_model(spec)}, fine-tuned on images and texts with LoRA, by "
        "lorgnette. The adapter is merged into the weights."
    )
    is_known = metadata.is_ours
    image_size = describe_image_size(metadata.processor, spec.processor.image_processor.token_side)
    facts = [
        ("base model", _name_base_model(spec) + (f", revision {metadata.revision}" if metadata.revision else "")),
        *([("trained on", "its weights in NF4 (QLoRA); these are not quantized")] if metadata.quantization else []),
        ("data", _name_data(record)),
        ("prompt", f"`{json.dumps(metadata.prompt, ensure_ascii=False)}`" if is_known else "unknown"),
        ("image size", image_size if is_known else "unknown"),
        ("optimizer steps", "unknown" if metadata.step is None else str(metadata.step)),
        ("continued from", str(metadata.origin) if metadata.origin else "the base model"),
        ("LoRA", f"rank {lora['r']}, alpha {lora['lora_alpha']}"),
        ("trained", record.manifest["started"][:10] if record else "unknown"),
        ("versions", _format_versions(record)),
        ("weights", f"{rounding.dtype}; rounding to it kept {rounding.kept:.0%} of what the adapter changes in them"),
    ]
    yield "## Training\n\n| | |\n|---|---|\n" + "\n".join(f"| {label} | {_escape(text)} |" for label, text in facts)
    if record is None or not record.scores:
        yield "## Scores\n\nNot known: the merged adapter is without its run's answers to held-out images."
        return
    before = f"before: {metadata.origin}" if metadata.origin else "base model"
    rows = [f"| {score.name} | {score.before} | {score.after} |" for score in record.scores]
    yield (
        f"## Scores\n\nOn {record.num_questions} held-out questions, with 95 % intervals, measured with the "
        f"adapter before it was merged.\n\n| metric | {before} | after |\n|---|---|---|\n" + "\n".join(rows)
    )


def _format_usage(spec: ModelSpec, rounding: Rounding) -> Iterator[str]:
    """How other programs run it. Images must have the size of the training, and only lorgnette knows it."""
    assert spec.metadata is not None
    processor, metadata = spec.processor.image_processor, spec.metadata
    if spec.processor.settings.image_size is not None:
        height, width = processor.compute_size(1, 1)
        resize, options = f".resize(({width}, {height}))  # as in training", "do_resize=False"
        size = f"Resize images to {height}×{width} pixels, as in training: other programs keep their shape."
    else:
        limits = {"shortest_edge": processor.min_pixels, "longest_edge": processor.max_pixels}
        resize, options = "", f"size={limits}"
        size = f"Images have {processor.min_pixels} to {processor.max_pixels} pixels, as in training."
    # Not as ASCII: JSON writes an emoji as two halves, which Python does not join.
    prompt, is_wide = json.dumps(metadata.prompt, ensure_ascii=False), rounding.dtype == "float32"
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    family = spec.checkpoint.family
    code = _CODE.format(
        processor=PROCESSOR_MAPPING_NAMES[family.model_type],
        resize=resize,
        prompt=prompt,
        template_options="".join(f", {name}={value}" for name, value in family.template_options),
        options=options,
        max_new_tokens=metadata.predict_max_new_tokens,
    )
    yield f"## Use it with transformers\n\n```python\n{code}```"
    yield f"## Use it with other programs\n\n{size} These commands follow the programs' documentation."
    words = [".", *list_vllm_options(family), *(["--dtype", "float32"] if is_wide else [])]
    yield f"vLLM:\n\n```sh\nvllm serve {' '.join(map(quote_word, words))}\n```"
    outtype = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}.get(rounding.dtype, "auto")
    yield (
        "GGUF, with llama.cpp's own script. The second file holds the vision tower:\n\n```sh\n"
        f"python convert_hf_to_gguf.py . --outfile model.gguf --outtype {outtype}\n"
        "python convert_hf_to_gguf.py . --outfile mmproj.gguf --mmproj\n"
        "llama-mtmd-cli -m model.gguf --mmproj mmproj.gguf --image image.png --temp 0 -p "
        f"{quote_word(metadata.prompt)}\n"
        "llama-server -m model.gguf --mmproj mmproj.gguf\n```"
    )
    yield (
        "Ollama takes these two files from a `Modelfile`, with `ollama create NAME`:\n\n```\nFROM ./model.gguf\n"
        "FROM ./mmproj.gguf\nPARAMETER temperature 0\n```\n\nIts import guide does not speak of the second file, and "
        "users report that Ollama 0.17 answers wrongly about images with Qwen2-VL where llama.cpp answers right "
        "([ollama#14388](https://github.com/ollama/ollama/issues/14388)): look at a few answers first."
    )


def _describe_license(folder: Path, spec: ModelSpec, facts: dict[str, Any]) -> str:
    files = sorted(path.name for path in folder.iterdir() if path.name.upper().startswith(("LICENSE", "NOTICE")))
    place = f" Its text is in {', '.join(files)}." if files else ""
    if not facts and not files:
        return (
            f"Unknown: the folder of {_name_base_model(spec)} names none. The base model's license also holds for this "
            "model; look for it where the base model comes from."
        )
    name = facts.get("license_name") or facts.get("license")
    named = f": its card says `{name}`" if name else ""
    return f"That of the base model, {_name_base_model(spec)}{named}.{place}"


def _name_base_model(spec: ModelSpec) -> str:
    """Its name on a hub, or the last part of its path."""
    assert spec.metadata is not None
    name = spec.metadata.model
    if name == "demo":
        return "lorgnette's built-in model (demo)"
    is_path = name.startswith(("/", ".", "~")) or Path(name).exists() or not _HUB_NAME.fullmatch(name)
    return Path(name).name if is_path else name


def _name_data(record: RunRecord | None) -> str:
    """File names and names on hubs, without folders."""
    if record is None or record.settings.data.path is None:
        return "unknown"
    sources = split_sources(record.settings.data.path)
    names = [str(source) if is_hub_address(str(source)) else source.name for source in sources]
    num_images = record.manifest.get("num_training_images")
    return ", ".join(names) + (f" ({num_images} images trained on)" if num_images else "")


def _format_versions(record: RunRecord | None) -> str:
    versions = record.manifest.get("versions", {}) if record else {}
    names = ("lorgnette", "torch", "transformers", "peft")
    return ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name)) or "unknown"


def _escape(text: str) -> str:
    """For a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
