"""A packed prefix tree computes for each example what it computes alone.

A small causal model in fp64 is the reference; negative controls show that any error in the packed batch changes it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.models.qwen2_vl.positions import compute_position_ids
from lorgnette.processing.packing import pack, split_into_microbatches
from lorgnette.processing.prefix_tree import PrefixTree
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid, PackedBatch

IMAGE = 0
WIDTH, HEADS, LAYERS, VOCABULARY = 16, 2, 3, 128
TOLERANCE = 1e-10
WIDE, HIGH, SMALL = (ImageGrid(Image(Path(f"{h}.png")), 1, h, w, 2) for h, w in ((4, 6), (6, 4), (2, 2)))
OTHER = ImageGrid(Image(Path("other.png")), 1, 4, 6, 2)
Runs = Sequence[str | ImageGrid]


def build_encoded(*runs: str | ImageGrid) -> Encoded:
    """build_encoded("ask", WIDE, "!answer"): letters are tokens; behind an exclamation mark they are labels."""
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


class CausalModel:
    """Layers of causal attention with rotary positions and MLPs; random weights."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.embedding = rng.normal(size=(VOCABULARY, WIDTH))
        self.layers = rng.normal(size=(LAYERS, 6, WIDTH, WIDTH)) / np.sqrt(WIDTH)
        self.head = rng.normal(size=(WIDTH, VOCABULARY))
        self.frequencies = rng.uniform(0.1, 1, size=(3, WIDTH // HEADS // 2))

    def features(self, grids: Sequence[ImageGrid]) -> np.ndarray:
        seeds = [sum(f"{grid.image.path}{grid.h}".encode()) for grid in grids]
        drawn = [
            np.random.default_rng(seed).normal(size=(grid.num_tokens, WIDTH))
            for seed, grid in zip(seeds, grids, strict=True)
        ]
        return np.concatenate([*drawn, np.empty((0, WIDTH))])

    def losses(self, x: np.ndarray, at: np.ndarray, ends: np.ndarray, rows: np.ndarray, to: np.ndarray) -> np.ndarray:
        """Cross-entropy of targets `to` at `rows`. Key k is visible to queries k ≤ q < ends[k]."""
        every = np.arange(len(x))
        visible = (every <= every[:, None]) & (every[:, None] < ends)
        angles = np.einsum("pt,pf->tf", at, self.frequencies)[:, None]
        for q, k, v, o, up, down in self.layers:
            query, key = (self._rotate((x @ w).reshape(len(x), HEADS, -1), angles) for w in (q, k))
            value = (x @ v).reshape(len(x), HEADS, -1)
            scores = np.einsum("qhc,khc->hqk", query, key)
            weights = np.exp(np.where(visible, scores - scores.max(-1, keepdims=True), -np.inf))
            weights /= weights.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khc->qhc", weights, value).reshape(x.shape) @ o
            x = x + np.tanh(x @ up) @ down
        logits = x[rows] @ self.head
        most = logits.max(-1)
        return most + np.log(np.exp(logits - most[:, None]).sum(-1)) - logits[np.arange(len(to)), to]

    def compute_alone(self, encoded: Encoded) -> np.ndarray:
        """An example by itself, with all its tokens."""
        x, ends = self.embedding[encoded.input_ids], np.full(len(encoded.input_ids), len(encoded.input_ids))
        x[encoded.input_ids == IMAGE] = self.features(encoded.grids)
        labels = np.flatnonzero(encoded.labels != IGNORE_INDEX)
        return self.losses(x, encoded.position_ids, ends, labels - 1, encoded.input_ids[labels])

    def compute_packed(self, batch: PackedBatch) -> np.ndarray:
        x = self.embedding[batch.input_ids]
        x[batch.image_token_indices] = self.features(batch.grids)[batch.feature_indices]
        return self.losses(x, batch.position_ids, batch.visible_until, batch.label_indices, batch.targets)

    @staticmethod
    def _rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)], -1)


MODEL = CausalModel()


def max_loss_error(batches: Sequence[PackedBatch], examples: Sequence[Encoded]) -> float:
    """The largest difference between packed and separate losses, over all labels."""
    losses = np.concatenate([MODEL.compute_packed(batch) for batch in batches])
    return float(np.abs(losses - np.concatenate([MODEL.compute_alone(encoded) for encoded in examples])).max())


