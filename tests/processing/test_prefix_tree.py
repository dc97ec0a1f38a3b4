"""What is computed once for several examples is what each of them computes alone: a small causal stack in fp64 says so,
and says so no more when a shared pass is wrong anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.processing.mrope import positions
from lorgnette.processing.packing import pack, passes
from lorgnette.processing.prefix_tree import Share, Tree
from lorgnette.types import IGNORED, Encoded, Example, PackedBatch, Picture, PictureGrid

IMAGE = 0
WIDTH, HEADS, LAYERS, VOCABULARY = 16, 2, 3, 128
TOLERANCE = 1e-10
WIDE, HIGH, SMALL = (PictureGrid(Picture(Path(f"{h}.png")), 1, h, w, 2) for h, w in ((4, 6), (6, 4), (2, 2)))
OTHER = PictureGrid(Picture(Path("other.png")), 1, 4, 6, 2)
Runs = Sequence[str | PictureGrid]
SHARES: list[Share] = ["none", "tree"]


def said(*runs: str | PictureGrid) -> Encoded:
    """said("ask", WIDE, "!answer"): letters are tokens, behind an exclamation mark they are labels."""
    tokens: list[int] = []
    labels: list[int] = []
    starts, grids = [], []
    for run in runs:
        if isinstance(run, PictureGrid):
            starts.append(len(tokens))
            grids.append(run)
            new, trained = [IMAGE] * run.tokens, False
        else:
            new, trained = [ord(letter) for letter in run.removeprefix("!")], run.startswith("!")
        tokens += new
        labels += new if trained else [IGNORED] * len(new)
    return Encoded(
        Example("", (), Path("x.json"), 1), np.array(tokens, np.int32), np.array(labels, np.int32),
        positions(len(tokens), starts, grids), tuple(grids), tuple(starts),
    )  # fmt: skip


class Stack:
    """Layers of causal attention with rotary positions, and perceptrons; random weights, nothing trained."""

    def __init__(self) -> None:
        draw = np.random.default_rng(7)
        self.embedding = draw.normal(size=(VOCABULARY, WIDTH))
        self.layers = draw.normal(size=(LAYERS, 6, WIDTH, WIDTH)) / np.sqrt(WIDTH)
        self.head = draw.normal(size=(WIDTH, VOCABULARY))
        self.turns = draw.uniform(0.1, 1, size=(3, WIDTH // HEADS // 2))

    def features(self, grids: Sequence[PictureGrid]) -> np.ndarray:
        seeds = [sum(f"{grid.picture.path}{grid.h}".encode()) for grid in grids]
        drawn = [
            np.random.default_rng(seed).normal(size=(grid.tokens, WIDTH))
            for seed, grid in zip(seeds, grids, strict=True)
        ]
        return np.concatenate([*drawn, np.empty((0, WIDTH))])

    def losses(self, x: np.ndarray, at: np.ndarray, ends: np.ndarray, rows: np.ndarray, to: np.ndarray) -> np.ndarray:
        """Cross-entropy of targets `to` at `rows`. ends: behind the last row that sees each."""
        every = np.arange(len(x))
        seen = (every <= every[:, None]) & (every[:, None] < ends)
        angles = np.einsum("pt,pf->tf", at, self.turns)[:, None]
        for q, k, v, o, up, down in self.layers:
            query, key = (self._turned((x @ w).reshape(len(x), HEADS, -1), angles) for w in (q, k))
            value = (x @ v).reshape(len(x), HEADS, -1)
            scores = np.einsum("qhc,khc->hqk", query, key)
            weights = np.exp(np.where(seen, scores - scores.max(-1, keepdims=True), -np.inf))
            weights /= weights.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khc->qhc", weights, value).reshape(x.shape) @ o
            x = x + np.tanh(x @ up) @ down
        logits = x[rows] @ self.head
        most = logits.max(-1)
        return most + np.log(np.exp(logits - most[:, None]).sum(-1)) - logits[np.arange(len(to)), to]

    def alone(self, encoded: Encoded) -> np.ndarray:
        """An example by itself, none of its rows left out."""
        x, ends = self.embedding[encoded.tokens], np.full(len(encoded.tokens), len(encoded.tokens))
        x[encoded.tokens == IMAGE] = self.features(encoded.grids)
        labels = np.flatnonzero(encoded.labels != IGNORED)
        return self.losses(x, encoded.positions, ends, labels - 1, encoded.tokens[labels])

    def packed(self, batch: PackedBatch) -> np.ndarray:
        x = self.embedding[batch.tokens]
        x[batch.image_rows] = self.features(batch.grids)[batch.feature_rows]
        return self.losses(x, batch.positions, batch.ends, batch.label_rows, batch.targets)

    @staticmethod
    def _turned(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)], -1)


STACK = Stack()


def distance(batches: Sequence[PackedBatch], examples: Sequence[Encoded]) -> float:
    """How far the losses of packed examples are from each example's own, label by label."""
    found = np.concatenate([STACK.packed(batch) for batch in batches])
    return float(np.abs(found - np.concatenate([STACK.alone(encoded) for encoded in examples])).max())


