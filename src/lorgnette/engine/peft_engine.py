"""The reference engine: transformers' modules with PEFT's adapter, driven from a PackedBatch. Runs everywhere.

It uses public interfaces only: the language model takes `inputs_embeds` and `position_ids`, the attention function is
registered by name (packed_attention.py), and the output layer sees only the tokens that predict a label.

A model with a recurrence reads past the end of an example in a packed row. Its examples run side by side, those of
similar length in one call.
"""

import logging
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from lorgnette.config import LoraSettings
from lorgnette.distributed import allocate_flat_grad
from lorgnette.engine.base import Shards, refuse_oom_of_shards
from lorgnette.engine.loss_scale import allocate_loss_scale
from lorgnette.engine.nf4_linear import build_loading_options, replace_quantized_linears, set_compute_dtype
from lorgnette.engine.packed_attention import ATTENTION_NAME, Segments, build_segments, group_by_length
from lorgnette.engine.unrounded_linear import add_before_rounding
from lorgnette.errors import LorgnetteError
from lorgnette.features.image_features import Features
from lorgnette.lora.peft_files import HINT, SavedAdapter, check_names, check_tensors, explain_load_error
from lorgnette.models.base_checkpoint import DOWNLOAD_AGAIN, BaseCheckpoint
from lorgnette.models.family import Family
from lorgnette.models.registry import find_family
from lorgnette.types import PackedBatch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from lorgnette.engine.fsdp_layers import FsdpLayers


