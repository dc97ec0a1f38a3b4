"""So many of a source's rows, each as likely as any other, in the source's order. Knows nothing about rows."""

import random
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def sample_rows(rows: Iterable[T], count: int, seed: int) -> list[T]:
    """`count` of the rows, or all where there are fewer; never more than `count` are held (reservoir, algorithm R)."""
    chance = random.Random(seed)
    kept: list[tuple[int, T]] = []
    for number, row in enumerate(rows):
        if number < count:
            kept.append((number, row))
        elif (place := chance.randrange(number + 1)) < count:
            kept[place] = number, row
    return [row for _, row in sorted(kept, key=lambda each: each[0])]
