"""Nucleus and probabilities equal transformers'; the random numbers depend on seed and example alone."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from lorgnette.inference.sampling import Sampler, SamplingParams, sample_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_likely_as_in_transformers(temperature: float, top_p: float) -> None:
    """Evenly spaced numbers in [0, 1) pick every token with its probability."""
    torch.manual_seed(0)
    logits, count = torch.randn(1, 12) * 2, 4000
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    expected = (TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores).softmax(-1)[0]
    uniforms = (torch.arange(count) + 0.5) / count
    tokens = sample_tokens(logits.expand(count, -1), uniforms, temperature, top_p)
    shares = tokens.bincount(minlength=12) / count
    torch.testing.assert_close(shares, expected, atol=2 / count, rtol=0)


def test_rows_may_have_settings_of_their_own() -> None:
    torch.manual_seed(0)
    logits, uniforms = torch.randn(40, 200) * 3, torch.rand(40)
    settings = [(0.3 + 0.1 * (row % 20), (1.0, 0.9, 0.4)[row % 3]) for row in range(40)]
    temperature, top_p = torch.tensor(settings).split(1, 1)
    alone = [sample_tokens(logits[i : i + 1], uniforms[i : i + 1], *settings[i]).item() for i in range(40)]
    assert sample_tokens(logits, uniforms, temperature, top_p).tolist() == alone
    assert sample_tokens(logits, uniforms, temperature.flip(0), top_p.flip(0)).tolist() != alone


def test_the_largest_uniform_picks_the_last_token_of_the_nucleus() -> None:
    logits = torch.randn(2, 50)
    uniforms = torch.tensor([0.0, 1 - 2**-24])
    likeliest, last = sample_tokens(logits, uniforms, 1.0, 0.7).tolist()
    assert likeliest == logits[0].argmax()
    order = logits[1].sort(descending=True).indices.tolist()
    assert order.index(last) == int((logits[1].softmax(-1).sort(descending=True).values.cumsum(0) < 0.7).sum())


def test_samples_depend_on_seed_and_example_not_on_the_batch() -> None:
    logits = torch.zeros(1, 1000)

    def sample(example_indices: list[int], seed: int = 0) -> list[list[int]]:
        sampler = Sampler(SamplingParams(max_new_tokens=3, temperature=1.0, seed=seed), example_indices, CPU)
        return [sampler(logits.expand(len(example_indices), -1), i).tolist() for i in range(3)]

    together = sample([4, 5, 6])
    assert [row[1:2] for row in together] == sample([5])
    assert len({token_id for row in together for token_id in row}) > 6
    assert sample([4, 5, 6]) == together != sample([4, 5, 6], seed=1)


def test_greedy_picks_the_likeliest_token() -> None:
    logits = torch.randn(3, 20)
    assert torch.equal(Sampler(SamplingParams(), [0, 1, 2], CPU)(logits, 0), logits.argmax(-1))