def count_prefixes(examples: Sequence[Encoded]) -> int:
    """The number of different prefixes of the examples, up to the token that predicts their last label."""
    prefixes = set()
    for encoded in examples:
        used_length = int(np.flatnonzero(encoded.labels != IGNORE_INDEX)[-1])
        images = {
            start + i: grid.image
            for grid, start in zip(encoded.grids, encoded.image_starts, strict=True)
            for i in range(grid.num_tokens)
        }
        rows = [
            (int(token), *at, images.get(i))
            for i, (token, at) in enumerate(zip(encoded.input_ids, encoded.position_ids.T.tolist(), strict=True))
        ]
        prefixes |= {tuple(rows[: i + 1]) for i in range(used_length)}
    return len(prefixes)


TEXT = st.text("ab", max_size=3)
PROMPT = st.lists(TEXT | st.sampled_from([WIDE, HIGH, SMALL, OTHER]), max_size=3)
ANSWER = st.text("ab", min_size=1, max_size=4).map(lambda text: "!" + text)
TURNS = st.lists(st.tuples(PROMPT, ANSWER), min_size=1, max_size=2)
RUNS = st.tuples(TURNS, TEXT).map(
    lambda both: ["s", *(run for prompt, answer in both[0] for run in (*prompt, answer)), both[1]]
)
STEPS = st.lists(RUNS, min_size=1, max_size=7)


@given(step=STEPS, prefix_sharing=st.booleans(), max_tokens=st.integers(1, 80))
def test_each_example_is_computed_as_if_alone(step: list[Runs], prefix_sharing: bool, max_tokens: int) -> None:
    examples = [build_encoded(*runs) for runs in step]
    batches = split_into_microbatches(examples, max_tokens, prefix_sharing=prefix_sharing)
    assert max_loss_error(batches, examples) < TOLERANCE
    assert all(len(batch.input_ids) <= max_tokens or len(batch.examples) == 1 for batch in batches)
    expected = np.concatenate([encoded.labels[encoded.labels != IGNORE_INDEX] for encoded in examples])
    np.testing.assert_array_equal(np.concatenate([batch.targets for batch in batches]), expected)
    assert sum(float(batch.label_weights.sum(dtype=np.float64)) for batch in batches) == pytest.approx(1, abs=1e-6)
    assert sum((batch.examples for batch in batches), ()) == tuple(encoded.example for encoded in examples)


@given(step=STEPS, prefix_sharing=st.booleans())
def test_the_packed_row_is_in_depth_first_order(step: list[Runs], prefix_sharing: bool) -> None:
    examples = [build_encoded(*runs) for runs in step]
    batch = pack(examples, 1, prefix_sharing=prefix_sharing)
    rows = np.arange(len(batch.input_ids))
    assert (batch.visible_until > rows).all()
    assert batch.visible_until.max() == len(rows)
    for row, end in zip(rows, batch.visible_until, strict=True):
        assert (batch.visible_until[row:end] <= end).all()  # a subtree ends inside its parent
    if not prefix_sharing:
        assert (np.diff(batch.visible_until) >= 0).all()
        assert len(np.unique(batch.visible_until)) == len(examples)


@given(step=STEPS)
def test_a_tree_stores_every_prefix_once(step: list[Runs]) -> None:
    examples = [build_encoded(*runs) for runs in step]
    batch = pack(examples, 1, prefix_sharing=True)
    assert len(batch.input_ids) == count_prefixes(examples)
    assert set(batch.visible_until - 1) <= set(batch.label_indices)  # every token is used


def count_tokens(prefix_sharing: bool, *examples: Encoded) -> int:
    batch = pack(examples, 1, prefix_sharing=prefix_sharing)
    assert max_loss_error([batch], examples) < TOLERANCE
    return len(batch.input_ids)


