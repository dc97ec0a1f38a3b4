"""The fast engine's own kernels: each file holds one operation, as plain torch (its definition, used on a CPU and in
tests) and as a Triton kernel (used on CUDA), behind one function that picks.

What Triton compiles is marked `no_type_check`: the tests' checker of shapes would else stand between the two.
"""
