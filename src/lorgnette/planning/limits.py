"""Sizes that the memory model and the running code share. Needs no torch."""

MAX_PATCHES_PER_CALL = 16384
"""Image patches in one call of the vision tower: bounds its memory and is enough to fill a GPU."""
FEATURE_MEMORY_FRACTION = 0.25
"""Share of the free device memory that image features may use; the rest of them stay in pinned host memory."""
MAX_GRAPHS_AHEAD = 8
"""Captured before the first step, at most. A graph that one of several ranks captures later holds up all."""
SAMPLE_TOKENS = 32
"""Of an answer during the training whose references are shorter."""
WARMUP_LAYERS = 2
"""Layers of the small decoder that warms up the kernels: the last layer runs other shapes than those before it."""


def pad_tokens(tokens: int) -> int:
    """Tokens of the padded batch: at least one more than the batch has."""
    return round_up(tokens + 1, 64)


def pad_last_layer_tokens(last_layer_tokens: int, padded_tokens: int) -> int:
    """Padded query tokens of the last layer: fewer than the other layers have."""
    return min(round_up(last_layer_tokens, 4), padded_tokens - 1)


def pad_labels(labels: int) -> int:
    return round_up(labels, 8)


def pad_slots(slots: int) -> int:
    """Slots of a KV cache: an eighth of a power of two, in steps of at least 64."""
    step = max(64, (1 << (slots - 1).bit_length()) // 8)
    return -(-slots // step) * step


def round_up(count: int, parts: int) -> int:
    """The next of `parts` equal steps between two powers of two; a step is at least 16."""
    step = max(16, (1 << max(count - 1, 1).bit_length()) // (2 * parts))
    return -(-count // step) * step
