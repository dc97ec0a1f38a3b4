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

from lorgnette.config import Target
from lorgnette.errors import LorgnetteError
from lorgnette.models.qwen2_vl.config import Sizes, TextShape, VisionShape

EngineName = Literal["fast", "reference"]
Items = Mapping[str, int]
"""Bytes by what they are for."""

GIB = 2**30
TOGETHER: tuple[tuple[Target, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",),
)  # fmt: skip
"""Projections of one input: in the fast engine, one matrix."""
PATCHES_AT_ONCE = 16384
"""That the tower takes in one call (features.py)."""
FEATURES_SHARE = 0.25
"""Of the memory that is free before the first feature is made: what features may take, the rest lies on the host
(features.py)."""
_LABELS_AT_ONCE = 2048  # rows of logits of the fast engine (decoder.py)
_WORKSPACE = 32 * 2**20  # cuBLAS's, of each stream on Hopper
WARM_LAYERS = 2
"""Of the model in small that warms the kernels: a decoder's last layer is another than those before it."""
_OUTSIDE = GIB // 2  # the CUDA context and its kernels, which torch does not count
_SLACK = 0.05  # of the device: what the allocator cannot use for the holes in it


@dataclass(frozen=True, slots=True)
class Work:
    """What a run computes with, and the most it computes at once.

    number_bytes: of a weight, 2 or 4. rows, labels: of the largest pass; held_out_rows, held_out_labels: of the largest
    pass of an eval loss. again: layers that are run twice instead of kept. rooms: shapes of passes that are recorded.
    feature_rows: image tokens of all distinct pictures. tower: whether the fast engine's is never loaded, as where
    all features are on disk, or there while features are made, or to the end, as the reference engine's always is.
    open_patches: patches of the largest pass, where the vision
    blocks are trained too and keep what they did; features are then not kept.
    """

    engine: EngineName
    text: TextShape
    vision: VisionShape
    targets: tuple[Target, ...]
    rank: int
    dropout: bool
    rows: int
    labels: int
    number_bytes: int = 2
    held_out_rows: int = 0
    held_out_labels: int = 0
    again: int = 0
    rooms: int = 1
    feature_rows: int = 0
    tower: Literal["never", "while features are made", "to the end"] = "never"
    open_patches: int = 0

    def in_passes_of(self, rows: int) -> "Work":
        """The same, cut into passes of at most so many rows."""
        return replace(
            self,
            rows=min(self.rows, rows),
            labels=_share(self.labels, rows, self.rows),
            held_out_rows=min(self.held_out_rows, rows),
            held_out_labels=_share(self.held_out_labels, rows, self.held_out_rows),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by item at each moment that may be the fullest."""

    moments: Mapping[str, Items]

    @property
    def fullest(self) -> str:
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def items(self) -> Items:
        """Of the fullest moment."""
        return self.moments[self.fullest]

    @property
    def peak(self) -> int:
        return sum(self.items.values())


@dataclass(frozen=True, slots=True)
class Fit:
    """How a run fits: in passes of at most `rows` rows, `again` layers run twice."""

    rows: int
    again: int
    peak: int


def predicted(work: Work) -> Memory:
    """Bytes on the device. Of the reference engine: transformers' modules with PEFT's fp32 adapter under autocast."""
    return _fast(work) if work.engine == "fast" else _reference(work)


def usable(gib: float) -> int:
    """Bytes that a run may count on, of a device of so many GiB."""
    return int(gib * GIB * (1 - _SLACK)) - _OUTSIDE


def layers_again(work: Work, available_bytes: int) -> int:
    """The fewest layers to run twice so that the peak is within `available_bytes`.

    Raises LorgnetteError with what to lower, where that is not enough, or the engine keeps every layer.
    """
    most = work.text.layers if work.engine == "fast" else 0
    for again in range(most + 1):
        if predicted(replace(work, again=again)).peak <= available_bytes:
            return again
    need = predicted(replace(work, again=most)).peak
    twice = " even with every layer run twice" if most else ""
    raise LorgnetteError(
        f"{need / GIB:.1f} GiB are needed{twice}, and {available_bytes / GIB:.1f} GiB are there",
        where="memory",
        remedy=f"lower train.pass_tokens (the largest pass has {work.rows}), encode.size or lora.rank",
    )


def fit(work: Work, longest: int, available_bytes: int) -> Fit | None:
    """What is lowered first to last: nothing; rows of a pass, which costs next to no time, but no pass is smaller than
    the longest example; then layers that are kept. None where that is not enough."""
    work = _features_within(work, available_bytes)
    low, high = longest, max(work.rows, work.held_out_rows)
    peak = predicted(work).peak
    if peak <= available_bytes:
        return Fit(high, work.again, peak)
    if predicted(work.in_passes_of(low)).peak <= available_bytes:
        while high - low > 1:
            middle = (low + high) // 2
            fits = predicted(work.in_passes_of(middle)).peak <= available_bytes
            low, high = (middle, high) if fits else (low, middle)
        even = max(low // 64 * 64, longest)
        return Fit(even, work.again, predicted(work.in_passes_of(even)).peak)
    try:
        again = layers_again(work.in_passes_of(longest), available_bytes)
    except LorgnetteError:
        return None
    return Fit(longest, again, predicted(replace(work.in_passes_of(longest), again=again)).peak)


def padded(rows: int) -> int:
    """Rows that the fast engine pads a pass of so many to on CUDA (fast.py: `Room`)."""
    return _rounded(rows + 1, 64)


def _rounded(count: int, parts: int) -> int:
    step = max(16, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step


def _features_within(work: Work, available_bytes: int) -> Work:
    free = available_bytes - work.number_bytes * (_count(work.text.weights()) + _count(work.vision.weights()))
    most = int(FEATURES_SHARE * max(free, 0)) // (work.number_bytes * work.text.hidden)
    return replace(work, feature_rows=min(work.feature_rows, most))


def _fast(work: Work) -> Memory:
    text, rows, number = work.text, padded(work.rows), work.number_bytes
    widest = text.mlp + work.rank * ("down_proj" in work.targets)
    here = {
        "weights": number * (_count(text.weights()) + _fused_columns(work)),
        "vision tower": number * _count(work.vision.weights()) if work.tower == "to the end" else 0,
        "adapter": 16 * factors(work),
        "features": number * work.feature_rows * text.hidden,
        "batches": work.rooms * rows * (number * text.hidden + 32) + rows * 4 * text.head_dim,
        "libraries": 3 * _WORKSPACE,
    }
    layer, last = _kept_fast(work), _kept_last(work, rows, min(_rounded(work.labels, 4), rows - 1))
    inputs = 2 * number * text.hidden  # of a layer that is run twice: what it adds up
    again = min(work.again, text.layers - 1)  # of the layers before the last
    kept = text.layers - 1 - again
    # Backward through the MLP: the gradients of its output and its product, the product made again, dropout's share.
    backward = {
        "activations": rows * (max(kept, 1) * layer + again * inputs),
        "gradients": rows * number * (text.hidden + widest + text.mlp * (2 if work.dropout else 1)),
    }
    activations = rows * (kept * layer + again * inputs)
    activations += last if work.again < text.layers else rows * inputs
    moments = {
        "loss": here | {"activations": activations, "logits": _logits_fast(work, work.labels)},
        "backward": here | backward,
    }
    if work.tower != "never":  # kernels are warmed meanwhile (warm.py); the optimizer has no moments yet
        small = number * _count(replace(text, layers=WARM_LAYERS).weights())
        warmed = {"warming": small + rows * WARM_LAYERS * layer + _logits_fast(work, work.labels)}
        made = _making_features(work, {"weights": here["weights"]})
        moments["features"] = {**made, **warmed, "adapter": here["adapter"] // 2}
    if work.held_out_rows:
        wide = padded(work.held_out_rows)
        once = wide * (layer + number * (widest + 2 * text.hidden))
        moments["held-out"] = here | {
            "activations": wide * text.layers * inputs,
            "one layer, or logits": max(once, _logits_fast(work, work.held_out_labels)),
        }
    return Memory(moments)


def _reference(work: Work) -> Memory:
    text, vision = work.text, work.vision
    here = {
        "weights": work.number_bytes * _count(text.weights()),
        "vision tower": work.number_bytes * _count(vision.weights()),
        "adapter": 16 * factors(work),
        "features": 0 if work.open_patches else work.number_bytes * work.feature_rows * text.hidden,
        "libraries": 2 * _WORKSPACE,
    }
    kept = {"activations": work.rows * text.layers * _kept_reference(work)}
    if work.number_bytes == 2:
        kept["adapter in bf16"] = 2 * factors(work)  # autocast's copies
    if work.open_patches:
        kept["vision activations"] = work.open_patches * vision.depth * _kept_vision(work)
    gradients = 12 * text.mlp  # of the MLP's product and of its inputs, some of them in fp32
    moments = {
        "features": _making_features(work, {"weights": here["weights"]}),
        "loss": here | kept | {"logits": _logits_reference(work, work.labels)},
        "backward": here | kept | {"gradients": work.rows * gradients},
    }
    if work.held_out_rows:
        once = max(work.held_out_rows * gradients, _logits_reference(work, work.held_out_labels))
        moments["held-out"] = here | {"one layer, or logits": once}
    return Memory(moments)


def _making_features(work: Work, here: Items) -> Items:
    """x, its norm, then queries, keys and values or the MLP's hidden numbers, which transformers' modules copy."""
    vision = work.vision
    copies = 1 if work.engine == "fast" else 3
    widest = 2 * vision.embed + max(3 * vision.embed, copies * vision.mlp) + vision.patch_numbers
    tokens = 0 if work.open_patches else work.feature_rows
    patches = min(PATCHES_AT_ONCE, tokens * vision.merge**2)
    return {
        **here,
        "vision tower": work.number_bytes * _count(vision.weights()),
        "patches": work.number_bytes * patches * widest,
        "features": work.number_bytes * tokens * vision.out,
        "libraries": 2 * _WORKSPACE,
    }


def _kept_fast(work: Work) -> int:
    """Bytes a row and layer of decoder.py's `Saved`, as a layer before the last keeps it: x0, qkv, au, x1, gate_up and
    every adapted projection's u; the norms' scales and attention's logsumexp in fp32."""
    text = work.text
    inner, narrow = text.heads * text.head_dim, text.kv_heads * text.head_dim
    numbers = 2 * text.hidden + (inner + 2 * narrow) + inner + 2 * text.mlp + work.rank * len(work.targets)
    return work.number_bytes * numbers + 4 * (2 + text.heads)


def _kept_last(work: Work, rows: int, last_rows: int) -> int:
    """Bytes of the last layer: x0 and qkv of every row, the rest of those that predict a label."""
    text = work.text
    columns = work.rank * sum(target in work.targets for target in TOGETHER[0])
    every = work.number_bytes * (text.hidden + (text.heads + 2 * text.kv_heads) * text.head_dim + columns) + 4
    return rows * every + last_rows * (_kept_fast(work) - every)


def _kept_reference(work: Work) -> int:
    """Bytes a row and layer that autograd keeps: the norms' inputs in fp32; queries, keys, values and what is attended;
    gate, its silu, up; and every adapted projection's own cast of its input, with dropout's mask of a byte.

    111 kB at 2B's shapes and rank 64, as torch's saved_tensors_hooks count them.
    """
    text, inputs = work.text, _inputs(work)
    inner, narrow = text.heads * text.head_dim, text.kv_heads * text.head_dim
    cast = sum(inputs.values())
    if work.number_bytes == 4 and not work.dropout:  # nothing to cast: projections share their input
        cast = sum(inputs[adapted[0]] for group in TOGETHER if (adapted := [t for t in group if t in inputs]))
    numbers = 2 * inner + 2 * narrow + 3 * text.mlp + cast + work.rank * len(inputs) + 2 * text.head_dim
    mask = sum(inputs.values()) if work.dropout else 0
    return 8 * text.hidden + work.number_bytes * numbers + inner // text.head_dim * 4 + mask


def _kept_vision(work: Work) -> int:
    """Bytes a patch and block where the vision blocks are adapted: counted from the operations, not measured."""
    embed, mlp = work.vision.embed, work.vision.mlp
    mask = 3 * embed + mlp if work.dropout else 0
    return 8 * embed + work.number_bytes * (7 * embed + 3 * mlp + 4 * work.rank) + mask


def _logits_fast(work: Work, labels: int) -> int:
    """Their gradient takes their place."""
    return work.number_bytes * min(_rounded(labels, 2), _LABELS_AT_ONCE) * work.text.vocab


def _logits_reference(work: Work, labels: int) -> int:
    """As they come, in fp32, and their log-softmax in fp32."""
    return (work.number_bytes + 8) * labels * work.text.vocab


def factors(work: Work) -> int:
    """Numbers of the language model's adapter."""
    outputs, inputs = _outputs(work), _inputs(work)
    return work.text.layers * work.rank * sum(outputs[target] + inputs[target] for target in inputs)


def _fused_columns(work: Work) -> int:
    """Numbers of B in blocks beside the weights, and of A in their dtype."""
    outputs, inputs = _outputs(work), _inputs(work)
    layer = 0
    for group in TOGETHER:
        columns = work.rank * sum(target in inputs for target in group)
        layer += columns * sum(outputs[target] for target in group)
    return work.text.layers * (layer + work.rank * sum(inputs.values()))


def _outputs(work: Work) -> dict[str, int]:
    return {target: size[0] for target, size in _projections(work.text).items()}


def _inputs(work: Work) -> dict[str, int]:
    """Of the adapted projections."""
    return {target: size[1] for target, size in _projections(work.text).items() if target in work.targets}


def _projections(text: TextShape) -> dict[str, tuple[int, ...]]:
    """Shapes of one layer's projections by their short names."""
    names = [target for group in TOGETHER for target in group]
    weights = {name.split(".")[-2]: size for name, size in text.weights().items() if name.endswith("_proj.weight")}
    return {name: weights[name] for name in names}


def _count(sizes: Sizes) -> int:
    return sum(map(math.prod, sizes.values()))


def _share(labels: int, rows: int, of: int) -> int:
    return labels if rows >= of else -(-labels * rows // of)
