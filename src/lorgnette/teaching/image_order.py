"""Which image is shown next, and the suggestions that wait to be shown.

The order is shuffled, after a few images that lie far from each other. An image whose suggestion is the least sure can
be every second one; which images these are taken from does not depend on the sureties, so that the other half stays a
fair sample. Shapes: N images, C channels of a feature.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from lorgnette.teaching.events import Pick

NUM_SPREAD = 4
"""Images that are far from each other, with the first; then the order is shuffled."""
MAX_QUEUED = 8
"""Images that wait with their suggestions."""
LOW_QUEUE = 4
"""With so few suggestions in hand, more are made."""


def shuffle(numbers: Sequence[int], seed: int, purpose: str = "") -> list[int]:
    """The numbers in an order that seed and purpose determine."""
    shuffled = list(numbers)
    random.Random(f"{purpose}{seed}").shuffle(shuffled)
    return shuffled


@dataclass(eq=False, slots=True)
class QueuedImage:
    """text: of its suggestion; None: not made yet. round: of the model that made it. has_failed: none can be made."""

    image: int
    pick: Pick
    text: str | None = None
    surety: float | None = None
    round: int | None = None
    has_failed: bool = False


class ImageQueue:
    """items: the images that wait, in the order in which they were drawn. broken: images that need no suggestion.
    means: of the images' features, once they are known."""

    def __init__(self, num_images: int, seed: int, broken: Collection[int], *, use_hardest: bool) -> None:
        """use_hardest: every second image is the one whose suggestion is least sure."""
        self.items: list[QueuedImage] = []
        self.broken = broken
        self.means: Float32[np.ndarray, "N C"] | None = None
        self._order, self._use_hardest = shuffle(range(num_images), seed), use_hardest

    @property
    def num_ready(self) -> int:
        """Suggestions in hand."""
        return sum(item.text is not None for item in self.items)

    def peek(self, used: Collection[int]) -> QueuedImage | None:
        """The next image; None if there is no other. used: those that were shown, or are answered."""
        self.items = [item for item in self.items if item.image not in used]
        if not self.items:
            return self._draw(used)
        is_second = self._use_hardest and len(used) >= NUM_SPREAD and len(used) % 2 == 1
        hardest = [item for item in self.items if item.pick == "hardest" and item.surety is not None]
        if is_second and hardest:
            return min(hardest, key=lambda item: item.surety or 0.0)
        return next((item for item in self.items if item.pick != "hardest"), self.items[0])

    def fill(self, used: Collection[int]) -> list[int]:
        """Draw images until MAX_QUEUED wait. Returns those that lack a suggestion."""
        self.items = [item for item in self.items if item.image not in used]
        while len(self.items) < MAX_QUEUED and (item := self._draw(used)) is not None:
            self.items.append(item)
        return [
            item.image for item in self.items
            if item.text is None and not item.has_failed and item.image not in self.broken
        ]  # fmt: skip

    def receive(self, image: int, text: str, surety: float, round: int) -> None:
        """Keep the suggestion, if the image still waits."""
        for item in self.items:
            if item.image == image:
                item.text, item.surety, item.round = text, surety, round

    def refuse(self, image: int) -> None:
        """There will be no suggestion for this image."""
        for item in self.items:
            item.has_failed = item.has_failed or item.image == image

    def discard_texts(self) -> None:
        """The suggestions are to be made anew. The images stay."""
        self.items = [QueuedImage(item.image, item.pick, has_failed=item.has_failed) for item in self.items]

    def _draw(self, used: Collection[int]) -> QueuedImage | None:
        """The image behind those that wait."""
        queued = [item.image for item in self.items]
        free = (image for image in self._order if image not in used and image not in queued)
        chosen = [*used, *queued]
        if self.means is not None and 0 < len(chosen) < NUM_SPREAD:
            candidates = [image for image in free if image not in self.broken]
            if candidates:
                return QueuedImage(find_farthest(self.means, chosen, candidates), "spread")
        image = next((image for image in self._order if image not in used and image not in queued), None)
        is_second = self._use_hardest and len(chosen) % 2 == 1
        return None if image is None else QueuedImage(image, "hardest" if is_second else "shuffled")


def find_farthest(means: Float32[np.ndarray, "N C"], chosen: Sequence[int], candidates: Sequence[int]) -> int:
    """The candidate whose nearest chosen image is farthest away; among equals the first. One step of k-centre.

    means: of each image's features. They are compared by direction, from the mean of all images here. There is a
    candidate, and one image is chosen. Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, 1985.
    """
    numbers = [*chosen, *candidates]
    vectors = means[numbers] - means[numbers].mean(0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarities = vectors[len(chosen) :] @ vectors[: len(chosen)].T
    return candidates[int(similarities.max(axis=1).argmin())]
