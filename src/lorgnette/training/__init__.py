"""Training: data, sampler, optimizer, the loop, checkpoints and callbacks.

One process for each GPU. Sampler and random numbers depend on (seed, step) alone, and all gradients are one vector, so
that any number of processes takes the same steps.
"""
