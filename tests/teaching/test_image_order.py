"""Which image comes next: far ones first, then a shuffled order, or every second time the least sure."""

import numpy as np
import pytest

from lorgnette.teaching.image_order import MAX_QUEUED, NUM_SPREAD, ImageQueue, find_farthest, shuffle


def show_all(queue: ImageQueue, *, fill: bool = True) -> list[tuple[int, str]]:
    """(image, pick) of all images, as a session shows them."""
    used, shown = set[int](), list[tuple[int, str]]()
    while True:
        if fill:
            for image in queue.fill(used):
                queue.receive(image, "text", -float(image), 0)
        if (item := queue.peek(used)) is None:
            return shown
        assert queue.peek(used) is item or not fill  # looking changes nothing
        used.add(item.image)
        shown.append((item.image, item.pick))


def test_the_order_is_a_function_of_the_seed() -> None:
    assert shuffle(range(50), 3) == shuffle(range(50), 3)
    assert shuffle(range(50), 3) != shuffle(range(50), 4) != shuffle(range(50), 4, "review Zoë ")
    assert sorted(shuffle(range(50), 3)) == list(range(50))


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("use_hardest", [True, False])
def test_every_image_comes_once(fill: bool, use_hardest: bool) -> None:
    queue = ImageQueue(23, 5, {3}, use_hardest=use_hardest)
    queue.means = np.random.default_rng(1).normal(size=(23, 4)).astype(np.float32)
    assert sorted(image for image, _ in show_all(queue, fill=fill)) == list(range(23))


def test_without_features_the_order_is_shuffled() -> None:
    shown = show_all(ImageQueue(12, 5, {}, use_hardest=False))
    assert shown == [(image, "shuffled") for image in shuffle(range(12), 5)]


def test_the_first_four_are_far_from_each_other() -> None:
    """Four groups of images: one of each, and then the order goes on as if they were not."""
    groups = np.repeat(np.eye(4, dtype=np.float32), 10, axis=0)
    means = groups + np.random.default_rng(2).normal(scale=0.01, size=groups.shape).astype(np.float32)
    for seed in range(5):
        queue = ImageQueue(40, seed, {}, use_hardest=False)
        first = queue.peek(set())
        assert first is not None
        assert (first.image, first.pick) == (shuffle(range(40), seed)[0], "shuffled")
        queue.means = means
        shown = show_all(queue)
        assert {image // 10 for image, _ in shown[:NUM_SPREAD]} == {0, 1, 2, 3}
        assert [pick for _, pick in shown] == ["shuffled", *["spread"] * 3, *["shuffled"] * 36]
        chosen = {image for image, _ in shown[:NUM_SPREAD]}
        assert [image for image, _ in shown[NUM_SPREAD:]] == [
            image for image in shuffle(range(40), seed) if image not in chosen
        ]


def test_the_farthest_is_by_direction_and_the_first_of_equals() -> None:
    means = np.array([[1, 0], [2, 0.1], [-3, 0], [-3, 0], [0, 5]], np.float32)
    assert find_farthest(means, [0], [1, 3, 2]) == 3
    assert find_farthest(means, [0], [1, 2, 3]) == 2
    assert find_farthest(np.zeros((3, 2), np.float32), [0], [2, 1]) == 2  # no feature tells them apart


def test_broken_images_are_not_spread_and_need_no_suggestion() -> None:
    queue = ImageQueue(12, 5, set(range(6)), use_hardest=False)
    queue.means = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    used = {shuffle(range(12), 5)[0]}
    missing = queue.fill(used)
    assert all(image >= 6 for image in missing)
    assert {item.image for item in queue.items if item.pick == "spread"} <= set(range(6, 12))
    assert len(queue.items) == MAX_QUEUED


def test_the_least_sure_of_those_in_hand_come_every_second_time() -> None:
    queue = ImageQueue(60, 5, {}, use_hardest=True)
    used, fair = set[int](), list[int]()
    for count in range(40):
        for image in queue.fill(used):
            queue.receive(image, "text", -float(image), 0)
        item = queue.peek(used)
        assert item is not None
        if count >= NUM_SPREAD:
            assert item.pick == ("hardest" if count % 2 else "shuffled")
        if item.pick == "hardest":
            assert item.image == max(other.image for other in queue.items if other.pick == "hardest")
        else:
            fair.append(item.image)
        used.add(item.image)
    # Which images are the fair sample does not depend on the sureties.
    other = ImageQueue(60, 5, {}, use_hardest=True)
    used, same = set(), list[int]()
    for _ in range(40):
        for image in other.fill(used):
            other.receive(image, "text", float(image % 7), 0)
        item = other.peek(used)
        assert item is not None
        same += [item.image] if item.pick != "hardest" else []
        used.add(item.image)
    assert same == fair


def test_texts_are_discarded_and_images_stay() -> None:
    queue = ImageQueue(12, 5, {}, use_hardest=False)
    missing = queue.fill(set())
    for image in missing[:-1]:
        queue.receive(image, "text", -1.0, 0)
    queue.refuse(missing[-1])
    queue.receive(99, "text", -1.0, 0)  # no longer waits
    assert (queue.num_ready, queue.fill(set())) == (7, [])
    queue.discard_texts()
    assert (queue.num_ready, queue.fill(set())) == (0, missing[:-1])
