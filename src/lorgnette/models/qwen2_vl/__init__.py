"""Qwen2-VL: its config, text decoder, vision tower, weights and facts."""
