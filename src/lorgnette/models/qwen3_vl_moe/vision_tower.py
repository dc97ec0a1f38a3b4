"""Qwen3-VL-MoE's vision tower: the reference engine runs it (see `find_unsupported_feature` in config.py)."""
