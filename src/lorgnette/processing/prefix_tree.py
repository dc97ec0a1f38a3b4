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

from lorgnette.types import IGNORED, Encoded, PictureGrid

Share = Literal["none", "tree"]
"""none: every example has all its rows to itself; tree: what any two of a pass begin with is there once."""
Marks = Int32[np.ndarray, "_ 5"]
"""What a row is known by, among rows behind the same rows: its token, its three positions, its picture's number (-1:
none). Which part of the picture it is follows from the rows before it."""


class Tree:
    """The examples of a pass, taken one by one, and the rows they need together.

    kept: of each example, the rows up to the one that predicts its last label. order: the examples as a walk through
    the tree comes to them; shared: of each in that order, the rows in common with the one before. Without sharing, the
    order in which they were taken.
    """

    def __init__(self, share: Share) -> None:
        self.share = share
        self.examples: list[Encoded] = []
        self.kept: list[int] = []
        self.rows = 0
        self.order: list[int] = []
        self.shared: list[int] = []
        self._marks: list[Marks] = []
        self._keys: list[bytes] = []
        self._pictures: dict[PictureGrid, int] = {}

    def take(self, encoded: Encoded, most_rows: int | None = None) -> bool:
        """Add an example; or False, where the tree has one already and would grow beyond `most_rows` rows."""
        kept = int(np.flatnonzero(encoded.labels != IGNORED)[-1])
        marks = self._marked(encoded, kept)
        key = marks.tobytes()
        at = bisect(self._keys, key)
        before, behind = (self._common(marks, other) for other in (at - 1, at))
        rows = self.rows + kept - max(before, behind)
        if self.examples and most_rows is not None and rows > most_rows:
            return False
        self._keys.insert(at, key)
        self.order.insert(at, len(self.examples))
        self.shared[at:] = [before, *([behind, *self.shared[at + 1 :]] if at < len(self.shared) else [])]
        self.examples.append(encoded)
        self.kept.append(kept)
        self._marks.append(marks)
        self.rows = rows
        return True

    def _common(self, marks: Marks, place: int) -> int:
        """Rows in common with the example at a place in the order."""
        return _common(marks, self._marks[self.order[place]]) if 0 <= place < len(self.order) else 0

    def _marked(self, encoded: Encoded, kept: int) -> Marks:
        if self.share == "none":
            return np.empty((0, 5), np.int32)
        marks = np.empty((kept, 5), np.int32)
        marks[:, 0] = encoded.tokens[:kept]
        marks[:, 1:4] = encoded.positions[:, :kept].T
        marks[:, 4] = -1
        for grid, start in zip(encoded.grids, encoded.image_starts, strict=True):
            marks[start : start + grid.tokens, 4] = self._pictures.setdefault(grid, len(self._pictures))
        return marks


def _common(a: Marks, b: Marks) -> int:
    """How many rows both begin with."""
    length = min(len(a), len(b))
    differ = (a[:length] != b[:length]).ravel()
    first = int(differ.argmax()) if length else 0
    return first // 5 if length and differ[first] else length
