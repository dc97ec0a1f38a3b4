"""Qwen3.5-MoE's text decoder: the reference engine runs it (see `find_unsupported_feature` in config.py)."""
