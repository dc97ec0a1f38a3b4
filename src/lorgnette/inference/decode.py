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
from lorgnette.inference.generator import Generator
from lorgnette.inference.hf_generate import EOS_TOKENS, SamplingParams
from lorgnette.inference.sampling import Sampler
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, Prediction

CHECK_INTERVAL = 8
"""Tokens between two looks of the host at whether every answer has ended: each makes it wait for the device."""


def generate_answers(
    model: FastModel,
    processor: Processor,
    examples: Sequence[Example],
    sampling: SamplingParams,
    *,
    adapter: str | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Iterator[Prediction]:
    """The model's answer to every example's prompt, in order; without its adapter where `adapter` is None. seen(n) is
    called as n more are done.

    Raises LorgnetteError for a picture that cannot be read and for a prompt that is too long.
    """
    speaker = model.speaker
    ends = [processor.tokenizer.control_tokens[name] for name in EOS_TOKENS]
    for first in range(0, len(examples), sampling.batch_size):
        group = examples[first : first + sampling.batch_size]
        prompts = [processor.encode(example, add_generation_prompt=True) for example in group]
        for error in model.features.prepare(grid for prompt in prompts for grid in prompt.grids).values():
            raise error
        choose = Sampler(sampling, range(first, first + len(group)), speaker.device)
        rows = generate_tokens(speaker, prompts, choose, sampling.max_new_tokens, ends, use_adapter=adapter is not None)
        for example, row in zip(group, rows.tolist(), strict=True):
            length = next((i for i, number in enumerate(row) if number in ends), None)
            text = processor.tokenizer.decode(row[:length])
            yield Prediction(example, text, adapter, is_complete=length is not None)
        on_progress(len(group))


@torch.no_grad()
def generate_tokens(
    generator: Generator,
    prompts: Sequence[Encoded],
    sampler: Callable[[Float32[Tensor, "B V"], int], Int64[Tensor, " B"]],
    max_new_tokens: int,
    eos_token_ids: Sequence[int],
    *,
    use_adapter: bool,
) -> Int64[Tensor, "B N"]:
    """The answers' tokens, N <= `most`, on the host. Behind a token that ends its answer stands that token again."""
    cache = generator.prefill(prompts, max_new_tokens, use_adapter=use_adapter)
    stops = torch.tensor(eos_token_ids, dtype=torch.int64, device=generator.device)
    said = torch.empty(max_new_tokens, len(prompts), dtype=torch.int64, device=generator.device)
    logits, ended = cache.logits[: len(prompts)], torch.zeros(len(prompts), dtype=torch.bool, device=generator.device)
    for place in range(max_new_tokens):
        torch.where(ended, said[place - 1], sampler(logits, place), out=said[place])
        ended |= torch.isin(said[place], stops)
        last = place + 1 == max_new_tokens
        if last or (place % CHECK_INTERVAL == CHECK_INTERVAL - 1 and bool(ended.all())):
            return said[: place + 1].T.cpu()
        logits = generator.decode_step(cache, said[place], use_adapter=use_adapter)
    return said[:0].T.cpu()