class ReferenceEngine:
    """Computes losses of packed batches; adds gradients to the `.grad` of PEFT's parameters."""

    prefix_sharing = eval_prefix_sharing = False

    def __init__(self, model: "PeftModel", features: Features, shards: "FsdpLayers | None" = None) -> None:
        base = model.get_base_model()
        self.model, self.features = model, features
        self._can_pack = find_family(base.config.model_type).can_pack
        self._decoder = base.get_submodule("model.language_model")
        self._lm_head = base.get_submodule("lm_head")
        self._embedding = base.get_input_embeddings()
        self.device, self.dtype = self._embedding.weight.device, self._embedding.weight.dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.shards: Shards | None = shards
        self.loss_scale = allocate_loss_scale(self.dtype, self.device)

    @cached_property
    def flat_grad(self) -> Float32[Tensor, " n"]:
        """As Engine.flat_grad. From then on autograd adds to it."""
        return allocate_flat_grad(self.parameters)

    def backward(self, batch: PackedBatch) -> Float[Tensor, ""]:
        """As Engine.backward. The batch's dropout keys are not used: PEFT draws from torch's global random state.

        Raises LorgnetteError in place of torch.OutOfMemoryError if the layers are sharded.
        """
        self.model.train()
        with refuse_oom_of_shards(self.shards, len(batch.input_ids)):
            loss = self.compute_weighted_loss(batch)
            (loss if self.loss_scale is None else loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def compute_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        self.model.eval()
        with refuse_oom_of_shards(self.shards, len(batch.input_ids)):
            return self.compute_weighted_loss(batch)

    def compute_label_losses(self, batch: PackedBatch) -> Float[Tensor, " R"]:
        """As Engine.compute_label_losses; autograd may differentiate them."""
        self.model.eval()
        with refuse_oom_of_shards(self.shards, len(batch.input_ids)):
            return self._compute_label_losses(batch)

    def sync_weights(self) -> None:
        """Does nothing: the optimizer updates PEFT's own parameters."""

    def compute_weighted_loss(self, batch: PackedBatch) -> Float[Tensor, ""]:
        return (self._compute_label_losses(batch) * self._to_device(batch.label_weights)).sum()

    def _compute_label_losses(self, batch: PackedBatch) -> Float[Tensor, " R"]:
        """Cross-entropy of every label, in fp32, with dropout if the model is in training mode."""
        # bf16 weights with fp32 adapters, PEFT's default pairing, are computed in bf16.
        half = self.dtype != torch.float32
        context: AbstractContextManager[object]
        context = torch.autocast(self.device.type, dtype=self.dtype) if half else nullcontext()
        with context:
            hidden = self._compute_hidden(batch).index_select(0, self._to_device(batch.label_indices))
            logits = self._lm_head(hidden)
        return cross_entropy(logits.float(), self._to_device(batch.targets).long(), reduction="none")

    def _compute_hidden(self, batch: PackedBatch) -> Float[Tensor, "T C"]:
        """The decoder's output for every token."""
        embeddings, position_ids = self._embed(batch), self._to_device(batch.position_ids).t()
        offsets = [0, *np.unique(batch.visible_until).tolist()]
        if self._can_pack:
            segments = build_segments(offsets, self.device)
            return self._run_decoder(embeddings[None], position_ids[None], segments=segments)[0]
        hidden, order = [], []
        for group in group_by_length(offsets):
            tokens = torch.cat([torch.arange(start, end, device=self.device) for start, end in group])
            segments = build_segments([0, *accumulate(end - start for start, end in group)], self.device)
            rows = self._run_decoder(segments.pad(embeddings[tokens]), segments.pad(position_ids[tokens]))
            hidden.append(rows.flatten(0, 1).index_select(0, segments.padded_indices))
            order.append(tokens)
        return torch.cat(hidden).index_select(0, torch.cat(order).argsort())

    def _run_decoder(
        self, embeddings: Float[Tensor, "B T W"], position_ids: Int[Tensor, "B T 3"], **options: Segments
    ) -> Float[Tensor, "B T C"]:
        """Run it on rows of tokens, without a mask: attention is causal, or `options` says what it sees."""
        embedded, *levels = torch.split(embeddings, self._embedding.embedding_dim, dim=-1)
        deepstack = {
            "visual_pos_masks": torch.ones(embedded.shape[:2], dtype=torch.bool, device=self.device),
            "deepstack_visual_embeds": [level.flatten(0, 1) for level in levels],
        }
        hidden: Tensor = self._decoder(
            inputs_embeds=embedded,
            position_ids=position_ids.permute(2, 0, 1),
            attention_mask=None,
            use_cache=False,
            **(deepstack if levels else {}),
            **options,
        ).last_hidden_state
        return hidden

    def _embed(self, batch: PackedBatch) -> Float[Tensor, "T W"]:
        """The embedding of every token, with the levels of deepstack beside it: W = (1 + K)·C, zeros where no image is.

        W is C if the batch has no image.
        """
        embeddings: Tensor = self._embedding(self._to_device(batch.input_ids))
        if not batch.grids:
            return embeddings
        features = self.features.gather(batch.grids).to(embeddings.dtype)
        rows = features.index_select(0, self._to_device(batch.feature_indices))
        embeddings = pad(embeddings, (0, rows.shape[1] - embeddings.shape[1]))
        return embeddings.index_copy(0, self._to_device(batch.image_token_indices).long(), rows)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=self.device.type == "cuda")


