"""What is kept and how likely it is are transformers'; which token falls follows seed and example alone."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.sampling import Sampler, sample_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.5, 1e-6])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_as_likely_as_in_transformers(temperature: float, top_p: float) -> None:
    """Chances laid evenly over [0, 1) give every token its share of them."""
    torch.manual_seed(0)
    logits, count = torch.randn(1, 12) * 2, 4000
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    wanted = (TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores).softmax(-1)[0]
    chances = (torch.arange(count) + 0.5) / count
    tokens = sample_tokens(logits.expand(count, -1), chances, temperature, top_p)
    shares = tokens.bincount(minlength=12) / count
    torch.testing.assert_close(shares, wanted, atol=2 / count, rtol=0)


def test_the_ends_of_the_chances_are_tokens() -> None:
    logits = torch.randn(2, 50)
    nearly_one = torch.tensor([0.0, 1 - 2**-24])
    likeliest, last = sample_tokens(logits, nearly_one, 1.0, 0.7).tolist()
    assert likeliest == logits[0].argmax()
    order = logits[1].sort(descending=True).indices.tolist()
    assert order.index(last) == int((logits[1].softmax(-1).sort(descending=True).values.cumsum(0) < 0.7).sum())


def test_chances_follow_seed_and_example_and_not_the_batch() -> None:
    logits = torch.zeros(1, 1000)

    def drawn(numbers: list[int], seed: int = 0) -> list[list[int]]:
        choose = Sampler(SamplingParams(max_new_tokens=3, temperature=1.0, seed=seed), numbers, CPU)
        return [choose(logits.expand(len(numbers), -1), place).tolist() for place in range(3)]

    together = drawn([4, 5, 6])
    assert [row[1:2] for row in together] == drawn([5])
    assert len({number for row in together for number in row}) > 6
    assert drawn([4, 5, 6]) == together != drawn([4, 5, 6], seed=1)


def test_greedy_is_the_likeliest() -> None:
    logits = torch.randn(3, 20)
    assert torch.equal(Sampler(SamplingParams(), [0, 1, 2], CPU)(logits, 0), logits.argmax(-1))
