"""Padding rounds up to few sizes, without much waste."""

from lorgnette.planning.limits import pad_labels, pad_last_layer_tokens, pad_tokens, round_up


def test_rounding_up_reaches_the_next_step() -> None:
    for parts in (2, 4, 64):
        for count in range(1, 5000, 7):
            rounded = round_up(count, parts)
            assert count <= rounded < count + max(16, count / parts + 1)
            assert round_up(rounded, parts) == rounded


def test_a_padded_batch_has_a_spare_token_and_fewer_queries_than_tokens() -> None:
    for tokens in range(1, 3000, 37):
        padded = pad_tokens(tokens)
        assert padded > tokens
        assert pad_last_layer_tokens(tokens, padded) < padded


def test_few_sizes_remain() -> None:
    assert len({pad_tokens(tokens) for tokens in range(1024, 2047)}) == 64
    assert len({pad_labels(labels) for labels in range(1025, 2049)}) == 8
