"""Predicts how much GPU memory a run needs, from shapes alone. Needs no torch.

    features   weights · tower · its activations · features (and in the fast engine, the small decoder of the warm-up)
    loss       weights · adapter · features · what every layer saves · logits
    backward   weights · adapter · features · what every layer saves · one layer's gradients
    recompute  weights · adapter · features · the inputs of layers · one layer runs again · its gradients
    eval       weights · adapter · features · one layer, nothing saved · logits

The largest of these phases is the peak: what torch.cuda.max_memory_reserved counts. Its item `allocator` is what torch
reserves beside the tensors; without it, the sum is torch.cuda.max_memory_allocated. All sizes are in bytes.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from lorgnette.config import Settings
from lorgnette.kernels import NF4_BLOCK_SIZE, NF4_NESTED_BLOCK_SIZE
from lorgnette.models.adapter_shape import FUSED_PROJECTIONS, AdapterShape
from lorgnette.models.model_config import NUM_READERS, LinearAttention
from lorgnette.models.quantization import (
    QLORA,
    list_modules_left_out,
    list_quantized_modules,
    select_quantization,
)
from lorgnette.models.registry import LABELS_PER_CHUNK, TextConfig, VisionConfig, parse_sizes
from lorgnette.planning import limits
from lorgnette.processing.encoded_rows import RowSizes
from lorgnette.processing.packing import build_prefix_trees
from lorgnette.types import Encoded, ImageGrid

EngineName = Literal["fast", "reference"]
Items = Mapping[str, int]
"""Bytes by purpose."""

GIB = 2**30
MIN_IMAGES_BESIDE_STEPS = 4096
"""Features of fewer images are made before the first step, in a few seconds."""
_WORKSPACE = 32 * 2**20  # cuBLAS's, of each stream on Hopper
_DRIVER_BYTES = GIB  # of a card: the driver, CUDA's context and kernels, and a desktop
_CONTEXT_BYTES = GIB // 2  # CUDA's context, which torch does not count
_KERNEL_BYTES = GIB // 4  # kernels that are loaded into a context later
_NCCL_BYTES = GIB // 2  # buffers that connect the GPU with the others
_GRAPH_BYTES = GIB // 16  # of each graph that several ranks capture beside the first: assumed
_LATE_BYTES = GIB // 8  # of those, graphs and the kernels of answers
_LOADING_BYTES = NUM_READERS * 20 * 2**20  # pieces of weights on their way into a fused matrix, one of each reader
_SEGMENT_WASTE = 2**20  # torch rounds a large tensor up to 2 MiB
_GAPS: dict[EngineName, float] = {"fast": 0.04, "reference": 0.05}  # of activations; the fast engine has one segment
_POOL_GAPS = 0.045  # of that segment: a little more, because a tensor that does not fit has a segment of its own
_SMALL_POOLS = 64 * 2**20  # segments of 2 and 20 MiB that are not full
_POOL_PHASES = ("loss", "backward", "recompute", "eval")
_NUM_SAMPLE_ROWS = 8  # of the KV cache of a few answers during training


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run computes with, and the most it computes at once.

    tokens, labels: of the largest micro-batch; eval_tokens, eval_labels: of the largest one of an eval loss.
    bytes_per_value: of a weight, 2 or 4. is_float16: these two bytes are float16, whose range is too small for the
    vision tower's sums. num_graphs: CUDA graphs of the training. feature_tokens: image tokens of all distinct images.
    loads_tower: whether the fast engine loads the vision tower to compute features (the reference engine always has
    it). keeps_tower: whether it stays, because features are made beside the steps. is_loaded_in_turn: warm-up, tower
    and decoder one after the other, which needs less memory at the start. trained_patches: patches of the largest
    micro-batch if the vision blocks are trained; they then save activations, and features are not stored.
    answer_tokens: of the longest prompt and its answer. nf4_values: values of the decoder's matrices that are held in
    NF4, in nf4_bytes. num_shards: GPUs that hold a part each of the decoder's layers, and gather one layer after the
    other.
    """

    engine: EngineName
    adapter: AdapterShape
    vision: VisionConfig
    has_dropout: bool
    tokens: int
    labels: int
    bytes_per_value: int = 2
    is_float16: bool = False
    eval_tokens: int = 0
    eval_labels: int = 0
    recompute_layers: int = 0
    num_graphs: int = 1
    feature_tokens: int = 0
    loads_tower: bool = False
    keeps_tower: bool = False
    is_loaded_in_turn: bool = False
    trained_patches: int = 0
    answer_tokens: int = 0
    nf4_values: int = 0
    nf4_bytes: int = 0
    num_shards: int = 1

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        hf_config: Mapping[str, Any],
        engine: EngineName,
        largest: tuple[int, int],
        held_out: Sequence[Encoded],
        grids: Iterable[ImageGrid],
        num_gpus: int = 1,
    ) -> "Workload":
        """largest: tokens and labels of the largest micro-batch; grids: the distinct images of all examples. dtype=auto
        counts as bfloat16. num_gpus: that train together."""
        (text, vision), lora, grids = parse_sizes(hf_config), settings.lora, list(grids)
        max_tokens, prefix_sharing = settings.train.max_tokens_per_microbatch, engine == "fast"
        trees = build_prefix_trees(held_out, max_tokens, prefix_sharing=prefix_sharing)
        eval_tokens, eval_labels = max(((tree.num_tokens, tree.num_labels) for tree in trees), default=(0, 0))
        lengths = RowSizes.from_examples(held_out).lengths
        longest_answer = int(lengths.max()) + limits.SAMPLE_TOKENS if len(lengths) else 0
        nf4_values, nf4_bytes = measure_nf4(text, settings, hf_config)
        return cls(
            engine,
            AdapterShape.from_settings(text, lora),
            vision,
            lora.dropout > 0,
            *largest,
            bytes_per_value=4 if settings.dtype == "float32" else 2,
            is_float16=settings.dtype == "float16",
            eval_tokens=eval_tokens,
            eval_labels=eval_labels,
            num_graphs=_count_graphs(num_gpus) + 1,  # the shorter last step of an epoch has another
            feature_tokens=sum(grid.num_tokens for grid in grids),
            loads_tower=True,
            keeps_tower=can_overlap_features(settings, engine, len(grids), num_gpus),
            trained_patches=largest[0] * vision.merge_size**2 if "vision" in lora.parts else 0,
            answer_tokens=longest_answer,
            nf4_values=nf4_values,
            nf4_bytes=nf4_bytes,
        )

    @property
    def text(self) -> TextConfig:
        return self.adapter.text

    @property
    def tower_bytes_per_value(self) -> int:
        """Of the vision tower's weights and features: the reference engine holds them in float32 beside float16."""
        return 4 if self.is_float16 and self.engine == "reference" else self.bytes_per_value

    @property
    def max_tokens(self) -> int:
        """Of the largest micro-batch, in training or evaluation."""
        return max(self.tokens, self.eval_tokens)

    def limit_tokens(self, max_tokens: int) -> "Workload":
        """The same run in micro-batches of at most `max_tokens` tokens."""
        tokens, eval_tokens = min(self.tokens, max_tokens), min(self.eval_tokens, max_tokens)
        labels = -(-self.labels * tokens // self.tokens)
        eval_labels = -(-self.eval_labels * eval_tokens // max(self.eval_tokens, 1))
        return replace(self, tokens=tokens, labels=labels, eval_tokens=eval_tokens, eval_labels=eval_labels)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes by item in each phase that may be the largest."""

    phases: Mapping[str, Items]

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak_items(self) -> Items:
        """The items of the largest phase."""
        return self.phases[self.peak_phase]

    @property
    def peak_bytes(self) -> int:
        """Reserved."""
        return sum(self.peak_items.values())

    @property
    def allocated_bytes(self) -> int:
        """The most in tensors."""
        return max(sum(items.values()) - items["allocator"] for items in self.phases.values())


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """Micro-batches of at most `max_tokens` tokens, with `recompute_layers` layers recomputed.

    peak_bytes: reserved. pool_bytes: of these, for micro-batches. feature_bytes: of image features on the device.
    is_loaded_in_turn, num_shards, keeps_tower: as in `Workload`.
    """

    max_tokens: int
    recompute_layers: int
    peak_bytes: int
    pool_bytes: int = 0
    feature_bytes: int = 0
    is_loaded_in_turn: bool = False
    num_shards: int = 1
    keeps_tower: bool = False


def can_overlap_features(settings: Settings, engine: EngineName, num_images: int, num_gpus: int) -> bool:
    """Whether features are made beside the steps, if the vision tower fits there: of many images, on one GPU.

    Not where rows of images that cannot be decoded are left out: the examples of a step depend on all rows.
    """
    is_long = num_images >= MIN_IMAGES_BESIDE_STEPS
    return is_long and engine == "fast" and num_gpus == 1 and settings.data.on_bad_row == "error"


def predict_memory(workload: Workload) -> MemoryEstimate:
    """Of the reference engine: transformers' modules and PEFT's fp32 adapter under autocast."""
    return _predict_fast(workload) if workload.engine == "fast" else _predict_reference(workload)


def compute_usable_bytes(gib: float, num_gpus: int = 1) -> int:
    """The bytes that torch may reserve on a card with this much memory, one of several if num_gpus is more than 1."""
    return int(gib * GIB) - _DRIVER_BYTES - _count_nccl_bytes(num_gpus) - _count_graph_bytes(num_gpus)


def compute_free_bytes(free: int, *, has_context: bool, num_gpus: int = 1) -> int:
    """The bytes that torch may reserve of those that are free. has_context: whether CUDA runs in this process, and NCCL
    if there are several GPUs."""
    start = 0 if has_context else _CONTEXT_BYTES + _count_nccl_bytes(num_gpus)
    return max(free - start - _KERNEL_BYTES - _count_graph_bytes(num_gpus), 0)


def min_recompute_layers(workload: Workload, available_bytes: int) -> int | None:
    """The fewest recomputed layers for a peak within `available_bytes`; None if no number is enough."""
    max_layers = workload.text.num_layers if workload.engine == "fast" else 0
    counts = range(max_layers + 1)

    def fits(layers: int) -> bool:
        return predict_memory(replace(workload, recompute_layers=layers)).peak_bytes <= available_bytes

    layers = bisect_left(counts, True, key=fits)
    return layers if layers in counts else None


def compute_left_bytes(available: int, num_gpus: int = 1) -> int:
    """The bytes that torch may reserve once kernels are loaded. Graphs and the kernels of answers still come."""
    return max(available - _LATE_BYTES - _count_graph_bytes(num_gpus), 0)


def _count_nccl_bytes(num_gpus: int) -> int:
    return _NCCL_BYTES if num_gpus > 1 else 0


def _count_graphs(num_gpus: int) -> int:
    """Those captured before the first step, as far as they are counted: on one GPU one, since most steps have one size.
    It captures more where the memory for them is left."""
    return limits.MAX_GRAPHS_AHEAD if num_gpus > 1 else 1


def _count_graph_bytes(num_gpus: int) -> int:
    return (_count_graphs(num_gpus) - 1) * _GRAPH_BYTES


def find_fit(
    workload: Workload, longest_example: int, available_bytes: int, loaded: MemoryFit | None = None
) -> MemoryFit | None:
    """Reduce as little as possible until the run fits. None if nothing is enough.

    First the vision tower, which may make all features before the steps; then the start, which may be slower; then the
    image features on the device, which then come from the host; then the tokens of a micro-batch, which costs almost no
    time, down to the longest example; then recompute layers. loaded: what the start was; it is over, and its image
    features stay where they are.
    """
    kept_bytes = loaded.feature_bytes if loaded else 0
    available_bytes -= kept_bytes
    workload = _reduce_start(workload, available_bytes, loaded)

    def compute_peak(max_tokens: int) -> int:
        return predict_memory(workload.limit_tokens(max_tokens)).peak_bytes

    def describe(reduced: Workload, max_tokens: int) -> MemoryFit:
        peak = predict_memory(reduced).peak_bytes + kept_bytes
        features = kept_bytes + reduced.feature_tokens * _count_feature_bytes(workload)
        pool, layers = compute_pool_bytes(reduced), reduced.recompute_layers
        return MemoryFit(
            max_tokens, layers, peak, pool, features,
            workload.is_loaded_in_turn, workload.num_shards, workload.keeps_tower,
        )  # fmt: skip

    low, high = longest_example, workload.max_tokens
    if compute_peak(high) <= available_bytes:
        return describe(workload, high)
    if compute_peak(low) <= available_bytes:
        # Bisection: `low` always fits, `high` never does.
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if compute_peak(middle) <= available_bytes else (low, middle)
        even = max(low // 64 * 64, longest_example)
        return describe(workload.limit_tokens(even), even)
    smallest = workload.limit_tokens(longest_example)
    if (layers := min_recompute_layers(smallest, available_bytes)) is None:
        return None
    return describe(replace(smallest, recompute_layers=layers), longest_example)


def compute_pool_bytes(workload: Workload) -> int:
    """What the fast engine's micro-batches divide among them; 0 for the reference engine."""
    if workload.engine == "reference":
        return 0
    phases = predict_memory(workload).phases
    parts = ("activations", "gradients", "logits", "one layer, or logits")
    need = max(sum(phases[name].get(part, 0) for part in parts) for name in _POOL_PHASES if name in phases)
    return -(-int(need * (1 + _POOL_GAPS)) // 2**21) * 2**21


def _reduce_start(workload: Workload, available_bytes: int, loaded: MemoryFit | None) -> Workload:
    """With the features that may stay on the device, without the tower and loaded in turn if need be. loaded: all of
    that is past."""
    if loaded is not None:
        return replace(workload, loads_tower=False, feature_tokens=0, keeps_tower=loaded.keeps_tower)
    tower = workload.tower_bytes_per_value * _count_weights(workload.vision)
    held = _count_weight_bytes(workload)
    if workload.num_shards > 1:
        items = predict_memory(workload).phases["backward"]
        held = items["weights"] + items["gathered layers"]
    free = max(available_bytes - held - tower, 0)
    max_tokens = int(limits.FEATURE_MEMORY_FRACTION * free) // _count_feature_bytes(workload)
    workload = replace(workload, feature_tokens=min(workload.feature_tokens, max_tokens))
    if predict_memory(workload).peak_bytes > available_bytes:
        workload = replace(workload, keeps_tower=False)
    if workload.engine == "fast" and predict_memory(workload).peak_bytes > available_bytes:
        workload = replace(workload, is_loaded_in_turn=True)
    excess = max(predict_memory(workload).peak_bytes - available_bytes, 0)
    left = max(workload.feature_tokens - -(-excess // _count_feature_bytes(workload)), 0)
    return replace(workload, feature_tokens=left)


def _count_feature_bytes(workload: Workload) -> int:
    """Of an image token."""
    return workload.tower_bytes_per_value * workload.vision.feature_width


def _predict_fast(workload: Workload) -> MemoryEstimate:
    text, adapter, size = workload.text, workload.adapter, workload.bytes_per_value
    tokens, hidden = limits.pad_tokens(workload.tokens), text.hidden_size
    # The B columns in the fused matrices (rows of other projections are zero), and A in their dtype.
    fused = text.num_layers * sum(
        adapter.count_columns(group) * (sum(map(adapter.out_features, group)) + adapter.in_features(group[0]))
        for group in FUSED_PROJECTIONS
    )
    widest = text.intermediate_size + adapter.count_columns(("down_proj",))
    matrices = [
        size * sum(map(adapter.out_features, group)) * (adapter.in_features(group[0]) + adapter.count_columns(group))
        for group in FUSED_PROJECTIONS
    ]
    static = {
        "weights": _count_weight_bytes(workload) + size * fused,
        "adapter": 16 * adapter.num_params,  # fp32: value, gradient, two moments of AdamW
        "features": workload.feature_tokens * _count_feature_bytes(workload),
        "batches": workload.num_graphs * tokens * (size * hidden + 32)
        + tokens * (size * text.num_deepstack_levels * hidden + 4 * text.head_dim),
        "libraries": 3 * _WORKSPACE,
    }
    if workload.nf4_values:
        static["one matrix of NF4 in full"] = max(matrices)
    if workload.num_shards > 1:
        static |= _shard_layers(static["weights"], sum(matrices), 2, workload)
    if workload.keeps_tower:
        call = _predict_feature_phase(workload, 0)
        static |= {"vision tower": call["vision tower"], "patches": call["patches"]}
    if workload.answer_tokens:
        # A few prompts are answered in memory of their own, which torch then keeps; one prompt at a time, if need be.
        prompt = workload.answer_tokens * (_count_saved_fast(workload) + size * (widest + 2 * hidden))
        static["answers"] = _count_sample_cache(workload) + prompt
    # Saved activations: a recomputed layer saves its two inputs, the last layer fewer tokens than the others.
    layer = _count_saved_fast(workload)
    last = _count_saved_last_layer(workload, tokens, limits.pad_last_layer_tokens(workload.labels, tokens))
    layer_inputs = 2 * size * hidden
    recomputed = min(workload.recompute_layers, text.num_layers - 1)
    saved = text.num_layers - 1 - recomputed
    activations = tokens * (saved * layer + recomputed * layer_inputs)
    activations += last if workload.recompute_layers < text.num_layers else tokens * layer_inputs
    # Backward through an MLP: the gradients of its output and product, the product recomputed, dropout's part.
    mlp = text.intermediate_size * (2 if workload.has_dropout else 1)
    backward = {
        "activations": tokens * (max(saved, 1) * layer + recomputed * layer_inputs),
        "gradients": tokens * size * (hidden + widest + mlp),
    }
    logits = _count_logits_fast(workload, workload.labels)
    phases: dict[str, dict[str, int]]
    phases = {"loss": static | {"activations": activations, "logits": logits}, "backward": static | backward}
    if recomputed:
        # A layer runs again while the side stream holds what the gradients of the layer above need.
        beside = tokens * size * hidden * (8 if workload.has_dropout else 4)
        phases["recompute"] = static | {
            "activations": tokens * (layer + recomputed * layer_inputs),
            "gradients": backward["gradients"] + beside,
        }
    if workload.eval_tokens:
        eval_tokens = limits.pad_tokens(workload.eval_tokens)
        one_layer = eval_tokens * (layer + size * (widest + 2 * hidden))
        phases["eval"] = static | {
            "activations": eval_tokens * text.num_layers * layer_inputs,
            "one layer, or logits": max(one_layer, _count_logits_fast(workload, workload.eval_labels)),
        }
    # Beside the tensors: gaps between activations, and with dropout the masked inputs of the side stream's products.
    rounding = _SEGMENT_WASTE * text.num_layers * len(FUSED_PROJECTIONS) + _SMALL_POOLS
    masked = 5 * tokens * size * hidden if workload.has_dropout else 0
    for items in phases.values():
        needed = sum(items.values()) - sum(static.values())
        items["allocator"] = rounding + masked + int(needed * _GAPS["fast"])
    if workload.loads_tower:
        # Kernels warm up meanwhile (engine/open_for_training.py); the optimizer has no moments yet.
        share = limits.WARMUP_LAYERS / text.num_layers
        small = replace(
            workload, adapter=replace(adapter, text=replace(text, num_layers=limits.WARMUP_LAYERS)),
            nf4_values=int(share * workload.nf4_values), nf4_bytes=int(share * workload.nf4_bytes),
        )  # fmt: skip
        warmup = _count_weight_bytes(small) + tokens * limits.WARMUP_LAYERS * layer + logits
        warmup += static.get("one matrix of NF4 in full", 0)
        shared = {"adapter": static["adapter"] // 2, "allocator": rounding}
        start = _predict_feature_phase(workload, 0 if workload.is_loaded_in_turn else static["weights"]) | shared
        if workload.is_loaded_in_turn:
            phases["warm-up"] = shared | {"warm-up": warmup, "libraries": 2 * _WORKSPACE}
        else:
            # While matrices are quantized, their absmax is in fp32: 4 bytes for 64 values.
            start |= {"warm-up": warmup, "loading": _LOADING_BYTES + workload.nf4_values // 16}
            start |= {name: size for name, size in static.items() if name == "gathered layers"}
        phases["features"] = start
    return MemoryEstimate(phases)


def _predict_reference(workload: Workload) -> MemoryEstimate:
    text, vision, adapter, size = workload.text, workload.vision, workload.adapter, workload.bytes_per_value
    static = {
        "weights": _count_weight_bytes(workload),
        "vision tower": workload.tower_bytes_per_value * _count_weights(vision),
        "adapter": 16 * adapter.num_params,
        "features": 0 if workload.trained_patches else workload.feature_tokens * _count_feature_bytes(workload),
        "libraries": 2 * _WORKSPACE,
    }
    if workload.num_shards > 1:
        layer = sum(math.prod(shape) for name, shape in text.list_weight_shapes().items() if ".layers.0." in name)
        static |= _shard_layers(static["weights"], size * layer, 3, workload)
    if workload.nf4_values:
        static["one matrix of NF4 in full"] = size * max(map(math.prod, text.linear_shapes.values()))
    saved = {"activations": workload.tokens * _count_saved_reference(workload)}
    if size == 2:
        saved["adapter in bf16"] = 2 * adapter.num_params  # autocast's copies
    if workload.trained_patches:
        # Per patch and block: counted from the operations, not measured.
        dim, mlp = vision.embed_dim, vision.intermediate_size
        per_block = 8 * dim + workload.tower_bytes_per_value * (7 * dim + 3 * mlp + 4 * adapter.rank)
        per_block += 3 * dim + mlp if workload.has_dropout else 0  # masks
        saved["vision activations"] = workload.trained_patches * vision.depth * per_block
    gradients = 12 * _count_mlp_width(text)  # of the MLP's product and its inputs, some of them in fp32
    phases: dict[str, dict[str, int]] = {
        "features": _predict_feature_phase(workload, static["weights"]),
        "loss": static | saved | {"logits": _count_logits_reference(workload, workload.labels)},
        "backward": static | saved | {"gradients": workload.tokens * gradients},
    }
    if workload.eval_tokens:
        logits = _count_logits_reference(workload, workload.eval_labels)
        phases["eval"] = static | {"one layer, or logits": max(workload.eval_tokens * gradients, logits)}
    for items in phases.values():
        needed = sum(items.values()) - sum(static.values())
        items["allocator"] = _SMALL_POOLS + int(max(needed, 0) * _GAPS["reference"])
    return MemoryEstimate(phases)


def _predict_feature_phase(workload: Workload, weights: int) -> dict[str, int]:
    """The tower's peak in one block: x, its norm, then q, k, v or the MLP (which transformers' modules copy)."""
    vision, size = workload.vision, workload.tower_bytes_per_value
    shapes = vision.list_weight_shapes()
    inputs = 2 if "model.visual.blocks.0.mlp.gate_proj.weight" in shapes else 1
    copies = inputs if workload.engine == "fast" else 3
    widest = 2 * vision.embed_dim + max(3 * vision.embed_dim, copies * vision.intermediate_size) + vision.patch_dim
    in_float32 = 2 * vision.embed_dim if workload.is_float16 and workload.engine == "fast" else 0  # x alone
    tokens = 0 if workload.trained_patches else workload.feature_tokens
    patches = limits.MAX_PATCHES_PER_CALL
    if not workload.keeps_tower:
        patches = min(patches, tokens * vision.merge_size**2)
    return {
        "weights": weights,
        "vision tower": size * _count_weights(vision),
        "patches": patches * (size * widest + in_float32),
        "features": tokens * _count_feature_bytes(workload),
        "libraries": 2 * _WORKSPACE,
    }


def _count_saved_fast(workload: Workload) -> int:
    """Bytes per token of `LayerActivations` in text_decoder.py, for every layer but the last.

    x0, qkv, attention output, x1, gate_up and u of every adapted projection; in fp32 two norms' scales and the LSE.
    """
    text, adapter = workload.text, workload.adapter
    queries, keys = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    columns = sum(adapter.count_columns(group) for group in FUSED_PROJECTIONS)
    values = 2 * text.hidden_size + (queries + 2 * keys) + queries + 2 * text.intermediate_size + columns
    return workload.bytes_per_value * values + 4 * (2 + text.num_heads)


def _count_saved_last_layer(workload: Workload, tokens: int, last_layer_tokens: int) -> int:
    """Bytes of the last layer: x0 and qkv of every token, the rest only of those that predict a label."""
    text = workload.text
    columns = workload.adapter.count_columns(FUSED_PROJECTIONS[0])
    qkv = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    every_token = workload.bytes_per_value * (text.hidden_size + qkv + columns) + 4
    return tokens * every_token + last_layer_tokens * (_count_saved_fast(workload) - every_token)


def _count_saved_reference(workload: Workload) -> int:
    """Bytes per token that autograd saves in all layers: 111 kB a layer at 2B's shapes and rank 64
    (saved_tensors_hooks).

    The norms' inputs in fp32; what attention and the MLP save; and for every adapted projection its own cast of the
    input, with a dropout mask of one byte per value.
    """
    text, adapter, size = workload.text, workload.adapter, workload.bytes_per_value
    linears = adapter.list_adapted_linears()
    inputs = [in_features for _, in_features in linears.values()]
    casts = sum(inputs)
    if size == 4 and not workload.has_dropout:  # nothing to cast: projections share their input
        casts = sum({_name_input(name): in_features for name, (_, in_features) in linears.items()}.values())
    masks = sum(inputs) if workload.has_dropout else 0
    num_linear = len(text.linear_attention.layers) if text.linear_attention else 0
    attention = (text.num_layers - num_linear) * _count_saved_attention(text, size)
    if text.linear_attention:
        attention += num_linear * _count_saved_linear_attention(text.linear_attention, size)
    layers = text.num_layers * (8 * text.hidden_size + _count_saved_mlp(text, size))
    return layers + attention + size * (casts + adapter.rank * len(inputs)) + masks


def _name_input(linear: str) -> str:
    """The same for projections of the same input."""
    parent, _, name = linear.rpartition(".")
    return parent if name.startswith(("q_", "k_", "v_", "in_proj", "gate_", "up_")) else linear


def _count_saved_attention(text: TextConfig, size: int) -> int:
    """Queries, keys, values, the output and the log-sum-exp; in fp32 the inputs of the norms of q and k; the gate."""
    queries, keys = text.num_heads * text.head_dim, text.num_kv_heads * text.head_dim
    norms = 4 * (queries + keys + text.num_heads + text.num_kv_heads) if text.has_qk_norm else 0
    gate = 2 * size * queries if text.linear_attention else 0
    return size * 2 * (queries + keys + text.head_dim) + 4 * text.num_heads + norms + gate


def _count_saved_linear_attention(linear: LinearAttention, size: int) -> int:
    """transformers' gated delta rule in PyTorch, in chunks of 64 tokens; counted on a CPU, not measured.

    The convolution's input and output; normed queries and keys, scaled keys and values, decays and products of a chunk
    in fp32, with casts for its matrix products; a state per chunk; the gated norm.
    """
    chunk = 64
    heads, keys, values = linear.num_value_heads, linear.key_head_dim, linear.value_head_dim
    convolution = 2 * (2 * linear.key_width + linear.value_width)
    floats = 3 + 3 * keys + values + 2 * chunk + 3 * keys + 2 * values + 3 * values + 1 + keys * values // chunk
    casts = 1 + 3 * chunk + 7 * keys + 3 * values + 4 * keys * values // chunk
    return size * convolution + heads * (4 * floats + size * casts)


def _count_saved_mlp(text: TextConfig, size: int) -> int:
    """Gate, its silu and up; with experts also what they give, weighted, and the router's scores in fp32."""
    experts = text.experts
    if experts is None:
        return size * 3 * text.intermediate_size
    own = experts.num_active * (3 * experts.intermediate_size + text.hidden_size)
    shared = 3 * experts.shared_size + text.hidden_size if experts.shared_size else 0
    return size * (own + shared) + 4 * experts.count + 40 * experts.num_active


def _count_mlp_width(text: TextConfig) -> int:
    """Hidden values of a token, in all MLPs that it passes."""
    experts = text.experts
    return experts.num_active * experts.intermediate_size + experts.shared_size if experts else text.intermediate_size


def _count_logits_fast(workload: Workload, labels: int) -> int:
    """Their gradient overwrites them."""
    return workload.bytes_per_value * min(limits.pad_labels(labels), LABELS_PER_CHUNK) * workload.text.vocab_size


def _count_logits_reference(workload: Workload, labels: int) -> int:
    """The logits, the same in fp32, and their log-softmax in fp32."""
    return (workload.bytes_per_value + 8) * labels * workload.text.vocab_size


def _count_sample_cache(workload: Workload) -> int:
    """The KV cache of a few prompts (inference/kv_cache.py), and the logits of their next tokens in fp32."""
    text, slots = workload.text, limits.pad_slots(workload.answer_tokens)
    cache = workload.bytes_per_value * slots * text.num_layers * 2 * text.num_kv_heads * text.head_dim
    return _NUM_SAMPLE_ROWS * (cache + 4 * text.vocab_size)


def measure_nf4(text: TextConfig, settings: Settings, hf_config: Mapping[str, Any]) -> tuple[int, int]:
    """(values, bytes) of the decoder's matrices that the run holds in NF4; the bytes are half as many, and scales."""
    quantization = select_quantization(settings.quantization, hf_config)
    if quantization is None:
        return 0, 0
    shapes = text.list_weight_shapes()
    names = list_modules_left_out(hf_config) if quantization.is_stored else ()
    left_out = [name[max(name.find("layers."), 0) :] for name in names]  # the prefix of a name differs by version
    values = sum(
        math.prod(shapes[f"{module}.weight"])
        for module in list_quantized_modules(QLORA, shapes)
        if not any(f".{name}." in f".{module}." for name in left_out)
    )
    blocks = values // NF4_BLOCK_SIZE
    scales = blocks + 4 * blocks // NF4_NESTED_BLOCK_SIZE if quantization.has_double_quantization else 4 * blocks
    return values, values // 2 + scales


def _count_weight_bytes(workload: Workload) -> int:
    """The decoder's frozen weights, as they are held."""
    plain = _count_weights(workload.text) - workload.nf4_values
    return workload.bytes_per_value * plain + workload.nf4_bytes


def _shard_layers(weights: int, layer: int, num_whole: int, workload: Workload) -> dict[str, int]:
    """Of layers of this many bytes each GPU holds a part, and num_whole whole: the one that computes, and the next.

    FSDP2 copies the weights of a layer out of what it gathered, and keeps that until the next layer is there.
    """
    others = workload.num_shards - 1
    elsewhere = workload.text.num_layers * layer * others // workload.num_shards
    return {"weights": weights - elsewhere, "gathered layers": num_whole * layer}


@cache
def _count_weights(config: TextConfig | VisionConfig) -> int:
    return sum(map(math.prod, config.list_weight_shapes().values()))