def load_base_model(checkpoint: BaseCheckpoint, device: torch.device, dtype: torch.dtype) -> "PreTrainedModel":
    """transformers' model in evaluation mode with every weight frozen.

    Matrices are in NF4 as the checkpoint says. Raises LorgnetteError if the files are broken, lack weights of the
    model, or hold others, or if this transformers does not know the family; UsageError if NF4 needs bitsandbytes.
    """
    import transformers

    family = checkpoint.family
    cls = getattr(transformers, family.class_name, None)
    if cls is None:
        message = f"transformers {transformers.__version__} does not know {family.title}: it has no {family.class_name}"
        raise LorgnetteError(message, where=str(checkpoint.folder), hint="pip install --upgrade transformers")

    transformers.utils.logging.set_verbosity_error()  # its messages about loading are replaced by `info` below
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of a kernel it lacks
    options: dict[str, Any] = {"device_map": {"": device} if device.type != "cpu" else None}
    if checkpoint.quantization is not None:
        options = build_loading_options(checkpoint, device, dtype)
    try:
        model, info = cls.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            **options,
            # "": of both together, where config.json could name a kernel to download
            attn_implementation={"": "sdpa", "text_config": ATTENTION_NAME, "vision_config": "sdpa"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken config.json or weight file raises nearly anything in there
        first, *others = str(error).strip().splitlines() or [type(error).__name__]
        reason = " ".join([first, *others[:1]]) if first.endswith(":") else first
        message = f"weights cannot be loaded: {' '.join(reason.split())}"
        raise LorgnetteError(message, where=str(checkpoint.folder), hint=DOWNLOAD_AGAIN) from error
    mismatches = {
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(name for name in info["unexpected_keys"] if not name.startswith(family.ignored_weights)),
        "of another shape": sorted(name for name, *_ in info["mismatched_keys"]),
    }
    names = [name for group in mismatches.values() for name in group]
    if names:
        counts = ", ".join(f"{len(group)} {kind}" for kind, group in mismatches.items() if group)
        examples = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        message = f"weights do not fit the model: {counts} ({examples})"
        raise LorgnetteError(message, where=str(checkpoint.folder), hint=DOWNLOAD_AGAIN)
    if checkpoint.quantization is not None:
        replace_quantized_linears(model, dtype, checkpoint.folder)
    if dtype == torch.float16:  # the residual stream of a vision tower may grow beyond float16's largest number
        set_compute_dtype(model.get_submodule("model.visual").float(), torch.float32)
    # The checkpoint's own sampling defaults (Qwen2-VL's: temperature 0.01, top_k 1) would enter every generate call.
    model.generation_config = transformers.GenerationConfig()
    return model.requires_grad_(False).eval()


def add_adapter(model: "PreTrainedModel", family: Family, lora: LoraSettings, seed: int) -> "PeftModel":
    """Add a fresh adapter: A drawn from `seed`, B zero, so that the outputs do not change yet.

    Its weights are fp32 whatever the model's dtype (PEFT's default), and the only trainable ones.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.use_rslora,
        target_modules=family.build_target_pattern(lora.target_modules, lora.parts),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft_model = get_peft_model(model, config)
    add_before_rounding(peft_model)
    return peft_model


def load_adapter(model: "PreTrainedModel", folder: Path, *, is_trainable: bool = False) -> "PeftModel":
    """Load a saved adapter onto its base model.

    Loads what PEFT loads: also DoRA, trained biases and embeddings, `modules_to_save`. Raises LorgnetteError if files
    are missing or broken, or if tensor names do not match exactly (PEFT only warns).
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    saved, modules = SavedAdapter.load(folder), [name for name, _ in model.named_modules() if name]
    saved.check_patterns(modules)
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the judgement of an adapter says in its own words
            config = PeftConfig.from_pretrained(folder)
            config.inference_mode = not is_trainable
            config.base_model_name_or_path = None  # the adapter's metadata checks the base model, not PEFT
            for option, value in saved.build_peft_options(modules).items():
                setattr(config, option, value)
            peft_model = get_peft_model(model, config)
        expected = get_peft_model_state_dict(peft_model, save_embedding_layers=False).keys()
        # PEFT saves whole embeddings too, if they have other sizes than the base model's, or on request.
        whole = {name for name, p in peft_model.named_parameters(remove_duplicate=False) if id(p) in embeddings}
        check_names(saved.state.keys(), expected | (whole & saved.state.keys()), folder)
        set_peft_model_state_dict(peft_model, saved.state)
        add_before_rounding(peft_model)
    except (LorgnetteError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # PEFT raises nearly anything for values that do not fit the model
        raise LorgnetteError(explain_load_error(error), where=str(folder), hint=HINT) from error
    return peft_model.eval()


def get_adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """The adapter's parameters by their names in its file, in the model's order."""
    return {name.replace(".default.", "."): p for name, p in model.named_parameters() if ".lora_" in name}


def set_adapter_state(model: "PeftModel", state: Mapping[str, torch.Tensor]) -> None:
    """Copy the factors in; the parameters stay the same objects. Raises LorgnetteError if names or shapes differ."""
    parameters = get_adapter_state(model)
    check_tensors(state, {name: tuple(p.shape) for name, p in parameters.items()}, Path("adapter"))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def copy_adapter_state(model: "PeftModel") -> dict[str, torch.Tensor]:
    """A copy of `get_adapter_state` on the CPU."""
    return {name: p.detach().to("cpu", copy=True) for name, p in get_adapter_state(model).items()}
