"""The adapter that a training continues (the setting `adapter`): its settings, its contract, its answers.

What an adapter is (rank, scale, adapted layers, base model) cannot change while it is trained further. How it is used
(prompt, image size) can, and is taken from it unless it is set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.inference.loading import LoadedModel, resolve_adapter
from lorgnette.io.folder_kind import explain_folder, find_folder_kind
from lorgnette.lora.adapter_settings import check_modules, read_lora_settings
from lorgnette.lora.metadata import METADATA_FILE, AdapterMetadata, AdapterOrigin
from lorgnette.lora.peft_config import CONFIG_FILE, WEIGHTS_FILE
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import compute_sha256
from lorgnette.report.run_dir import RunDir
from lorgnette.report.training_overlap import read_trained_images
from lorgnette.resolve import portable_name
from lorgnette.types import Example, Prediction

if TYPE_CHECKING:
    from torch import Tensor

    from lorgnette.inference.sampling import SamplingParams, TokenCallback

_MAX_NAMES = 8
_ALWAYS_TOLD = ("model", "prompt", "image_size", "rank", "alpha")
"""Settings taken from the adapter that are printed also if they have their defaults."""


def inherit_settings(settings: Settings, terminal: Terminal) -> Settings:
    """The settings with what the adapter that they name decides, and a line that says what it decided.

    Without an adapter they stay as they are. Reads headers only. Raises UsageError if a setting contradicts the
    adapter, LorgnetteError if it is broken or neither engine can train it.
    """
    if settings.adapter is None:
        return settings
    folder = resolve_adapter(settings.adapter)
    if find_folder_kind(folder) != "adapter":
        raise explain_folder(folder, "adapter")
    metadata, fixed = AdapterMetadata.load_or_infer(folder), read_lora_settings(folder)
    where = f"adapter={settings.adapter}"

    # What cannot change.
    given = {name: getattr(settings.lora, name) for name in fixed if name in settings.lora.model_fields_set}
    different = [name for name, value in given.items() if _sort(value) != _sort(fixed[name])]
    if different:
        facts = [
            f"lora.{name} is {_format(given[name])}, the adapter's is {_format(fixed[name])}" for name in different
        ]
        words = " ".join(f"lora.{name}={_format(fixed[name])}" for name in different)
        hint = f"write {words}, or leave `adapter` out"
        raise UsageError("; ".join(facts), where=where, hint=hint)
    if "model" not in settings.model_fields_set and metadata.model == "unknown":
        raise UsageError("the adapter names no base model", where=where, hint="name it: model=FOLDER")
    if "model" in settings.model_fields_set and metadata.is_ours and portable_name(settings.model) != metadata.model:
        terminal.warn(
            f"model is {settings.model}, the adapter was trained on {metadata.model}: if their weights differ, "
            "the training does not start"
        )

    # What it was used with.
    used: dict[str, dict[str, Any]] = {"": {}, "data": {}, "predict": {}}
    if metadata.is_ours:
        used[""] = metadata.processor.model_dump() | {"quantization": metadata.quantization}
        used["data"] = {"prompt": metadata.prompt}
        used["predict"] = {
            "image_size": metadata.predict_image_size, "max_new_tokens": metadata.predict_max_new_tokens,
        }  # fmt: skip
    else:
        terminal.warn(f"{folder} has no {METADATA_FILE}: its prompt and image size are unknown, the settings' are used")
    for name in ("image_size", "image_tokens", "eos_token", "quantization", "data.prompt"):
        _warn_of_change(settings, name, used, terminal)
    used[""]["model"] = metadata.model
    used["lora"] = fixed

    # Set what is not set.
    changes, lines = dict[str, Any](), list[str]()
    for section, values in used.items():
        tree = getattr(settings, section) if section else settings
        taken = {name: value for name, value in values.items() if name not in tree.model_fields_set}
        defaults = {name: field.default for name, field in type(tree).model_fields.items()}
        told = {name: value for name, value in taken.items() if name in _ALWAYS_TOLD or value != defaults[name]}
        lines += [f"{section}{'.' if section else ''}{name}={_format(value)}" for name, value in told.items()]
        changes |= {section: tree.model_copy(update=taken)} if section else taken
    terminal.print(f"adapter    continues {find_origin(folder)}")
    if lines:
        terminal.print(f"           from it: {', '.join(lines)}")
    return settings.model_copy(update={**changes, "adapter": folder})


def check_initial_adapter(settings: Settings, checkpoint: BaseCheckpoint, terminal: Terminal) -> None:
    """Judge the adapter that the settings name, if one, as every command does. Raises LorgnetteError if it is broken,
    was trained on another base model than `checkpoint`, or adapts other layers than the settings."""
    if settings.adapter is None:
        return
    from lorgnette.lora.peft_files import SavedAdapter
    from lorgnette.verification.judgement import judge_adapter

    judge_adapter(str(checkpoint.folder), settings.adapter, terminal).require(terminal)
    pattern = checkpoint.family.build_target_pattern(settings.lora.target_modules, settings.lora.parts)
    check_modules(settings.adapter, SavedAdapter.load(settings.adapter).state, checkpoint.list_weights(), pattern)


def find_origin(adapter: Path) -> AdapterOrigin:
    """What the new adapter records of the one that it continues; its name has no private path."""
    run, folder, step = RunDir.find_of_adapter(adapter), adapter.resolve(), AdapterMetadata.load_or_infer(adapter).step
    name = folder.name
    if run is not None:
        root = run.path.resolve()
        name = "/".join((root.parent.name, root.name, *folder.relative_to(root).parts)).removesuffix("/adapter")
    return AdapterOrigin(name=name, step=step, sha256=compute_sha256(adapter / WEIGHTS_FILE))


def hash_adapter(adapter: Path) -> dict[str, str]:
    """File → sha256, of both files that PEFT reads."""
    paths = (adapter / WEIGHTS_FILE, adapter / CONFIG_FILE)
    return {str(path): compute_sha256(path) for path in paths if path.is_file()}


def build_manifest_entry(adapter: Path) -> dict[str, Any]:
    """What the manifest of a run keeps of the adapter that it continues: also the hashes of its training images, and
    of those before; null if they are unknown."""
    run = RunDir.find_of_adapter(adapter)
    images = read_trained_images(run.manifest if run else None)
    return find_origin(adapter).model_dump() | {"images": None if images is None else sorted(images)}


def describe_seen_images(entry: Mapping[str, Any], held_out: Mapping[Path, str]) -> str | None:
    """A warning that names the held-out images on which the old adapter was trained, or says that this is unknown.

    entry: of `build_manifest_entry`; held_out: image → its hash.
    """
    if not held_out:
        return None
    if entry["images"] is None:
        return f"{entry['name']} may have been trained on held-out images: the manifest of its run is not here"
    seen = [path.name for path, value in held_out.items() if value in set(entry["images"])]
    if not seen:
        return None
    names = f"{', '.join(seen[:_MAX_NAMES])}{', …' if len(seen) > _MAX_NAMES else ''}"
    count = f"{len(seen)} of {len(held_out)} held-out images"
    return f"{entry['name']} was trained on {count}, and their scores do not show how it does on new ones: {names}"


@dataclass(frozen=True)
class ContinuedModel(LoadedModel):
    """A model whose answers before training are those of the adapter that it continues, not the base model's.

    copy_adapter and load_adapter read and write the LoRA factors in the engine.
    """

    initial_adapter: Path
    copy_adapter: Callable[[], Mapping[str, "Tensor"]]
    load_adapter: Callable[[Mapping[str, "Tensor"]], None]

    def generate_answers(
        self,
        examples: Sequence[Example],
        sampling: "SamplingParams",
        *,
        adapter: str | None,
        on_progress: Callable[[int], None] = lambda count: None,
        on_tokens: "TokenCallback | None" = None,
    ) -> Iterator[Prediction]:
        """As LoadedModel; adapter=None: of the initial adapter."""
        generate = partial(super().generate_answers, examples, sampling, on_progress=on_progress, on_tokens=on_tokens)
        if adapter is not None:
            yield from generate(adapter=adapter)
            return
        from lorgnette.lora.peft_files import SavedAdapter

        trained = self.copy_adapter()
        self.load_adapter(SavedAdapter.load(self.initial_adapter).state)
        try:
            yield from generate(adapter=self.initial_adapter.name)
        finally:
            self.load_adapter(trained)


def _warn_of_change(
    settings: Settings, full_name: str, used: Mapping[str, Mapping[str, Any]], terminal: Terminal
) -> None:
    """Warn that a setting differs from the adapter's. It is allowed: an adapter can learn another prompt."""
    section, _, name = full_name.rpartition(".")
    tree = getattr(settings, section) if section else settings
    value, before = getattr(tree, name), used[section].get(name)
    if name in tree.model_fields_set and name in used[section] and value != before:
        follows = ": its training goes on beside other frozen weights" if name == "quantization" else ""
        terminal.warn(f"{full_name} is {_format(value)}, the adapter was trained with {_format(before)}{follows}")


def _sort(value: Any) -> Any:
    """The order of target modules and parts means nothing."""
    return sorted(value) if isinstance(value, tuple) else value


def _format(value: Any) -> str:
    """A value as it is written in a setting."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
