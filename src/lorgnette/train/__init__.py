"""4 · PackedBatch* → adapter. Knows nothing about files of examples, pages or trackers."""
