"""Checks of a saved adapter against plain transformers + PEFT."""
