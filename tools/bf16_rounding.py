"""Where a model in bf16 says something else than the same model in fp32, and why.

Both read the same text, the one that the rounded model writes. Its logits are off by some `error`; where two tokens'
are closer in fp32 than twice that, they may change places, and from there on the texts have nothing to do with each
other. A gap that the error does not explain is a defect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from lorgnette.inference.generator import Generator
from lorgnette.types import Encoded


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first token of an answer that the two models choose differently.

    gap: by how much the exact model's logit of its own choice is above that of the other's; error: the rounded logits'
    root mean square distance from the exact ones at this token.
    """

    prompt_index: int
    token_index: int
    exact_token: int
    rounded_token: int
    logit_gap: float
    logit_error: float


@dataclass(frozen=True, slots=True)
class RoundingReport:
    """partings: of the answers that part at all; error: root mean square over all logits; smallest, median: the exact
    model's gap between its two likeliest tokens, over all tokens read."""

    num_answers: int
    divergences: tuple[Divergence, ...]
    error: float
    smallest_gap: float
    median_gap: float

    def __str__(self) -> str:
        lines = [
            f"{len(self.divergences)} of {self.num_answers} greedy answers part; logits are off by {self.error:.4f} (rms), "
            f"the two likeliest tokens are {self.median_gap:.4f} apart (median; {self.smallest_gap:.4f} at the least)"
        ]
        lines += [
            f"  answer {p.prompt_index}, token {p.token_index}: {p.rounded_token} for {p.exact_token}, {p.logit_gap:.4f} apart in the exact model, "
            f"logits off by {p.logit_error:.4f}"
            for p in self.divergences
        ]
        return "\n".join(lines)


@torch.no_grad()
def compare_greedy(
    rounded: Generator, exact: Generator, prompts: Sequence[Encoded], num_tokens: int, *, use_adapter: bool
) -> RoundingReport:
    """Both models' greedy choices along the text that `rounded` writes, `tokens` long (end tokens are like others)."""
    caches = [speaker.prefill(prompts, num_tokens, use_adapter=use_adapter) for speaker in (rounded, exact)]
    ours, theirs = (cache.logits[: len(prompts)] for cache in caches)
    partings: dict[int, Divergence] = {}
    errors, gaps = [], []
    for place in range(num_tokens):
        errors.append(_rms_distance(ours, theirs))
        first, second = theirs.topk(2).values.unbind(1)
        gaps.append(first - second)
        for row in (ours.argmax(-1) != theirs.argmax(-1)).nonzero()[:, 0].tolist():
            chosen, right = int(ours[row].argmax()), int(theirs[row].argmax())
            apart = (theirs[row, right] - theirs[row, chosen]).item()
            partings.setdefault(row, Divergence(row, place, right, chosen, apart, errors[-1][row].item()))
        spoken = ours.argmax(-1)
        if place + 1 < num_tokens:
            ours, theirs = (
                speaker.decode_step(cache, spoken, use_adapter=use_adapter)
                for speaker, cache in zip((rounded, exact), caches, strict=True)
            )
    gap = torch.cat(gaps)
    error = torch.cat(errors).square().mean().sqrt().item()
    return RoundingReport(len(prompts), tuple(partings.values()), error, gap.min().item(), gap.median().item())


def _rms_distance(one: Float32[Tensor, "B V"], other: Float32[Tensor, "B V"]) -> Float32[Tensor, " B"]:
    return (one - other).square().mean(-1).sqrt()
