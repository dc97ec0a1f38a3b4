"""Writes base model and adapter as one checkpoint with the base's file layout."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from lorgnette.models.family import EMBEDDING, LM_HEAD, Family, convert_weight_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_NOT_COPIED = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "manifest.json")
"""The base's weights in any format, and the record of its training."""
_INDEX = "model.safetensors.index.json"
_PREFIX = "base_model.model."
_EXPERTS = ".mlp.experts."
_EMBEDDINGS = ("embed_tokens", "lm_head")
_DTYPE_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


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


@dataclass
class Rounding:
    """How much of the adapter's change is in the merged weights as they are written.

    W are the base's weights, D what the adapter adds to them (in float32), and R = round(W + D) − W what is added in
    the files. Sums over all values of all weights.

    kept = ⟨R, D⟩ / ⟨D, D⟩: the coefficient of D in the orthogonal projection of R onto D. 1: rounding does not shorten
    the change; 0: nothing of it is left. The rest, R − kept · D, is noise without the change's direction: LoRA's change
    has a low rank and adds up over the inputs of a layer, that noise does not, and so it costs less of the effect than
    its norm says. Where |D| is less than half the distance between two values of the dtype, R is mostly 0.
    """

    dtype: str
    product: float = 0.0
    square: float = 0.0

    @property
    def kept(self) -> float:
        """A share; above 1 if rounding happens to lengthen the change."""
        return self.product / self.square if self.square else 1.0

    def add(self, base: torch.Tensor, merged: torch.Tensor, written: torch.Tensor) -> None:
        """Count the values of one weight. merged: before it is rounded, in float32."""
        change, added = merged.double() - base.double(), written.double() - base.double()
        self.product += (added * change).sum().item()
        self.square += (change * change).sum().item()


def write_merged_checkpoint(
    model: "PeftModel",
    checkpoint: BaseCheckpoint,
    folder: Path,
    *,
    use_float32: bool = False,
    check: Callable[[Rounding], None] = lambda rounding: None,
) -> Rounding:
    """Merge the adapter into the weights, as PEFT does, and write them shard by shard, as the base has them.

    Each tensor keeps the base's name, layout and dtype; tied ones are written once. Tensors that the adapter does not
    change are copied from the base's files, also those that transformers does not load. An output layer that is no
    longer the embedding is added. All other files (config, tokenizer, template, processor) are copied. use_float32: all
    tensors and config.json are float32 instead. check: called before the folder is in its place; if it raises, there is
    none. The model cannot be used afterwards. It should be in float32, so that the sum is rounded only once, when it is
    written. Raises LorgnetteError if PEFT cannot merge.
    """
    rounding = Rounding("float32" if use_float32 else find_stored_dtype(checkpoint))
    adapted_experts = _list_adapted_experts(model)
    try:
        merged: Any = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if "can't allocate memory" in str(error):
            raise
        hint = "use it beside its base model"
        raise LorgnetteError(explain_merge_error(error), where=str(checkpoint.folder), hint=hint) from error
    state = _collect_merged_tensors(merged, adapted_experts)
    with atomic_folder(folder) as temporary:
        head = _find_untied_head(merged, checkpoint)
        for shard in checkpoint.weight_files:
            tensors = _round_shard(shard, state, checkpoint.family, use_float32, rounding)
            if head is not None and shard == checkpoint.weight_files[-1]:
                tensors[LM_HEAD] = head.to(next(iter(tensors.values())).dtype).contiguous()
                rounding.add(_load_embedding(checkpoint), head, tensors[LM_HEAD])  # it was the output layer too
            save_file(tensors, temporary / shard.name, metadata={"format": "pt"})
        for path in checkpoint.folder.iterdir():
            if path.is_file() and not any(path.match(pattern) for pattern in _NOT_COPIED):
                shutil.copyfile(path, temporary / path.name)
        if head is not None:
            _record_untied_head(temporary, checkpoint.weight_files[-1].name)
        if use_float32:
            _record_float32(temporary)
        check(rounding)
    return rounding


