"""Backgrounds are told apart by their pixels, whatever the variant."""

import itertools

import numpy as np

from lorgnette.demo.backgrounds import BACKGROUNDS, NUM_VARIANTS, draw_background


def test_each_is_a_picture_of_the_size_asked_for() -> None:
    for name in BACKGROUNDS:
        assert draw_background(name, 0, 64).size == (64, 64)
        assert draw_background(name, 0, 64).mode == "RGB"


def test_variants_differ_and_come_out_the_same_each_time() -> None:
    for name in BACKGROUNDS:
        first = draw_background.__wrapped__(name, 0, 64)
        assert first.tobytes() == draw_background.__wrapped__(name, 0, 64).tobytes()
        assert first.tobytes() != draw_background(name, 1, 64).tobytes()


def test_different_backgrounds_are_further_apart_than_variants_of_one() -> None:
    columns = {
        name: [np.asarray(draw_background(name, v, 32)).mean(axis=1) for v in range(NUM_VARIANTS)]
        for name in BACKGROUNDS
    }
    for one, other in itertools.combinations(BACKGROUNDS, 2):
        apart = min(np.abs(a - b).mean() for a in columns[one] for b in columns[other])
        assert apart > 8, (one, other)
