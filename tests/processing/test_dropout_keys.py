"""Keys differ between tokens, steps and runs, and their bits are even. (One key however a step is split:
test_prefix_tree.py.)"""

import numpy as np

from lorgnette.processing.dropout_keys import derive_step_key, draw_dropout_keys, hash_tokens, identify_by_place


def test_step_keys_are_all_different() -> None:
    keys = {derive_step_key(seed, step) for seed in (*range(19), 2**62) for step in range(100)}
    assert len(keys) == 2000
    assert all(0 <= key < 2**64 for key in keys)


def test_the_keys_of_a_step_differ_and_their_bits_are_even() -> None:
    tokens = np.concatenate([identify_by_place(place, 100) for place in range(100)])
    keys = np.stack([draw_dropout_keys(tokens, derive_step_key(0, step)) for step in range(3)])
    assert keys.dtype == np.int32
    assert len(np.unique(keys)) > keys.size - 3  # of 30,000 keys of 32 bits, one in ten draws has a pair
    bits = keys.view(np.uint32)[..., None] >> np.arange(32, dtype=np.uint32) & 1
    assert abs(bits.mean(1) - 0.5).max() < 0.025  # five standard deviations of 10,000 tokens
    assert abs((bits[:, 1:] ^ bits[:, :-1]).mean(1) - 0.5).max() < 0.025


def test_every_part_of_a_tokens_key_counts() -> None:
    token = np.array([[7, 3, 3, 3, -1]], np.int32)
    others = token + np.eye(5, dtype=np.int32)
    assert len(np.unique(np.concatenate([hash_tokens(token), hash_tokens(others)]))) == 6
