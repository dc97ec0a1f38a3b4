"""Experiment trackers: SwanLab, TensorBoard and Weights & Biases."""
