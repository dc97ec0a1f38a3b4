"""How much of a GPU's memory a run needs, from shapes alone, and what makes it fit into less. Needs no torch.

    features   weights · tower · what it computes with · features (and in the fast engine, a pass in small)
    loss       weights · adapter · features · what every layer keeps · logits
    backward   weights · adapter · features · what every layer keeps · one layer's gradients
    held-out   weights · adapter · features · one layer, nothing kept · logits

The fullest of these moments is the peak: what torch.cuda.max_memory_allocated counts. T rows, C hidden, H heads, K key
heads, D head width, F MLP width, L layers, V tokens, r rank, as in decoder.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lorgnette.config import TargetModule
from lorgnette.errors import LorgnetteError
from lorgnette.models.qwen2_vl.config import TextConfig, VisionConfig, WeightShapes

EngineName = Literal["fast", "reference"]
Items = Mapping[str, int]
"""Bytes by what they are for."""

GIB = 2**30
FUSED_PROJECTIONS: tuple[tuple[TargetModule, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",),
)  # fmt: skip
"""Projections of one input: in the fast engine, one matrix."""
MAX_PATCHES_PER_CALL = 16384
"""That the tower takes in one call (features.py)."""
FEATURE_MEMORY_FRACTION = 0.25
"""Of the memory that is free before the first feature is made: what features may take, the rest lies on the host
(features.py)."""
_MAX_LOGIT_ROWS = 2048  # rows of logits of the fast engine (decoder.py)
_WORKSPACE = 32 * 2**20  # cuBLAS's, of each stream on Hopper
WARMUP_LAYERS = 2
"""Of the model in small that warms the kernels: a decoder's last layer is another than those before it."""
_CUDA_CONTEXT_BYTES = GIB // 2  # the CUDA context and its kernels, which torch does not count
_FRAGMENTATION = 0.05  # of the device: what the allocator cannot use for the holes in it


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run computes with, and the most it computes at once.

    number_bytes: of a weight, 2 or 4. rows, labels: of the largest pass; held_out_rows, held_out_labels: of the largest
    pass of an eval loss. again: layers that are run twice instead of kept. rooms: shapes of passes that are recorded.
    feature_rows: image tokens of all distinct pictures. tower: whether the fast engine's is never loaded, as where
    all features are on disk, or there while features are made, or to the end, as the reference engine's always is.
    open_patches: patches of the largest pass, where the vision
    blocks are trained too and keep what they did; features are then not kept.
    """

    engine: EngineName
    text: TextConfig
    vision: VisionConfig
    target_modules: tuple[TargetModule, ...]
    rank: int
    has_dropout: bool
    tokens: int
    labels: int
    bytes_per_value: int = 2
    eval_tokens: int = 0
    eval_labels: int = 0
    recompute_layers: int = 0
    num_graphs: int = 1
    feature_tokens: int = 0
    tower_residency: Literal["never", "while features are made", "to the end"] = "never"
    trained_patches: int = 0

    def limit_tokens(self, max_tokens: int) -> "Workload":
        """The same, cut into passes of at most so many rows."""
        return replace(
            self,
            tokens=min(self.tokens, max_tokens),
            labels=_scale_labels(self.labels, max_tokens, self.tokens),
            eval_tokens=min(self.eval_tokens, max_tokens),
            eval_labels=_scale_labels(self.eval_labels, max_tokens, self.eval_tokens),
        )


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by item at each moment that may be the fullest."""

    phases: Mapping[str, Items]

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda moment: sum(self.phases[moment].values()))

    @property
    def peak_items(self) -> Items:
        """Of the fullest moment."""
        return self.phases[self.peak_phase]

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak_items.values())


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """How a run fits: in passes of at most `rows` rows, `again` layers run twice."""

    max_tokens: int
    recompute_layers: int
    peak_bytes: int


def predict_memory(workload: Workload) -> MemoryEstimate:
    """Bytes on the device. Of the reference engine: transformers' modules with PEFT's fp32 adapter under autocast."""
    return _predict_fast(workload) if workload.engine == "fast" else _predict_reference(workload)


