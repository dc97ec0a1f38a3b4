"""How far a kernel in half precision may be from fp32."""

import torch

HALF_TOLERANCES = {
    torch.bfloat16: {"atol": 1e-2, "rtol": 2**-7}, torch.float16: {"atol": 2e-3, "rtol": 2**-9},
}  # fmt: skip
