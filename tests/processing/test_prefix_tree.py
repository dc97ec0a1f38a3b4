"""What is computed once for several examples is what each of them computes alone: a small causal stack in fp64 says so,
and says so no more when a shared pass is wrong anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.processing.mrope import compute_position_ids
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.processing.prefix_tree import PrefixTree, Share
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid, PackedBatch

IMAGE = 0
WIDTH, HEADS, LAYERS, VOCABULARY = 16, 2, 3, 128
TOLERANCE = 1e-10
WIDE, HIGH, SMALL = (ImageGrid(Image(Path(f"{h}.png")), 1, h, w, 2) for h, w in ((4, 6), (6, 4), (2, 2)))
OTHER = ImageGrid(Image(Path("other.png")), 1, 4, 6, 2)
Runs = Sequence[str | ImageGrid]
SHARES: list[Share] = ["none", "tree"]


def said(*runs: str | ImageGrid) -> Encoded:
    """said("ask", WIDE, "!answer"): letters are tokens, behind an exclamation mark they are labels."""
    tokens: list[int] = []
    labels: list[int] = []
    starts, grids = [], []
    for run in runs:
        if isinstance(run, ImageGrid):
            starts.append(len(tokens))
            grids.append(run)
            new, trained = [IMAGE] * run.num_tokens, False
        else:
            new, trained = [ord(letter) for letter in run.removeprefix("!")], run.startswith("!")
        tokens += new
        labels += new if trained else [IGNORE_INDEX] * len(new)
    return Encoded(
        Example("", (), Path("x.json"), 1), np.array(tokens, np.int32), np.array(labels, np.int32),
        compute_position_ids(len(tokens), starts, grids), tuple(grids), tuple(starts),
    )  # fmt: skip


class Stack:
    """Layers of causal attention with rotary positions, and perceptrons; random weights, nothing trained."""

    def __init__(self) -> None:
        draw = np.random.default_rng(7)
        self.embedding = draw.normal(size=(VOCABULARY, WIDTH))
        self.layers = draw.normal(size=(LAYERS, 6, WIDTH, WIDTH)) / np.sqrt(WIDTH)
        self.head = draw.normal(size=(WIDTH, VOCABULARY))
        self.turns = draw.uniform(0.1, 1, size=(3, WIDTH // HEADS // 2))

    def features(self, grids: Sequence[ImageGrid]) -> np.ndarray:
        seeds = [sum(f"{grid.image.path}{grid.h}".encode()) for grid in grids]
        drawn = [
            np.random.default_rng(seed).normal(size=(grid.num_tokens, WIDTH))
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
        x, ends = self.embedding[encoded.input_ids], np.full(len(encoded.input_ids), len(encoded.input_ids))
        x[encoded.input_ids == IMAGE] = self.features(encoded.grids)
        labels = np.flatnonzero(encoded.labels != IGNORE_INDEX)
        return self.losses(x, encoded.position_ids, ends, labels - 1, encoded.input_ids[labels])

    def packed(self, batch: PackedBatch) -> np.ndarray:
        x = self.embedding[batch.input_ids]
        x[batch.image_token_indices] = self.features(batch.grids)[batch.feature_indices]
        return self.losses(x, batch.position_ids, batch.visible_until, batch.label_indices, batch.targets)

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
        kept = int(np.flatnonzero(encoded.labels != IGNORE_INDEX)[-1])
        pictures = {
            start + i: grid.image
            for grid, start in zip(encoded.grids, encoded.image_starts, strict=True)
            for i in range(grid.num_tokens)
        }
        rows = [
            (int(token), *at, pictures.get(i))
            for i, (token, at) in enumerate(zip(encoded.input_ids, encoded.position_ids.T.tolist(), strict=True))
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
    batches = split_into_microbatches(examples, most_tokens, prefix_sharing=share)
    assert distance(batches, examples) < TOLERANCE
    assert all(len(batch.input_ids) <= most_tokens or len(batch.examples) == 1 for batch in batches)
    wanted = np.concatenate([encoded.labels[encoded.labels != IGNORE_INDEX] for encoded in examples])
    np.testing.assert_array_equal(np.concatenate([batch.targets for batch in batches]), wanted)
    assert sum(float(batch.label_weights.sum(dtype=np.float64)) for batch in batches) == pytest.approx(1, abs=1e-6)
    assert sum((batch.examples for batch in batches), ()) == tuple(encoded.example for encoded in examples)


@given(step=STEPS, share=st.sampled_from(SHARES))
def test_behind_a_row_are_all_that_hang_on_it(step: list[Runs], share: Share) -> None:
    examples = [said(*runs) for runs in step]
    batch = pack(examples, 1, prefix_sharing=share)
    rows = np.arange(len(batch.input_ids))
    assert (batch.visible_until > rows).all()
    assert batch.visible_until.max() == len(rows)
    for row, end in zip(rows, batch.visible_until, strict=True):
        assert (batch.visible_until[row:end] <= end).all()  # what hangs on a row ends before the row does
    if share == "none":
        assert (np.diff(batch.visible_until) >= 0).all()
        assert len(np.unique(batch.visible_until)) == len(examples)


@given(step=STEPS)
def test_a_tree_has_every_beginning_once(step: list[Runs]) -> None:
    examples = [said(*runs) for runs in step]
    batch = pack(examples, 1, prefix_sharing="tree")
    assert len(batch.input_ids) == beginnings(examples)
    assert set(batch.visible_until - 1) <= set(batch.label_indices)  # no row is there for nothing


def rows(share: Share, *examples: Encoded) -> int:
    batch = pack(examples, 1, prefix_sharing=share)
    assert distance([batch], examples) < TOLERANCE
    return len(batch.input_ids)


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
        batch = pack(examples, 1, prefix_sharing="tree")
        assert len(batch.targets) == sum(encoded.num_labels for encoded in examples)
    assert set(pack((long, short), 1, prefix_sharing="tree").visible_until) == {rows("none", long)}


def test_turns_of_text_alone_share_their_beginning() -> None:
    assert (
        rows("tree", said("hello", "!a", "and", "!b"), said("hello", "!a", "or", "!c"), said("ho", "!a")) == 9 + 2 + 1
    )


def test_a_picture_is_not_another_of_its_shape_nor_itself_in_another() -> None:
    narrow = replace(WIDE, h=2, w=12)
    assert WIDE.num_tokens == OTHER.num_tokens == narrow.num_tokens
    for other in (OTHER, narrow):
        assert rows("tree", said("s", WIDE, "a", "!b"), said("s", other, "a", "!b")) == 1 + 2 * 7
    assert rows("tree", said("s", SMALL, SMALL, "!b"), said("s", SMALL, "!b")) == 3


def test_the_same_token_elsewhere_is_another_row() -> None:
    example = said("sys", "ask", "!ab")
    moved = replace(example, positions=example.position_ids + (np.arange(len(example.input_ids)) >= 2).astype(np.int32))
    assert rows("tree", example, moved) == 2 + 2 * 5


def test_a_pass_holds_more_where_more_is_shared() -> None:
    captions = [said("sys", WIDE, "ask", f"!{letter}bc") for letter in "pqrstu"]
    assert [len(b.examples) for b in split_into_microbatches(captions, 28, prefix_sharing="none")] == [2, 2, 2]
    assert [len(b.examples) for b in split_into_microbatches(captions, 24, prefix_sharing="tree")] == [6]
    assert [len(b.examples) for b in split_into_microbatches(captions, 23, prefix_sharing="tree")] == [5, 1]


def test_a_tree_is_walked_through_whatever_came_first() -> None:
    tree = PrefixTree("tree")
    assert all(tree.try_add(said("sys", answer)) for answer in ("!abcd", "!xyz", "!abxy", "!abxz"))
    assert (tree.order, tree.shared_lengths) == ([0, 2, 3, 1], [0, 5, 6, 3])
    assert not tree.try_add(said("sys", "!q", "!q"), tree.num_tokens)
    assert tree.try_add(said("sys", "!abc"), tree.num_tokens)
    assert (tree.order, tree.shared_lengths) == ([4, 0, 2, 3, 1], [0, 5, 5, 6, 3])
    assert (len(tree.examples), tree.num_tokens, sum(tree.used_lengths)) == (5, 6 + 2 + 1, 6 + 5 + 6 + 6 + 5)
    apart = PrefixTree("none")
    assert all(apart.try_add(said("sys", answer)) for answer in ("!b", "!a", "!b"))
    assert (apart.order, apart.shared_lengths) == ([0, 1, 2], [0, 0, 0])


def sibling(batch: PackedBatch) -> PackedBatch:
    """The second caption sees the last row of the first."""
    first = batch.visible_until.min()
    return replace(
        batch, ends=np.where(np.arange(len(batch.visible_until)) == first - 1, first + 2, batch.visible_until)
    )


def orphan(batch: PackedBatch) -> PackedBatch:
    """A beginning is seen by the first caption alone."""
    own = np.arange(1, len(batch.visible_until) + 1, dtype=np.int32)
    return replace(batch, ends=np.maximum(np.minimum(batch.visible_until, batch.visible_until.min()), own))


def stranger(batch: PackedBatch) -> PackedBatch:
    """The second picture's captions see the first picture."""
    return replace(
        batch,
        ends=np.where(np.arange(len(batch.visible_until)) < 9, len(batch.visible_until), batch.visible_until).astype(
            np.int32
        ),
    )


def late(batch: PackedBatch) -> PackedBatch:
    """Positions of the second caption go on from the first."""
    moved = batch.position_ids.copy()
    moved[:, batch.visible_until.min() : batch.visible_until.min() + 2] += 2
    return replace(batch, positions=moved)


def swapped(batch: PackedBatch) -> PackedBatch:
    """A caption's first token is predicted from the end of another caption."""
    moved = batch.label_indices.copy()
    moved[3] = batch.visible_until.min() - 1
    return replace(batch, label_rows=moved)


@pytest.mark.parametrize("broken", [sibling, orphan, stranger, late, swapped])
def test_the_comparison_can_fail(broken: Callable[[PackedBatch], PackedBatch]) -> None:
    examples = [said("sys", grid, "ask", answer) for grid in (WIDE, OTHER) for answer in ("!abc", "!xyz")]
    batch = pack(examples, 1, prefix_sharing="tree")
    assert len(np.unique(batch.visible_until)) == 4
    assert distance([batch], examples) < TOLERANCE
    assert distance([broken(batch)], examples) > 1e6 * TOLERANCE
