"""Answers of a model: loading, KV cache, sampling, generation."""
