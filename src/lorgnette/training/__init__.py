"""Training: data, sampler, optimizer, the loop, checkpoints and callbacks."""
