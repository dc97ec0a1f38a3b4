"""The fast engine's kernels, one operation per file.

Each file holds the operation in plain torch, used on a CPU and as the tests' reference, and as a Triton kernel, used on
CUDA, behind one function that picks. Triton functions are marked `no_type_check`, because the tests' shape checker
cannot wrap what Triton compiles. Knows nothing about models.
"""

MAX_GROUP_SIZE = 32
"""Query heads per key-value head that the attention kernels can process together."""
MAX_HEAD_DIM = 128
"""Widest head for which they fit every card (docs/kernels.md)."""
NF4_BLOCK_SIZE, NF4_NESTED_BLOCK_SIZE = 64, 256
"""Values with one scale, and scales with one scale of their own."""
DECODE_SPLIT_SIZE = 256
"""Slots of a KV cache whose attention one program computes (decode_attention.py)."""
