"""Qwen3-VL with a mixture of experts."""
