"""What is served: a base model and its adapters, each under a name, with its own prompt and image size."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorgnette.config import DEFAULT_PROMPT, PredictSettings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.loading import ModelSpec, explain_out_of_memory
from lorgnette.inference.sampling import EOS_TOKENS
from lorgnette.io.shell import format_command
from lorgnette.lora.peft_files import WEIGHTS_FILE, SavedAdapter
from lorgnette.processing.processor import Processor
from lorgnette.resolve import portable_name

if TYPE_CHECKING:
    import torch

    from lorgnette.features.feature_lru import FeatureLru
    from lorgnette.inference.generator import Generator

BASE_NAME = "base"


@dataclass(frozen=True)
class ServedModel:
    """One name of the API.

    aliases: other names for it. adapter: its number among the loaded ones; None: the base model. processor, prompt,
    max_new_tokens: how it is asked, as in training. parent: the name of its base model; None: it is the base model.
    fingerprint: eight hex digits that change with the weights.
    """

    name: str
    aliases: tuple[str, ...]
    adapter: int | None
    processor: Processor
    prompt: str
    max_new_tokens: int
    parent: str | None
    fingerprint: str


@dataclass(frozen=True)
class ModelSet:
    """The served models, with one copy of the base model in memory.

    models: those with an adapter, then the base model. base_model: its name on a hub or its folder. adapter_ranks: of
    the loaded adapters.
    """

    models: tuple[ServedModel, ...]
    base_model: str
    generator: "Generator"
    features: "FeatureLru"
    adapter_ranks: tuple[int, ...]

    @property
    def device(self) -> "torch.device":
        return self.generator.device

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        control_tokens = self.models[0].processor.tokenizer.control_tokens
        return tuple(control_tokens[name] for name in EOS_TOKENS)

    def find(self, name: str) -> ServedModel | None:
        """The model with this name or, if there is none, with this alias."""
        by_alias = {alias: model for model in self.models for alias in model.aliases}
        return (by_alias | {model.name: model for model in self.models}).get(name)


def load_models(
    specs: Mapping[str, ModelSpec], device_name: str = "auto", *, max_new_tokens: int | None = None
) -> ModelSet:
    """Load the models by their names, and the base model of adapters as `base`.

    specs: adapters of one base model, or this base model alone. max_new_tokens: of all; default: as each one's run
    answers. Raises UsageError or LorgnetteError, before weights are read, if they cannot be served, or not together.
    """
    _check_names(specs)
    _check_base_models(specs)
    adapters = [SavedAdapter.load(spec.adapter) for spec in specs.values() if spec.adapter is not None]
    _check_support(specs, adapters)
    models = _list_models(specs, max_new_tokens)
    first = next(iter(specs.values()))

    from lorgnette.device import select_device, select_dtype
    from lorgnette.engine.loading import load_decoder_with_adapters
    from lorgnette.features.feature_lru import FeatureLru
    from lorgnette.inference.generator import Generator
    from lorgnette.models.networks import find_tower_class

    device = select_device(device_name)
    if device.type == "mps":
        hint = "use --device cpu, or merge the adapter and serve the model with another server"
        raise UsageError("serve does not run on MPS", where=f"--device {device_name}", hint=hint)
    dtype = select_dtype("auto", device)
    with explain_out_of_memory("free some memory, or use --device cpu"):
        decoder, ranks = load_decoder_with_adapters(first.checkpoint, adapters, device, dtype)
        tower = find_tower_class(first.checkpoint.family.model_type).from_checkpoint(first.checkpoint, device, dtype)
        features = FeatureLru(tower, first.processor.image_processor, _limit_feature_bytes(device))
    return ModelSet(models, portable_name(first.base_model), Generator(decoder, features), features, ranks)


def _limit_feature_bytes(device: "torch.device") -> int:
    """Of the memory that a GPU has left when the weights are loaded, a share; at most MAX_BYTES."""
    import torch

    from lorgnette.features.feature_lru import MAX_BYTES
    from lorgnette.planning.limits import FEATURE_MEMORY_FRACTION

    if device.type != "cuda":
        return MAX_BYTES
    return min(MAX_BYTES, int(FEATURE_MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]))


def _check_names(specs: Mapping[str, ModelSpec]) -> None:
    if not specs:
        raise UsageError("nothing to serve", hint="name a run, an adapter or a model")
    if (spec := specs.get(BASE_NAME)) and spec.adapter is not None:
        message = f"an adapter cannot be called {BASE_NAME}: the base model has this name"
        raise UsageError(message, where=str(spec.adapter), hint=f"name it: NAME={spec.adapter}")


def _check_base_models(specs: Mapping[str, ModelSpec]) -> None:
    """Raises LorgnetteError unless all have one base model: with other weights, inputs or end tokens it is another."""
    (first_name, first), *others = specs.items()
    for name, spec in others:
        if _describe_base_model(spec) != _describe_base_model(first):
            folders = f"{first_name}: {first.checkpoint.folder}; {name}: {spec.checkpoint.folder}"
            message = f"{first_name} and {name} have different base models"
            raise LorgnetteError(message, where=folders, hint="start one server for each base model")
        if spec.adapter is None or first.adapter is None:
            alone = name if spec.adapter is None else first_name
            message, hint = f"the base model is served in any case, as {BASE_NAME}", f"leave out {alone}"
            raise UsageError(message, where=alone, hint=hint)


def _describe_base_model(spec: ModelSpec) -> tuple[object, ...]:
    processor, images = spec.processor, spec.processor.image_processor
    constants = (images.patch_size, images.merge_size, images.temporal_patch_size, images.image_mean, images.image_std)
    eos_token_ids = [processor.tokenizer.control_tokens[name] for name in EOS_TOKENS]
    return spec.checkpoint.fingerprint, spec.checkpoint.quantization, constants, eos_token_ids


def _check_support(specs: Mapping[str, ModelSpec], adapters: Sequence[SavedAdapter]) -> None:
    """Raises LorgnetteError for a model or an adapter that only the reference engine runs."""
    from lorgnette.engine.loading import explain_unsupported_inference

    base = next(iter(specs.values()))
    if reason := explain_unsupported_inference(base.checkpoint, None):
        hint = "serve it with vLLM, after `lorgnette merge` if it has an adapter"
        raise LorgnetteError(f"serve does not run {reason}", where=base.base_model, hint=hint)
    for saved in adapters:
        if reason := explain_unsupported_inference(base.checkpoint, saved):
            hint = f"merge it, and serve the merged model: {format_command('merge', saved.folder, 'FOLDER')}"
            raise LorgnetteError(f"serve does not run {reason}", where=str(saved.folder), hint=hint)


def _list_models(specs: Mapping[str, ModelSpec], max_new_tokens: int | None) -> tuple[ServedModel, ...]:
    """The base model is asked as the first adapter is: the same prompt, and images of the same size."""
    served = []
    tuned = [(name, spec) for name, spec in specs.items() if spec.adapter is not None]
    for number, (name, spec) in enumerate(tuned):
        assert spec.adapter is not None
        digest = hashlib.sha256(spec.checkpoint.fingerprint.encode() + (spec.adapter / WEIGHTS_FILE).read_bytes())
        served.append(_build_model(name, (), spec, number, digest.hexdigest(), max_new_tokens))
    name, spec = next(iter(specs.items()))
    aliases = dict.fromkeys([BASE_NAME, spec.base_model, portable_name(spec.base_model)])
    base_name = BASE_NAME if tuned else name
    served.append(_build_model(base_name, tuple(aliases), spec, None, spec.checkpoint.fingerprint, max_new_tokens))
    return tuple(served)


def _build_model(
    name: str, aliases: tuple[str, ...], spec: ModelSpec, adapter: int | None, digest: str, max_new_tokens: int | None
) -> ServedModel:
    metadata = spec.metadata
    return ServedModel(
        name,
        aliases,
        adapter,
        spec.processor,
        metadata.prompt if metadata else DEFAULT_PROMPT,
        max_new_tokens or (metadata.predict_max_new_tokens if metadata else PredictSettings().max_new_tokens),
        None if adapter is None else BASE_NAME,
        digest[:8],
    )