def test_captions_of_an_image_share_it() -> None:
    """s s s, 6 image tokens, ask; then 4 tokens of the first answer and the others' own."""
    prefix = ("sys", WIDE, "ask")
    captions = [build_encoded(*prefix, f"!{answer}", "\n") for answer in ("abcd", "abxy", "q", "ab")]
    assert count_tokens(False, *captions) == 12 * 4 + 3 + 3 + 0 + 1
    assert count_tokens(True, *captions) == 12 + 3 + 1
    others = [build_encoded("sys", OTHER, "ask", "!abcd"), build_encoded("sys", HIGH, "ask", "!abcd")]
    assert count_tokens(True, *captions, *others) == 16 + 2 * (6 + 3 + 3)


def test_equal_examples_and_prefixes_add_no_tokens() -> None:
    long = build_encoded("sys", SMALL, "ask", "!abc", "more", "!de")
    short = build_encoded("sys", SMALL, "ask", "!ab")
    for examples in ((long, long, long), (long, short), (short, long), (short, long, short)):
        assert count_tokens(True, *examples) == count_tokens(False, long)
        batch = pack(examples, 1, prefix_sharing=True)
        assert len(batch.targets) == sum(encoded.num_labels for encoded in examples)
    assert set(pack((long, short), 1, prefix_sharing=True).visible_until) == {count_tokens(False, long)}


def test_texts_share_their_prefix() -> None:
    assert (
        count_tokens(
            True,
            build_encoded("hello", "!a", "and", "!b"),
            build_encoded("hello", "!a", "or", "!c"),
            build_encoded("ho", "!a"),
        )
        == 9 + 2 + 1
    )


def test_images_differ_by_file_and_by_shape() -> None:
    narrow = replace(WIDE, h=2, w=12)
    assert WIDE.num_tokens == OTHER.num_tokens == narrow.num_tokens
    for other in (OTHER, narrow):
        assert (
            count_tokens(True, build_encoded("s", WIDE, "a", "!b"), build_encoded("s", other, "a", "!b")) == 1 + 2 * 7
        )
    assert count_tokens(True, build_encoded("s", SMALL, SMALL, "!b"), build_encoded("s", SMALL, "!b")) == 3


def test_equal_tokens_at_other_positions_are_not_shared() -> None:
    example = build_encoded("sys", "ask", "!ab")
    moved = replace(
        example, position_ids=example.position_ids + (np.arange(len(example.input_ids)) >= 2).astype(np.int32)
    )
    assert count_tokens(True, example, moved) == 2 + 2 * 5


def test_a_microbatch_holds_more_examples_if_they_share() -> None:
    captions = [build_encoded("sys", WIDE, "ask", f"!{letter}bc") for letter in "pqrstu"]
    assert [len(b.examples) for b in split_into_microbatches(captions, 28, prefix_sharing=False)] == [2, 2, 2]
    assert [len(b.examples) for b in split_into_microbatches(captions, 24, prefix_sharing=True)] == [6]
    assert [len(b.examples) for b in split_into_microbatches(captions, 23, prefix_sharing=True)] == [5, 1]


def test_the_order_does_not_depend_on_insertion() -> None:
    tree = PrefixTree(True)
    assert all(tree.try_add(build_encoded("sys", answer)) for answer in ("!abcd", "!xyz", "!abxy", "!abxz"))
    assert (tree.order, tree.shared_lengths) == ([0, 2, 3, 1], [0, 5, 6, 3])
    assert not tree.try_add(build_encoded("sys", "!q", "!q"), tree.num_tokens)
    assert tree.try_add(build_encoded("sys", "!abc"), tree.num_tokens)
    assert (tree.order, tree.shared_lengths) == ([4, 0, 2, 3, 1], [0, 5, 5, 6, 3])
    assert (len(tree.examples), tree.num_tokens, sum(tree.used_lengths)) == (5, 6 + 2 + 1, 6 + 5 + 6 + 6 + 5)
    separate = PrefixTree(False)
    assert all(separate.try_add(build_encoded("sys", answer)) for answer in ("!b", "!a", "!b"))
    assert (separate.order, separate.shared_lengths) == ([0, 1, 2], [0, 0, 0])


def see_sibling(batch: PackedBatch) -> PackedBatch:
    """The second caption sees the last token of the first."""
    first = batch.visible_until.min()
    return replace(
        batch, visible_until=np.where(np.arange(len(batch.visible_until)) == first - 1, first + 2, batch.visible_until)
    )


