"""Metrics of answers against references: answers in, scores out. Knows nothing about models."""
