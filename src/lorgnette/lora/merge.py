"""Writes base model and adapter as one checkpoint with the base's file layout."""

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lorgnette.errors import LorgnetteError
from lorgnette.io.atomic import atomic_folder, write_json
from lorgnette.io.parse import read_config
from lorgnette.lora.peft_files import SavedAdapter
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.family import LM_HEAD, convert_weight_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_NOT_COPIED = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "manifest.json")
"""The base's weights in any format, and the record of its training."""
_INDEX = "model.safetensors.index.json"
_PREFIX = "base_model.model."
_EMBEDDINGS = ("embed_tokens", "lm_head")


def find_merge_obstacle(saved: SavedAdapter, checkpoint: BaseCheckpoint) -> str | None:
    """Why the adapter cannot become part of the base model's weights, or None. It can still be used beside them."""
    if saved.config.get("alora_invocation_tokens"):
        return "it adapts only the tokens behind its invocation (alora_invocation_tokens)"
    weights = set(checkpoint.list_weights())
    ends = ".lora_B.bias", ".lora_embedding_B.bias"
    biases = [name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in saved.state if name.endswith(ends)]
    if without := [module for module in biases if f"{module}.bias" not in weights]:
        return f"it trains a bias (lora_bias) of {len(without)} modules that have none, such as {without[0]}"
    return None


def untie_output_layer(model: "PreTrainedModel", saved: SavedAdapter) -> None:
    """Give the output layer weights of its own if it shares the embedding's and the adapter adapts one of the two.

    PEFT would otherwise merge what belongs to one of them into both. Call it before the adapter is loaded.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    modules = {part for name in saved.state for part in name.split(".")}
    if head.weight is embedding.weight and modules & set(_EMBEDDINGS):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def write_merged_checkpoint(model: "PeftModel", checkpoint: BaseCheckpoint, folder: Path) -> None:
    """Merge the adapter into the weights, as PEFT does, and write them shard by shard, as the base has them.

    Each tensor keeps the base's name and dtype, tied ones are written once, and unadapted ones keep their bits. An
    output layer that is no longer the embedding is added. All other files (config, tokenizer, template, processor) are
    copied. The model cannot be used afterwards. It should be in float32, so that the sum is rounded only once, when it
    is written. Raises LorgnetteError if PEFT cannot merge.
    """
    try:
        merged: Any = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if "can't allocate memory" in str(error):
            raise
        hint = "use it beside its base model"
        raise LorgnetteError(explain_merge_error(error), where=str(checkpoint.folder), hint=hint) from error
    state: dict[str, torch.Tensor] = merged.state_dict()
    with atomic_folder(folder) as temporary:
        head = _find_untied_head(merged, checkpoint)
        for shard in checkpoint.weight_files:
            with safe_open(shard, framework="pt") as base:
                names, tensors = base.keys(), {}
                for name in names:
                    tensor = state.get(name, state.get(convert_weight_name(name)))
                    if tensor is None:
                        message = f"the model has no tensor for {name}"
                        raise LorgnetteError(message, where=str(shard), hint=DOWNLOAD_AGAIN)
                    tensors[name] = tensor.to(base.get_tensor(name).dtype).contiguous()
            if head is not None and shard == checkpoint.weight_files[-1]:
                tensors[LM_HEAD] = head.to(next(iter(tensors.values())).dtype).contiguous()
            save_file(tensors, temporary / shard.name, metadata={"format": "pt"})
        for path in checkpoint.folder.iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
                shutil.copyfile(path, temporary / path.name)
        if head is not None:
            _record_untied_head(temporary, checkpoint.weight_files[-1].name)


def explain_merge_error(error: Exception | str) -> str:
    """Why PEFT cannot merge an adapter, in one line."""
    return f"it cannot be merged: {(str(error).splitlines() or [''])[0][:300]}"


def find_stored_dtype(checkpoint: BaseCheckpoint) -> str:
    """The dtype of most tensors in the first weight file, in safetensors' words: BF16, F32, …"""
    with safe_open(checkpoint.weight_files[0], framework="pt") as base:
        names = base.keys()
        dtypes = Counter(base.get_slice(name).get_dtype() for name in names)
    return str(dtypes.most_common(1)[0][0])


def _find_untied_head(model: "PreTrainedModel", checkpoint: BaseCheckpoint) -> torch.Tensor | None:
    """The output layer's weights if the base's files have none and they differ from the embedding's."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    is_new = LM_HEAD not in checkpoint.list_weights() and not torch.equal(head, embedding)
    return head.detach() if is_new else None


def _record_untied_head(folder: Path, shard: str) -> None:
    """Say in config.json and in the index that the output layer has weights of its own."""
    config = read_config(folder / "config.json", DOWNLOAD_AGAIN)
    for section in (config, config.get("text_config")):
        if isinstance(section, dict):
            section["tie_word_embeddings"] = False
    write_json(folder / "config.json", config)
    if (folder / _INDEX).is_file():
        index = read_config(folder / _INDEX, DOWNLOAD_AGAIN)
        index["weight_map"][LM_HEAD] = shard
        write_json(folder / _INDEX, index)
