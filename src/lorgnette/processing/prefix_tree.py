"""Finds the prefixes that the examples of a micro-batch share, so that they are computed once.

    s s s I I I I u a a a     the first example, whole
                  ╰─ b b      the second shares the first 8 tokens
                     ╰─ c c   the third shares these and one of the second's own

Two tokens are the same if their ids, positions and images are equal, and so are all tokens before them: in a causal
model nothing else influences them. Examples are sorted by token key, so each shares its longest prefix with its
predecessor. The tree stores only the tokens after that prefix (none if the example is a prefix of another).
"""

from bisect import bisect

import numpy as np
from jaxtyping import Int32

from lorgnette.types import IGNORE_INDEX, Encoded, ImageGrid

TokenKeys = Int32[np.ndarray, "_ 5"]
"""A token's key among tokens with the same prefix: its id, its three positions, its image's number (-1: none). The
token's place inside the image follows from the tokens before it."""


class PrefixTree:
    """The examples of a micro-batch, added one by one.

    used_lengths:   the tokens of each example up to the one that predicts its last label.
    order:          the examples in depth-first order of the tree. Without prefix sharing: as they were added.
    shared_lengths: of each example in that order, the tokens shared with its predecessor.
    token_keys:     with prefix sharing, the keys of each example's used tokens.
    num_tokens:     the tokens of all examples, shared ones once.
    """

    def __init__(self, prefix_sharing: bool, image_numbers: dict[ImageGrid, int] | None = None) -> None:
        """image_numbers: of the images in the token keys; others get the next numbers."""
        self.prefix_sharing = prefix_sharing
        self.examples: list[Encoded] = []
        self.used_lengths: list[int] = []
        self.num_tokens = 0
        self.order: list[int] = []
        self.shared_lengths: list[int] = []
        self.token_keys: list[TokenKeys] = []
        self._sort_keys: list[bytes] = []
        self._image_numbers = {} if image_numbers is None else image_numbers

    @property
    def num_labels(self) -> int:
        return sum(encoded.num_labels for encoded in self.examples)

    def try_add(self, encoded: Encoded, max_tokens: int | None = None) -> bool:
        """Add an example. False if the tree has one already and would grow beyond `max_tokens` tokens."""
        # A token behind the last one that predicts a label is never used.
        used_length = int(np.flatnonzero(encoded.labels != IGNORE_INDEX)[-1])
        token_keys = np.full((used_length if self.prefix_sharing else 0, 5), -1, np.int32)
        if self.prefix_sharing:
            token_keys[:, 0] = encoded.input_ids[:used_length]
            token_keys[:, 1:4] = encoded.position_ids[:, :used_length].T
            for grid, start in zip(encoded.grids, encoded.image_starts, strict=True):
                number = self._image_numbers.setdefault(grid, len(self._image_numbers))
                token_keys[start : start + grid.num_tokens, 4] = number
        sort_key = token_keys.tobytes()
        index = bisect(self._sort_keys, sort_key)
        neighbors = (self.order[i] if 0 <= i < len(self.order) else None for i in (index - 1, index))
        # The tokens shared with both neighbors in the order.
        with_previous, with_next = (
            0 if i is None else _count_common(token_keys, self.token_keys[i]) for i in neighbors
        )
        num_tokens = self.num_tokens + used_length - max(with_previous, with_next)
        if self.examples and max_tokens is not None and num_tokens > max_tokens:
            return False
        self._sort_keys.insert(index, sort_key)
        self.order.insert(index, len(self.examples))
        # The new example comes between two others: the second now shares its prefix with the new one.
        following = [with_next, *self.shared_lengths[index + 1 :]] if index < len(self.shared_lengths) else []
        self.shared_lengths[index:] = [with_previous, *following]
        self.examples.append(encoded)
        self.used_lengths.append(used_length)
        self.token_keys.append(token_keys)
        self.num_tokens = num_tokens
        return True


def _count_common(a: TokenKeys, b: TokenKeys) -> int:
    """The length of the longest common prefix."""
    length = min(len(a), len(b))
    differs = (a[:length] != b[:length]).ravel()
    first = int(differs.argmax()) if length else 0
    return first // 5 if length and differs[first] else length