def beginnings(examples: Sequence[Encoded]) -> int:
    """How many different beginnings examples have, up to the row that predicts the last label of each."""
    found = set()
    for encoded in examples:
        kept = int(np.flatnonzero(encoded.labels != IGNORED)[-1])
        pictures = {
            start + i: grid.picture
            for grid, start in zip(encoded.grids, encoded.image_starts, strict=True)
            for i in range(grid.tokens)
        }
        rows = [
            (int(token), *at, pictures.get(i))
            for i, (token, at) in enumerate(zip(encoded.tokens, encoded.positions.T.tolist(), strict=True))
        ]
        found |= {tuple(rows[: i + 1]) for i in range(kept)}
    return len(found)


TEXT = st.text("ab", max_size=3)
PROMPT = st.lists(TEXT | st.sampled_from([WIDE, HIGH, SMALL, OTHER]), max_size=3)
ANSWER = st.text("ab", min_size=1, max_size=4).map(lambda text: "!" + text)
TURNS = st.lists(st.tuples(PROMPT, ANSWER), min_size=1, max_size=2)
RUNS = st.tuples(TURNS, TEXT).map(
    lambda both: ["s", *(run for prompt, answer in both[0] for run in (*prompt, answer)), both[1]]
)
STEPS = st.lists(RUNS, min_size=1, max_size=7)


@given(step=STEPS, share=st.sampled_from(SHARES), most_tokens=st.integers(1, 80))
def test_each_example_is_computed_as_if_alone(step: list[Runs], share: Share, most_tokens: int) -> None:
    examples = [said(*runs) for runs in step]
    batches = passes(examples, most_tokens, share=share)
    assert distance(batches, examples) < TOLERANCE
    assert all(len(batch.tokens) <= most_tokens or len(batch.examples) == 1 for batch in batches)
    wanted = np.concatenate([encoded.labels[encoded.labels != IGNORED] for encoded in examples])
    np.testing.assert_array_equal(np.concatenate([batch.targets for batch in batches]), wanted)
    assert sum(float(batch.weights.sum(dtype=np.float64)) for batch in batches) == pytest.approx(1, abs=1e-6)
    assert sum((batch.examples for batch in batches), ()) == tuple(encoded.example for encoded in examples)


@given(step=STEPS, share=st.sampled_from(SHARES))
def test_behind_a_row_are_all_that_hang_on_it(step: list[Runs], share: Share) -> None:
    examples = [said(*runs) for runs in step]
    batch = pack(examples, 1, share=share)
    rows = np.arange(len(batch.tokens))
    assert (batch.ends > rows).all()
    assert batch.ends.max() == len(rows)
    for row, end in zip(rows, batch.ends, strict=True):
        assert (batch.ends[row:end] <= end).all()  # what hangs on a row ends before the row does
    if share == "none":
        assert (np.diff(batch.ends) >= 0).all()
        assert len(np.unique(batch.ends)) == len(examples)


@given(step=STEPS)
def test_a_tree_has_every_beginning_once(step: list[Runs]) -> None:
    examples = [said(*runs) for runs in step]
    batch = pack(examples, 1, share="tree")
    assert len(batch.tokens) == beginnings(examples)
    assert set(batch.ends - 1) <= set(batch.label_rows)  # no row is there for nothing


def rows(share: Share, *examples: Encoded) -> int:
    batch = pack(examples, 1, share=share)
    assert distance([batch], examples) < TOLERANCE
    return len(batch.tokens)


def test_captions_of_a_picture_share_it() -> None:
    """s s s, 6 of the picture, ask; then 4 (predicting) rows of the first answer and what the others have besides."""
    asked = ("sys", WIDE, "ask")
    captions = [said(*asked, f"!{answer}", "\n") for answer in ("abcd", "abxy", "q", "ab")]
    assert rows("none", *captions) == 12 * 4 + 3 + 3 + 0 + 1
    assert rows("tree", *captions) == 12 + 3 + 1
    others = [said("sys", OTHER, "ask", "!abcd"), said("sys", HIGH, "ask", "!abcd")]
    assert rows("tree", *captions, *others) == 16 + 2 * (6 + 3 + 3)