def hide_prefix(batch: PackedBatch) -> PackedBatch:
    """Only the first caption sees the prefix."""
    own = np.arange(1, len(batch.visible_until) + 1, dtype=np.int32)
    return replace(batch, visible_until=np.maximum(np.minimum(batch.visible_until, batch.visible_until.min()), own))


def see_other_image(batch: PackedBatch) -> PackedBatch:
    """The second image's captions see the first image."""
    return replace(
        batch,
        visible_until=np.where(
            np.arange(len(batch.visible_until)) < 9, len(batch.visible_until), batch.visible_until
        ).astype(np.int32),
    )


def shift_positions(batch: PackedBatch) -> PackedBatch:
    """The second caption's positions continue those of the first."""
    moved = batch.position_ids.copy()
    moved[:, batch.visible_until.min() : batch.visible_until.min() + 2] += 2
    return replace(batch, position_ids=moved)


def swap_labels(batch: PackedBatch) -> PackedBatch:
    """A caption's first token is predicted by the end of another caption."""
    moved = batch.label_indices.copy()
    moved[3] = batch.visible_until.min() - 1
    return replace(batch, label_indices=moved)


@pytest.mark.parametrize("corrupt", [see_sibling, hide_prefix, see_other_image, shift_positions, swap_labels])
def test_an_error_in_the_batch_shows(corrupt: Callable[[PackedBatch], PackedBatch]) -> None:
    examples = [build_encoded("sys", grid, "ask", answer) for grid in (WIDE, OTHER) for answer in ("!abc", "!xyz")]
    batch = pack(examples, 1, prefix_sharing=True)
    assert len(np.unique(batch.visible_until)) == 4
    assert max_loss_error([batch], examples) < TOLERANCE
    assert max_loss_error([corrupt(batch)], examples) > 1e6 * TOLERANCE


def list_dropout_keys(batch: PackedBatch, examples: Sequence[Encoded]) -> list[list[int]]:
    """Each example's keys in order: its tokens are those that its last label sees."""
    index, ends = np.arange(len(batch.input_ids)), np.cumsum([encoded.num_labels for encoded in examples])
    return [
        batch.dropout_keys[(index <= last) & (last < batch.visible_until)].tolist()
        for last in batch.label_indices[ends - 1]
    ]


@given(step=STEPS, max_tokens=st.integers(1, 60), prefix_sharing=st.booleans(), processes=st.integers(1, 3))
def test_a_token_has_one_dropout_key_however_the_step_is_split(
    step: list[list[str | ImageGrid]], max_tokens: int, prefix_sharing: bool, processes: int
) -> None:
    examples = [build_encoded(*runs) for runs in step]
    whole = pack(examples, 1, prefix_sharing=prefix_sharing, step_key=5)
    expected = list_dropout_keys(whole, examples)
    for process in range(processes):
        places = range(process, len(examples), processes)
        left = iter(places)
        for batch in split_into_microbatches(
            examples, max_tokens, prefix_sharing=prefix_sharing, step_key=5, places=places
        ):
            own = [next(left) for _ in batch.examples]
            assert list_dropout_keys(batch, [examples[place] for place in own]) == [expected[place] for place in own]
        assert not list(left)
    # Tokens that are not shared have different keys, and another step has others.
    assert len(np.unique(whole.dropout_keys)) == len(whole.input_ids)
    assert not np.isin(
        pack(examples, 1, prefix_sharing=prefix_sharing, step_key=6).dropout_keys, whole.dropout_keys
    ).any()


def test_with_prefix_sharing_equal_paths_alone_have_equal_dropout_keys() -> None:
    """The same tokens after another image, or at another place, have other masks; without sharing all have."""
    examples = [build_encoded("s", *images, "ab", "!c") for images in ([WIDE], [WIDE], [OTHER], [SMALL, WIDE])]
    first, same, other, later = list_dropout_keys(pack(examples, 1, prefix_sharing=True), examples)
    assert first == same
    assert first[0] == other[0] == later[0]
    assert not {*first[1:]} & {*other[1:]}
    assert not {*first[1:]} & {*later[1:]}
    separate = list_dropout_keys(pack(examples, 1), examples)
    assert len({key for keys in separate for key in keys}) == sum(map(len, separate))
