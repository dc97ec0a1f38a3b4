"""One token of every row's likelihoods: the likeliest, or one that is drawn.

Order and meaning are those of transformers' `generate`: temperature first, then top_p on what it leaves. The chance is
not: here a token is drawn by one number, uniform in [0, 1), that falls among the likelihoods laid end to end, the
largest first. It depends on the seed, the example's number and the token's, so that an answer does not depend on which
others were asked with it, and a seed draws other answers than it does there.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lorgnette.inference.hf_generate import SamplingParams


class Sampler:
    """Chooses the tokens of some answers, one for each at a time. numbers: the examples', among all that are asked."""

    def __init__(self, sampling: SamplingParams, example_indices: Iterable[int], device: torch.device) -> None:
        self._sampling = sampling
        self._chances: Float32[Tensor, "N B"] | None = None
        if sampling.temperature is not None:
            drawn = [
                np.random.default_rng((sampling.seed, number)).random(sampling.max_new_tokens, np.float32)
                for number in example_indices
            ]
            self._chances = torch.from_numpy(np.stack(drawn, 1)).to(device)

    def __call__(self, logits: Float32[Tensor, "B V"], token_index: int) -> Int64[Tensor, " B"]:
        """The answers' tokens at this place, on the device."""
        if self._chances is None or self._sampling.temperature is None:
            return logits.argmax(-1)
        return sample_tokens(logits, self._chances[token_index], self._sampling.temperature, self._sampling.top_p)


def sample_tokens(
    logits: Float32[Tensor, "B V"], uniforms: Float32[Tensor, " B"], temperature: float, top_p: float
) -> Int64[Tensor, " B"]:
    """Tokens of the smallest set of likeliest ones that has at least `top_p` of the likelihood (one at the least),
    each as likely as it is there (Holtzman et al. 2020)."""
    likely, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = likely.cumsum(-1) - likely  # of the likelier ones
    kept = (before < top_p) if top_p < 1 else torch.ones_like(likely, dtype=torch.bool)
    kept[:, 0] = True
    reach = (likely * kept).cumsum(-1)
    aim = uniforms[:, None] * reach[:, -1:]
    place = torch.searchsorted(reach, aim, right=True).minimum(kept.sum(-1, keepdim=True) - 1)
    return order.gather(1, place)[:, 0]
