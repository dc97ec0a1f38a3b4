"""Which rows the examples of a pass have in common: what is computed once.

    s s s I I I I u a a a     the first example, whole
                  ╰─ b b      the second has the 8 rows before in common with it
                     ╰─ c c   the third those, and one of the second's

Two rows are the same where their token, position and picture are, and all rows before them: in a causal model nothing
else reaches them, so what is computed for one holds for the other. In the order of what their rows are known by, an
example has most in common with its neighbours: it hangs on the one before it, and adds rows of its own behind that
(none, where it is the other's beginning).
"""

from bisect import bisect
from typing import Literal

import numpy as np
from jaxtyping import Int32

from lorgnette.types import IGNORE_INDEX, Encoded, ImageGrid

Share = Literal["none", "tree"]
"""none: every example has all its rows to itself; tree: what any two of a pass begin with is there once."""
TokenKeys = Int32[np.ndarray, "_ 5"]
"""What a row is known by, among rows behind the same rows: its token, its three positions, its picture's number (-1:
none). Which part of the picture it is follows from the rows before it."""


class PrefixTree:
    """The examples of a pass, taken one by one, and the rows they need together.

    kept: of each example, the rows up to the one that predicts its last label. order: the examples as a walk through
    the tree comes to them; shared: of each in that order, the rows in common with the one before. Without sharing, the
    order in which they were taken.
    """

    def __init__(self, prefix_sharing: Share) -> None:
        self.prefix_sharing = prefix_sharing
        self.examples: list[Encoded] = []
        self.used_lengths: list[int] = []
        self.num_tokens = 0
        self.order: list[int] = []
        self.shared_lengths: list[int] = []
        self._token_keys: list[TokenKeys] = []
        self._sort_keys: list[bytes] = []
        self._image_numbers: dict[ImageGrid, int] = {}

    def try_add(self, encoded: Encoded, max_tokens: int | None = None) -> bool:
        """Add an example; or False, where the tree has one already and would grow beyond `most_rows` rows."""
        kept = int(np.flatnonzero(encoded.labels != IGNORE_INDEX)[-1])
        marks = self._compute_token_keys(encoded, kept)
        key = marks.tobytes()
        at = bisect(self._sort_keys, key)
        before, behind = (self._count_shared(marks, other) for other in (at - 1, at))
        rows = self.num_tokens + kept - max(before, behind)
        if self.examples and max_tokens is not None and rows > max_tokens:
            return False
        self._sort_keys.insert(at, key)
        self.order.insert(at, len(self.examples))
        self.shared_lengths[at:] = [
            before,
            *([behind, *self.shared_lengths[at + 1 :]] if at < len(self.shared_lengths) else []),
        ]
        self.examples.append(encoded)
        self.used_lengths.append(kept)
        self._token_keys.append(marks)
        self.num_tokens = rows
        return True

    def _count_shared(self, token_keys: TokenKeys, place: int) -> int:
        """Rows in common with the example at a place in the order."""
        return _count_common(token_keys, self._token_keys[self.order[place]]) if 0 <= place < len(self.order) else 0

    def _compute_token_keys(self, encoded: Encoded, used_length: int) -> TokenKeys:
        if self.prefix_sharing == "none":
            return np.empty((0, 5), np.int32)
        marks = np.empty((used_length, 5), np.int32)
        marks[:, 0] = encoded.input_ids[:used_length]
        marks[:, 1:4] = encoded.position_ids[:, :used_length].T
        marks[:, 4] = -1
        for grid, start in zip(encoded.grids, encoded.image_starts, strict=True):
            marks[start : start + grid.num_tokens, 4] = self._image_numbers.setdefault(grid, len(self._image_numbers))
        return marks


def _count_common(a: TokenKeys, b: TokenKeys) -> int:
    """How many rows both begin with."""
    length = min(len(a), len(b))
    differ = (a[:length] != b[:length]).ravel()
    first = int(differ.argmax()) if length else 0
    return first // 5 if length and differ[first] else length
