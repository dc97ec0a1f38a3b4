"""Batched answers from our own decoder: greedy, or sampled. Neither transformers nor PEFT is needed.

Greedy answers are those of transformers' own `generate` (predict/generate.py), to the token in fp32; in bf16 two
likelihoods that are closer than rounding may fall out the other way (rounding.py says where). Sampled ones follow the
same rule with other chances (choose.py).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lorgnette.engine.loading import FastModel
from lorgnette.inference.generator import Speaker
from lorgnette.inference.hf_generate import ENDS, Sampling
from lorgnette.inference.sampling import Chooser
from lorgnette.processing.processor import Encoder
from lorgnette.types import Encoded, Example, Prediction

LOOK_EVERY = 8
"""Tokens between two looks of the host at whether every answer has ended: each makes it wait for the device."""


def answers(
    model: FastModel,
    encoder: Encoder,
    examples: Sequence[Example],
    sampling: Sampling,
    *,
    adapter: str | None = None,
    seen: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order; without its adapter where `adapter` is None. seen(n) is
    called as n more are done.

    Raises LorgnetteError for a picture that cannot be read and for a prompt that is too long.
    """
    speaker = model.speaker
    ends = [encoder.tokenizer.control[name] for name in ENDS]
    for first in range(0, len(examples), sampling.batch_size):
        group = examples[first : first + sampling.batch_size]
        prompts = [encoder.encode(example, answer=True) for example in group]
        for error in model.features.prepare(grid for prompt in prompts for grid in prompt.grids).values():
            raise error
        choose = Chooser(sampling, range(first, first + len(group)), speaker.device)
        rows = written(speaker, prompts, choose, sampling.max_new_tokens, ends, tuned=adapter is not None)
        for example, row in zip(group, rows.tolist(), strict=True):
            length = next((i for i, number in enumerate(row) if number in ends), None)
            text = encoder.tokenizer.text_of(row[:length])
            yield Prediction(example, text, adapter, stopped=length is not None)
        seen(len(group))


@torch.no_grad()
def written(
    speaker: Speaker,
    prompts: Sequence[Encoded],
    choose: Callable[[Float32[Tensor, "B V"], int], Int64[Tensor, " B"]],
    most: int,
    ends: Sequence[int],
    *,
    tuned: bool,
) -> Int64[Tensor, "B N"]:
    """The answers' tokens, N <= `most`, on the host. Behind a token that ends its answer stands that token again."""
    cache = speaker.begin(prompts, most, tuned=tuned)
    stops = torch.tensor(ends, dtype=torch.int64, device=speaker.device)
    said = torch.empty(most, len(prompts), dtype=torch.int64, device=speaker.device)
    logits, ended = cache.logits[: len(prompts)], torch.zeros(len(prompts), dtype=torch.bool, device=speaker.device)
    for place in range(most):
        torch.where(ended, said[place - 1], choose(logits, place), out=said[place])
        ended |= torch.isin(said[place], stops)
        last = place + 1 == most
        if last or (place % LOOK_EVERY == LOOK_EVERY - 1 and bool(ended.all())):
            return said[: place + 1].T.cpu()
        logits = speaker.step(cache, said[place], tuned=tuned)
    return said[:0].T.cpu()
