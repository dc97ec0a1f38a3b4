"""Checkpoints and model families: one folder per family, each with the same file names."""
