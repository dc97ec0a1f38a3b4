"""3 · Weights, adapter and engine: PackedBatch → loss. Knows nothing about files of examples or optimizers."""
