"""Picks the next token of every row from its logits: the likeliest one, or a sampled one.

As in transformers' `generate`: temperature first, then top-p. Only the random numbers differ: inverse transform
sampling over the probabilities in descending order, with one uniform number per (seed, example, token). So an answer
does not depend on the batch it is in, and the same seed gives other answers than transformers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from lorgnette.inference.answer_boxes import read_answer_boxes
from lorgnette.processing.processor import Processor
from lorgnette.processing.tokenizer import ENDOFTEXT_TOKEN, IM_END_TOKEN
from lorgnette.types import Example, Prediction

EOS_TOKENS = (IM_END_TOKEN, ENDOFTEXT_TOKEN)
TokenCallback = Callable[[int, Sequence[int]], bool]
"""(index of the example, the tokens of its answer so far, without an end token) → whether the answer goes on."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answers are generated.

    temperature=None is greedy decoding. with_boxes: boxes are expected in the answers, and get scores.
    """

    max_new_tokens: int = 128
    batch_size: int = 32
    temperature: float | None = None
    top_p: float = 1.0
    seed: int = 0
    with_boxes: bool = False


class Sampler:
    """Picks one token per row at a time. example_indices: the rows' examples, counted over all that are answered."""

    def __init__(self, sampling: SamplingParams, example_indices: Iterable[int], device: torch.device) -> None:
        self._sampling = sampling
        self._probabilities: list[Float32[Tensor, " B"]] = []
        self._uniforms: Float32[Tensor, "N B"] | None = None
        if sampling.temperature is not None:
            columns = [draw_uniforms(sampling, index) for index in example_indices]
            self._uniforms = torch.from_numpy(np.stack(columns, 1)).to(device)

    def __call__(self, logits: Float32[Tensor, "B V"], token_index: int) -> Int64[Tensor, " B"]:
        """The next token of every row, on the device."""
        if self._uniforms is None or self._sampling.temperature is None:
            tokens = logits.argmax(-1)
        else:
            uniforms, temperature = self._uniforms[token_index], self._sampling.temperature
            tokens = sample_tokens(logits, uniforms, temperature, self._sampling.top_p)
        if self._sampling.with_boxes:
            self._probabilities.append(compute_probabilities(logits, tokens))
        return tokens

    def list_probabilities(self, num_rows: int) -> Sequence[Sequence[float] | None]:
        """The probability of every token that was picked, by row. None for each row if no boxes are expected."""
        return torch.stack(self._probabilities, 1).tolist() if self._probabilities else [None] * num_rows


class AnswerWatcher:
    """Shows the growing answers of a batch to a callback, and ends those that it does not want to go on.

    lengths: row → the number of tokens of an answer that the callback has ended; what follows is not its own.
    """

    def __init__(self, on_tokens: TokenCallback, example_indices: Sequence[int], eos_token_ids: Sequence[int]) -> None:
        """example_indices: of the rows."""
        self.lengths: dict[int, int] = {}
        self._on_tokens, self._indices, self._eos_token_ids = on_tokens, example_indices, frozenset(eos_token_ids)
        self._has_ended: set[int] = set()

    def show(self, answers: Sequence[Sequence[int]]) -> list[int]:
        """Show the answers that were going on. answers: all tokens so far, by row. Returns all rows ended so far by the
        callback."""
        for row, ids in enumerate(answers):
            if row in self._has_ended or row in self.lengths:
                continue
            end = next((i for i, token_id in enumerate(ids) if token_id in self._eos_token_ids), None)
            goes_on = self._on_tokens(self._indices[row], ids[:end])
            if end is not None:
                self._has_ended.add(row)
            elif not goes_on:
                self.lengths[row] = len(ids)
        return list(self.lengths)

    def cut(self, answers: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The answers without what follows where the callback ended them."""
        return [ids[: self.lengths.get(row)] for row, ids in enumerate(answers)]


def compute_probabilities(logits: Float32[Tensor, "B V"], tokens: Int64[Tensor, " B"]) -> Float32[Tensor, " B"]:
    """What the model gives each row's token, before temperature and top-p."""
    return (logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)).exp()


def draw_uniforms(sampling: SamplingParams, example_index: int) -> Float32[np.ndarray, " N"]:
    """A random number for each token of an answer."""
    return np.random.default_rng((sampling.seed, example_index)).random(sampling.max_new_tokens, np.float32)


def sample_tokens(
    logits: Float32[Tensor, "B V"],
    uniforms: Float32[Tensor, " B"],
    temperature: Float32[Tensor, "#B 1"] | float,
    top_p: Float32[Tensor, "#B 1"] | float,
) -> Int64[Tensor, " B"]:
    """Nucleus sampling (Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020). The nucleus is the
    smallest set of likeliest tokens with at least `top_p` of the probability, one token at least."""
    if not isinstance(temperature, Tensor):  # a GPU divides by a number in another way
        temperature = logits.new_full((1, 1), temperature)
    probs, token_ids = (logits / temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    likelier = probs.cumsum(-1) - probs  # probability of all likelier tokens
    in_nucleus = (likelier < top_p) | (top_p >= 1)
    in_nucleus[:, 0] = True
    cumulative = (probs * in_nucleus).cumsum(-1)
    threshold = uniforms[:, None] * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, threshold, right=True).minimum(in_nucleus.sum(-1, keepdim=True) - 1)
    return token_ids.gather(1, rank)[:, 0]


def build_prediction(
    processor: Processor,
    example: Example,
    answer_ids: Sequence[int],
    adapter: str | None,
    probabilities: Sequence[float] | None = None,
) -> Prediction:
    """Decode the answer's tokens up to its end token. Without one the answer was cut off. probabilities: of the tokens;
    None if no boxes are expected."""
    eos_token_ids = [processor.tokenizer.control_tokens[name] for name in EOS_TOKENS]
    length = next((i for i, token_id in enumerate(answer_ids) if token_id in eos_token_ids), None)
    text = processor.tokenizer.decode(answer_ids[:length])
    boxes = read_answer_boxes(processor, example, text, answer_ids[:length], probabilities)
    return Prediction(example, text, adapter, length is not None, boxes)