def _list_adapted_experts(model: "PeftModel") -> tuple[str, ...]:
    """Names of the modules of experts that have an adapter of their own or within."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    names = (name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    experts = {f"{name}.".partition(_EXPERTS)[0] for name in names if _EXPERTS in f"{name}."}
    return tuple(f"{name.removeprefix(_PREFIX)}{_EXPERTS}" for name in experts)


def _collect_merged_tensors(merged: "PreTrainedModel", adapted_experts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The merged model's tensors by the names that it or the base's files have for them.

    transformers keeps experts in another layout than some files do. Adapted ones get the files' layout again. The
    others are left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    state: dict[str, torch.Tensor] = merged.state_dict()
    experts = {name: state.pop(name) for name in list(state) if _EXPERTS in name}
    adapted = {name: tensor for name, tensor in experts.items() if name.startswith(adapted_experts)}
    return state | (adapted | revert_weight_conversion(merged, adapted) if adapted else {})


def _round_shard(
    shard: Path, state: Mapping[str, torch.Tensor], family: Family, use_float32: bool, rounding: Rounding
) -> dict[str, torch.Tensor]:
    """The tensors of one of the base's files, as they are written."""
    tensors = {}
    with safe_open(shard, framework="pt") as base:
        names = base.keys()
        for name in names:
            stored = base.get_tensor(name)
            tensor = state.get(name, state.get(convert_weight_name(name)))
            if tensor is None and not (_EXPERTS in name or name.startswith(family.ignored_weights)):
                message = f"the model has no tensor for {name}"
                raise LorgnetteError(message, where=str(shard), hint=DOWNLOAD_AGAIN)
            is_changed = tensor is not None and not torch.equal(stored.to(tensor.dtype), tensor)
            source = tensor if tensor is not None and is_changed else stored
            tensors[name] = source.to(torch.float32 if use_float32 else stored.dtype).contiguous()
            if is_changed:
                rounding.add(stored, source, tensors[name])
    return tensors


def _load_embedding(checkpoint: BaseCheckpoint) -> torch.Tensor:
    for shard in checkpoint.weight_files:
        with safe_open(shard, framework="pt") as base:
            names = base.keys()
            for name in names:
                if convert_weight_name(name) == EMBEDDING:
                    embedding: torch.Tensor = base.get_tensor(name)
                    return embedding
    raise LorgnetteError(f"the model has no tensor for {EMBEDDING}", where=str(checkpoint.folder), hint=DOWNLOAD_AGAIN)


def explain_merge_error(error: Exception | str) -> str:
    """Why PEFT cannot merge an adapter, in one line."""
    return f"it cannot be merged: {(str(error).splitlines() or [''])[0][:300]}"


def find_stored_dtype(checkpoint: BaseCheckpoint) -> str:
    """The dtype of most tensors in the first weight file, in torch's words: bfloat16, float32, …"""
    with safe_open(checkpoint.weight_files[0], framework="pt") as base:
        names = base.keys()
        dtypes = Counter(base.get_slice(name).get_dtype() for name in names)
    dtype = str(dtypes.most_common(1)[0][0])
    return _DTYPE_NAMES.get(dtype, dtype)


def _find_untied_head(model: "PreTrainedModel", checkpoint: BaseCheckpoint) -> torch.Tensor | None:
    """The output layer's weights if the base's files have none and they differ from the embedding's."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    is_new = LM_HEAD not in checkpoint.list_weights() and not torch.equal(head, embedding)
    return head.detach() if is_new else None


def _record_float32(folder: Path) -> None:
    """Say in config.json that the weights are float32: programs load them in the dtype that it names."""
    config = read_config(folder / "config.json", DOWNLOAD_AGAIN)
    for section in (config, config.get("text_config"), config.get("vision_config")):
        for name in ("dtype", "torch_dtype"):
            if isinstance(section, dict) and (section is config or name in section):
                section[name] = "float32"
    write_json(folder / "config.json", config)


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