def compute_usable_bytes(gib: float) -> int:
    """Bytes that a run may count on, of a device of so many GiB."""
    return int(gib * GIB * (1 - _FRAGMENTATION)) - _CUDA_CONTEXT_BYTES


def min_recompute_layers(workload: Workload, available_bytes: int) -> int:
    """The fewest layers to run twice so that the peak is within `available_bytes`.

    Raises LorgnetteError with what to lower, where that is not enough, or the engine keeps every layer.
    """
    most = workload.text.num_layers if workload.engine == "fast" else 0
    for again in range(most + 1):
        if predict_memory(replace(workload, recompute_layers=again)).peak_bytes <= available_bytes:
            return again
    need = predict_memory(replace(workload, recompute_layers=most)).peak_bytes
    twice = " even with every layer run twice" if most else ""
    raise LorgnetteError(
        f"{need / GIB:.1f} GiB are needed{twice}, and {available_bytes / GIB:.1f} GiB are there",
        where="memory",
        hint=f"lower train.max_tokens_per_microbatch (the largest pass has {workload.tokens}), image_size or lora.rank",
    )


def find_fit(workload: Workload, longest_example: int, available_bytes: int) -> MemoryFit | None:
    """What is lowered first to last: nothing; rows of a pass, which costs next to no time, but no pass is smaller than
    the longest example; then layers that are kept. None where that is not enough."""
    workload = _limit_features(workload, available_bytes)
    low, high = longest_example, max(workload.tokens, workload.eval_tokens)
    peak = predict_memory(workload).peak_bytes
    if peak <= available_bytes:
        return MemoryFit(high, workload.recompute_layers, peak)
    if predict_memory(workload.limit_tokens(low)).peak_bytes <= available_bytes:
        while high - low > 1:
            middle = (low + high) // 2
            fits = predict_memory(workload.limit_tokens(middle)).peak_bytes <= available_bytes
            low, high = (middle, high) if fits else (low, middle)
        even = max(low // 64 * 64, longest_example)
        return MemoryFit(even, workload.recompute_layers, predict_memory(workload.limit_tokens(even)).peak_bytes)
    try:
        again = min_recompute_layers(workload.limit_tokens(longest_example), available_bytes)
    except LorgnetteError:
        return None
    return MemoryFit(
        longest_example,
        again,
        predict_memory(replace(workload.limit_tokens(longest_example), recompute_layers=again)).peak_bytes,
    )


def pad_tokens(tokens: int) -> int:
    """Rows that the fast engine pads a pass of so many to on CUDA (fast.py: `Room`)."""
    return _round_up(tokens + 1, 64)


def _round_up(count: int, parts: int) -> int:
    step = max(16, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


def _limit_features(work: Workload, available_bytes: int) -> Workload:
    free = available_bytes - work.bytes_per_value * (
        _count_params(work.text.list_weight_shapes()) + _count_params(work.vision.list_weight_shapes())
    )
    most = int(FEATURE_MEMORY_FRACTION * max(free, 0)) // (work.bytes_per_value * work.text.hidden_size)
    return replace(work, feature_tokens=min(work.feature_tokens, most))


def _predict_fast(work: Workload) -> MemoryEstimate:
    text, rows, number = work.text, pad_tokens(work.tokens), work.bytes_per_value
    widest = text.intermediate_size + work.rank * ("down_proj" in work.target_modules)
    here = {
        "weights": number * (_count_params(text.list_weight_shapes()) + _count_fused_columns(work)),
        "vision tower": number * _count_params(work.vision.list_weight_shapes())
        if work.tower_residency == "to the end"
        else 0,
        "adapter": 16 * count_lora_params(work),
        "features": number * work.feature_tokens * text.hidden_size,
        "batches": work.num_graphs * rows * (number * text.hidden_size + 32) + rows * 4 * text.head_dim,
        "libraries": 3 * _WORKSPACE,
    }
    layer, last = _count_saved_fast(work), _count_saved_last_layer(work, rows, min(_round_up(work.labels, 4), rows - 1))
    inputs = 2 * number * text.hidden_size  # of a layer that is run twice: what it adds up
    again = min(work.recompute_layers, text.num_layers - 1)  # of the layers before the last
    kept = text.num_layers - 1 - again
    # Backward through the MLP: the gradients of its output and its product, the product made again, dropout's share.
    backward = {
        "activations": rows * (max(kept, 1) * layer + again * inputs),
        "gradients": rows
        * number
        * (text.hidden_size + widest + text.intermediate_size * (2 if work.has_dropout else 1)),
    }
    activations = rows * (kept * layer + again * inputs)
    activations += last if work.recompute_layers < text.num_layers else rows * inputs
    moments = {
        "loss": here | {"activations": activations, "logits": _count_logits_fast(work, work.labels)},
        "backward": here | backward,
    }
    if work.tower_residency != "never":  # kernels are warmed meanwhile (warm.py); the optimizer has no moments yet
        small = number * _count_params(replace(text, num_layers=WARMUP_LAYERS).list_weight_shapes())
        warmed = {"warming": small + rows * WARMUP_LAYERS * layer + _count_logits_fast(work, work.labels)}
        made = _predict_feature_phase(work, {"weights": here["weights"]})
        moments["features"] = {**made, **warmed, "adapter": here["adapter"] // 2}
    if work.eval_tokens:
        wide = pad_tokens(work.eval_tokens)
        once = wide * (layer + number * (widest + 2 * text.hidden_size))
        moments["held-out"] = here | {
            "activations": wide * text.num_layers * inputs,
            "one layer, or logits": max(once, _count_logits_fast(work, work.eval_labels)),
        }
    return MemoryEstimate(moments)


def _predict_reference(work: Workload) -> MemoryEstimate:
    text, vision = work.text, work.vision
    here = {
        "weights": work.bytes_per_value * _count_params(text.list_weight_shapes()),
        "vision tower": work.bytes_per_value * _count_params(vision.list_weight_shapes()),
        "adapter": 16 * count_lora_params(work),
        "features": 0 if work.trained_patches else work.bytes_per_value * work.feature_tokens * text.hidden_size,
        "libraries": 2 * _WORKSPACE,
    }
    kept = {"activations": work.tokens * text.num_layers * _count_saved_reference(work)}
    if work.bytes_per_value == 2:
        kept["adapter in bf16"] = 2 * count_lora_params(work)  # autocast's copies
    if work.trained_patches:
        kept["vision activations"] = work.trained_patches * vision.depth * _count_saved_vision(work)
    gradients = 12 * text.intermediate_size  # of the MLP's product and of its inputs, some of them in fp32
    moments = {
        "features": _predict_feature_phase(work, {"weights": here["weights"]}),
        "loss": here | kept | {"logits": _count_logits_reference(work, work.labels)},
        "backward": here | kept | {"gradients": work.tokens * gradients},
    }
    if work.eval_tokens:
        once = max(work.eval_tokens * gradients, _count_logits_reference(work, work.eval_labels))
        moments["held-out"] = here | {"one layer, or logits": once}
    return MemoryEstimate(moments)


def _predict_feature_phase(work: Workload, here: Items) -> Items:
    """x, its norm, then queries, keys and values or the MLP's hidden numbers, which transformers' modules copy."""
    vision = work.vision
    copies = 1 if work.engine == "fast" else 3
    widest = 2 * vision.embed_dim + max(3 * vision.embed_dim, copies * vision.intermediate_size) + vision.patch_dim
    tokens = 0 if work.trained_patches else work.feature_tokens
    patches = min(MAX_PATCHES_PER_CALL, tokens * vision.merge_size**2)
    return {
        **here,
        "vision tower": work.bytes_per_value * _count_params(vision.list_weight_shapes()),
        "patches": work.bytes_per_value * patches * widest,
        "features": work.bytes_per_value * tokens * vision.out_features,
        "libraries": 2 * _WORKSPACE,
    }


def _count_saved_fast(work: Workload) -> int:
    """Bytes a row and layer of decoder.py's `Saved`, as a layer before the last keeps it: x0, qkv, au, x1, gate_up and
    every adapted projection's u; the norms' scales and attention's logsumexp in fp32."""
    text = work.text
    inner, narrow = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    numbers = (
        2 * text.hidden_size
        + (inner + 2 * narrow)
        + inner
        + 2 * text.intermediate_size
        + work.rank * len(work.target_modules)
    )
    return work.bytes_per_value * numbers + 4 * (2 + text.num_heads)


def _count_saved_last_layer(work: Workload, rows: int, last_rows: int) -> int:
    """Bytes of the last layer: x0 and qkv of every row, the rest of those that predict a label."""
    text = work.text
    columns = work.rank * sum(target in work.target_modules for target in FUSED_PROJECTIONS[0])
    every = (
        work.bytes_per_value * (text.hidden_size + (text.num_heads + 2 * text.num_kv_heads) * text.head_dim + columns)
        + 4
    )
    return rows * every + last_rows * (_count_saved_fast(work) - every)


def _count_saved_reference(work: Workload) -> int:
    """Bytes a row and layer that autograd keeps: the norms' inputs in fp32; queries, keys, values and what is attended;
    gate, its silu, up; and every adapted projection's own cast of its input, with dropout's mask of a byte.

    111 kB at 2B's shapes and rank 64, as torch's saved_tensors_hooks count them.
    """
    text, inputs = work.text, _get_in_features(work)
    inner, narrow = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    cast = sum(inputs.values())
    if work.bytes_per_value == 4 and not work.has_dropout:  # nothing to cast: projections share their input
        cast = sum(inputs[adapted[0]] for group in FUSED_PROJECTIONS if (adapted := [t for t in group if t in inputs]))
    numbers = 2 * inner + 2 * narrow + 3 * text.intermediate_size + cast + work.rank * len(inputs) + 2 * text.head_dim
    mask = sum(inputs.values()) if work.has_dropout else 0
    return 8 * text.hidden_size + work.bytes_per_value * numbers + inner // text.head_dim * 4 + mask


def _count_saved_vision(work: Workload) -> int:
    """Bytes a patch and block where the vision blocks are adapted: counted from the operations, not measured."""
    embed, mlp = work.vision.embed_dim, work.vision.intermediate_size
    mask = 3 * embed + mlp if work.has_dropout else 0
    return 8 * embed + work.bytes_per_value * (7 * embed + 3 * mlp + 4 * work.rank) + mask


def _count_logits_fast(work: Workload, labels: int) -> int:
    """Their gradient takes their place."""
    return work.bytes_per_value * min(_round_up(labels, 2), _MAX_LOGIT_ROWS) * work.text.vocab_size


def _count_logits_reference(work: Workload, labels: int) -> int:
    """As they come, in fp32, and their log-softmax in fp32."""
    return (work.bytes_per_value + 8) * labels * work.text.vocab_size


def count_lora_params(workload: Workload) -> int:
    """Numbers of the language model's adapter."""
    outputs, inputs = _get_out_features(workload), _get_in_features(workload)
    return workload.text.num_layers * workload.rank * sum(outputs[target] + inputs[target] for target in inputs)


def _count_fused_columns(work: Workload) -> int:
    """Numbers of B in blocks beside the weights, and of A in their dtype."""
    outputs, inputs = _get_out_features(work), _get_in_features(work)
    layer = 0
    for group in FUSED_PROJECTIONS:
        columns = work.rank * sum(target in inputs for target in group)
        layer += columns * sum(outputs[target] for target in group)
    return work.text.num_layers * (layer + work.rank * sum(inputs.values()))


def _get_out_features(work: Workload) -> dict[str, int]:
    return {target: size[0] for target, size in _get_projection_shapes(work.text).items()}


def _get_in_features(work: Workload) -> dict[str, int]:
    """Of the adapted projections."""
    return {
        target: size[1] for target, size in _get_projection_shapes(work.text).items() if target in work.target_modules
    }


def _get_projection_shapes(text: TextConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's projections by their short names."""
    names = [target for group in FUSED_PROJECTIONS for target in group]
    weights = {
        name.split(".")[-2]: size for name, size in text.list_weight_shapes().items() if name.endswith("_proj.weight")
    }
    return {name: weights[name] for name in names}


def _count_params(sizes: WeightShapes) -> int:
    return sum(map(math.prod, sizes.values()))


def _scale_labels(labels: int, rows: int, of: int) -> int:
    return labels if rows >= of else -(-labels * rows // of)
