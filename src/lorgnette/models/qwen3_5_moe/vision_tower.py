"""Qwen3.5-MoE's vision tower: the reference engine runs it (see `find_unsupported_feature` in config.py)."""
