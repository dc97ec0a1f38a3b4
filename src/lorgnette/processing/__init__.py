"""Example → Encoded → PackedBatch: tokens, images, positions, packing. Knows nothing about weights."""
