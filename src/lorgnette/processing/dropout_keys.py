"""The keys of dropout masks: 32 bits for every token of a step, the same wherever the token is computed.

The mask of an element is a hash of its token's key, the projection and the column (kernels/dropout.py). The key is a
hash of the seed, the step and what identifies the token in its step:

    without prefix sharing   the place of its example in the step, and its own place in the example
    with prefix sharing      its path: id, positions and image of the token and of all tokens before it

So a token's masks do not depend on the other examples of its micro-batch, on padding, or on the process that computes
it. Examples that share a token share its masks, also if they are computed in different micro-batches.
"""

import numpy as np
from jaxtyping import Int32, UInt64

_GOLDEN = 0x9E3779B97F4A7C15
"""2⁶⁴ divided by the golden ratio: the step of SplitMix64."""
_UINT64_MASK = 2**64 - 1
_TOKEN_FACTORS = np.array([pow(_GOLDEN, n, 2**64) for n in range(1, 6)], np.uint64)


def derive_step_key(seed: int, step: int) -> int:
    """64 bits that no other step of the run has."""
    return int(_mix(np.array([(seed * _GOLDEN + step + 1) * _GOLDEN & _UINT64_MASK], np.uint64))[0])


def identify_by_place(place: int, num_tokens: int) -> UInt64[np.ndarray, " T"]:
    """The identities of an example's tokens. place: of the example in the step."""
    return np.arange(num_tokens, dtype=np.uint64) + np.uint64(place << 32)


def hash_tokens(token_keys: Int32[np.ndarray, "T 5"]) -> UInt64[np.ndarray, " T"]:
    """A hash of each token alone. With prefix sharing, a token's identity is the sum of its path's hashes."""
    return _mix(token_keys.astype(np.uint64) @ _TOKEN_FACTORS)


def draw_dropout_keys(identities: UInt64[np.ndarray, " T"], step_key: int) -> Int32[np.ndarray, " T"]:
    """The keys of tokens with these identities."""
    bits = _mix(identities * np.uint64(_GOLDEN) + np.uint64(step_key))
    return (bits >> np.uint64(32)).astype(np.uint32).view(np.int32)


def _mix(bits: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: UInt64[np.ndarray, " n"] = bits ^ (bits >> np.uint64(31))
    return mixed
