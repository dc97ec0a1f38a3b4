"""2 · Example → Encoded → PackedBatch. Knows nothing about weights, and needs neither torch nor transformers."""