def test_equal_examples_and_the_beginning_of_another_add_no_row() -> None:
    long = said("sys", SMALL, "ask", "!abc", "more", "!de")
    short = said("sys", SMALL, "ask", "!ab")
    for examples in ((long, long, long), (long, short), (short, long), (short, long, short)):
        assert rows("tree", *examples) == rows("none", long)
        batch = pack(examples, 1, share="tree")
        assert len(batch.targets) == sum(encoded.label_count for encoded in examples)
    assert set(pack((long, short), 1, share="tree").ends) == {rows("none", long)}


def test_turns_of_text_alone_share_their_beginning() -> None:
    assert (
        rows("tree", said("hello", "!a", "and", "!b"), said("hello", "!a", "or", "!c"), said("ho", "!a")) == 9 + 2 + 1
    )


def test_a_picture_is_not_another_of_its_shape_nor_itself_in_another() -> None:
    narrow = replace(WIDE, h=2, w=12)
    assert WIDE.tokens == OTHER.tokens == narrow.tokens
    for other in (OTHER, narrow):
        assert rows("tree", said("s", WIDE, "a", "!b"), said("s", other, "a", "!b")) == 1 + 2 * 7
    assert rows("tree", said("s", SMALL, SMALL, "!b"), said("s", SMALL, "!b")) == 3


def test_the_same_token_elsewhere_is_another_row() -> None:
    example = said("sys", "ask", "!ab")
    moved = replace(example, positions=example.positions + (np.arange(len(example.tokens)) >= 2).astype(np.int32))
    assert rows("tree", example, moved) == 2 + 2 * 5


def test_a_pass_holds_more_where_more_is_shared() -> None:
    captions = [said("sys", WIDE, "ask", f"!{letter}bc") for letter in "pqrstu"]
    assert [len(b.examples) for b in passes(captions, 28, share="none")] == [2, 2, 2]
    assert [len(b.examples) for b in passes(captions, 24, share="tree")] == [6]
    assert [len(b.examples) for b in passes(captions, 23, share="tree")] == [5, 1]


def test_a_tree_is_walked_through_whatever_came_first() -> None:
    tree = Tree("tree")
    assert all(tree.take(said("sys", answer)) for answer in ("!abcd", "!xyz", "!abxy", "!abxz"))
    assert (tree.order, tree.shared) == ([0, 2, 3, 1], [0, 5, 6, 3])
    assert not tree.take(said("sys", "!q", "!q"), tree.rows)
    assert tree.take(said("sys", "!abc"), tree.rows)
    assert (tree.order, tree.shared) == ([4, 0, 2, 3, 1], [0, 5, 5, 6, 3])
    assert (len(tree.examples), tree.rows, sum(tree.kept)) == (5, 6 + 2 + 1, 6 + 5 + 6 + 6 + 5)
    apart = Tree("none")
    assert all(apart.take(said("sys", answer)) for answer in ("!b", "!a", "!b"))
    assert (apart.order, apart.shared) == ([0, 1, 2], [0, 0, 0])


def sibling(batch: PackedBatch) -> PackedBatch:
    """The second caption sees the last row of the first."""
    first = batch.ends.min()
    return replace(batch, ends=np.where(np.arange(len(batch.ends)) == first - 1, first + 2, batch.ends))


def orphan(batch: PackedBatch) -> PackedBatch:
    """A beginning is seen by the first caption alone."""
    own = np.arange(1, len(batch.ends) + 1, dtype=np.int32)
    return replace(batch, ends=np.maximum(np.minimum(batch.ends, batch.ends.min()), own))


def stranger(batch: PackedBatch) -> PackedBatch:
    """The second picture's captions see the first picture."""
    return replace(batch, ends=np.where(np.arange(len(batch.ends)) < 9, len(batch.ends), batch.ends).astype(np.int32))


def late(batch: PackedBatch) -> PackedBatch:
    """Positions of the second caption go on from the first."""
    moved = batch.positions.copy()
    moved[:, batch.ends.min() : batch.ends.min() + 2] += 2
    return replace(batch, positions=moved)


def swapped(batch: PackedBatch) -> PackedBatch:
    """A caption's first token is predicted from the end of another caption."""
    moved = batch.label_rows.copy()
    moved[3] = batch.ends.min() - 1
    return replace(batch, label_rows=moved)


@pytest.mark.parametrize("broken", [sibling, orphan, stranger, late, swapped])
def test_the_comparison_can_fail(broken: Callable[[PackedBatch], PackedBatch]) -> None:
    examples = [said("sys", grid, "ask", answer) for grid in (WIDE, OTHER) for answer in ("!abc", "!xyz")]
    batch = pack(examples, 1, share="tree")
    assert len(np.unique(batch.ends)) == 4
    assert distance([batch], examples) < TOLERANCE
    assert distance([broken(batch)], examples) > 1e6 * TOLERANCE
