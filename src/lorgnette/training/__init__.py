"""Training: data, sampler, optimizer, the loop, checkpoints and callbacks.

One process on one GPU. Code for several GPUs belongs in `distributed.py` here: sampler and random numbers depend on
(seed, step) alone, and the fast engine keeps all gradients in one vector.
"""
