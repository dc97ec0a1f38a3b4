"""Compares a model in bf16 with the same model in fp32: the first tokens they choose differently, and why.

Both read the text that the bf16 model generates. Its logits differ from the exact ones by some error. Two tokens whose
exact logits are closer than twice that error may swap, and from there the texts differ. A larger gap is a defect.
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

    logit_gap: the exact model's logit of its own choice minus its logit of the bf16 model's choice.
    logit_error: root mean square distance between the two models' logits at this token.
    """

    prompt_index: int
    token_index: int
    exact_token: int
    rounded_token: int
    logit_gap: float
    logit_error: float


@dataclass(frozen=True, slots=True)
class RoundingReport:
    """divergences: one for each answer that diverges; error: root mean square over all logits; smallest_gap,
    median_gap: the exact model's gap between its two most likely tokens, over all tokens read."""

    num_answers: int
    divergences: tuple[Divergence, ...]
    error: float
    smallest_gap: float
    median_gap: float

    def __str__(self) -> str:
        lines = [
            f"{len(self.divergences)} of {self.num_answers} greedy answers diverge; logits differ by {self.error:.4f} "
            f"(rms); the two most likely tokens are {self.median_gap:.4f} apart (median; smallest "
            f"{self.smallest_gap:.4f})"
        ]
        lines += [
            f"  answer {d.prompt_index}, token {d.token_index}: {d.rounded_token} instead of {d.exact_token}, "
            f"{d.logit_gap:.4f} apart in the exact model, logits differ by {d.logit_error:.4f}"
            for d in self.divergences
        ]
        return "\n".join(lines)


@torch.no_grad()
def compare_greedy(
    rounded: Generator, exact: Generator, prompts: Sequence[Encoded], num_tokens: int, *, use_adapter: bool
) -> RoundingReport:
    """Compare both models' greedy choices along the `num_tokens` tokens that `rounded` generates.

    End tokens do not stop an answer.
    """
    caches = [generator.prefill(prompts, num_tokens, use_adapter=use_adapter) for generator in (rounded, exact)]
    rounded_logits, exact_logits = (cache.logits[: len(prompts)] for cache in caches)
    divergences: dict[int, Divergence] = {}
    errors, gaps = [], []
    for index in range(num_tokens):
        errors.append(_rms_distance(rounded_logits, exact_logits))
        first, second = exact_logits.topk(2).values.unbind(1)
        gaps.append(first - second)
        tokens = rounded_logits.argmax(-1)
        for row in (tokens != exact_logits.argmax(-1)).nonzero()[:, 0].tolist():
            rounded_token, exact_token = int(tokens[row]), int(exact_logits[row].argmax())
            gap = (exact_logits[row, exact_token] - exact_logits[row, rounded_token]).item()
            error = errors[-1][row].item()
            divergences.setdefault(row, Divergence(row, index, exact_token, rounded_token, gap, error))
        if index + 1 < num_tokens:
            rounded_logits, exact_logits = (
                generator.decode_step(cache, tokens, use_adapter=use_adapter)
                for generator, cache in zip((rounded, exact), caches, strict=True)
            )
    all_gaps = torch.cat(gaps)
    rms_error = torch.cat(errors).square().mean().sqrt().item()
    return RoundingReport(
        len(prompts), tuple(divergences.values()), rms_error, all_gaps.min().item(), all_gaps.median().item()
    )


def _rms_distance(a: Float32[Tensor, "B V"], b: Float32[Tensor, "B V"]) -> Float32[Tensor, " B"]:
    return (a - b).square().mean(-1).sqrt()
