"""Example → Encoded → PackedBatch. Knows nothing about weights, and imports neither torch nor transformers."""
