"""Triton, or None: builds of torch without CUDA come without it."""

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None

__all__ = ["tl", "triton"]
