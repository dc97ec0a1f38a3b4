"""The two training engines behind one interface: `fast` (own kernels) and `reference` (transformers + PEFT)."""
