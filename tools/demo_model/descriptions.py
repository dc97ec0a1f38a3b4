"""Long descriptions of a scene, as an untuned chat model writes them, and the check of a generated one.

Knows nothing about pixels or models. A text is correct by the facts it states, never by its wording.
"""

import random
import re
from dataclasses import dataclass

from demo_model import wording
from lorgnette.demo.captions import RELATION_PHRASES, Facts, format_thing
from lorgnette.demo.scenes import OPPOSITE, Scene


def write_description(scene: Scene, rng: random.Random) -> str:
    """Write several sentences, 45 to 80 words, that state every fact of the scene at least once.

    rng draws the sentences, their order, and the thing that comes first.
    """
    blanks = _build_blanks(scene, rng)
    if rng.random() < 0.4:
        opener = rng.choice(wording.OPENERS_WITH_BOTH)
        sentences = [] if "{place}" in opener else [rng.choice(wording.PLACINGS)]
        if rng.random() < 0.5:
            sentences.append(rng.choice(wording.RELATIONS))
    else:
        opener = rng.choice(wording.OPENERS_WITH_PLACE)
        whole = rng.random() < 0.75
        introduction = rng.choice(wording.INTRODUCTIONS if whole else wording.INTRODUCTIONS_IN_PARTS)
        sentences = [introduction + " " + rng.choice(wording.RELATIONS)]
    remarks = [rng.choice(wording.DETAILS[scene.background]), *rng.sample(wording.REMARKS, len(wording.REMARKS))]
    if rng.random() < 0.3:
        sentences.insert(rng.randrange(len(sentences) + 1), remarks.pop(0))
    text = " ".join([opener, *sentences]).format(**blanks)
    min_words = rng.randint(wording.NUM_WORDS[0], wording.NUM_WORDS[0] + 15)
    for remark in remarks:
        if len(text.split()) >= min_words:
            break
        text = f"{text} {remark}"
    return text


def _build_blanks(scene: Scene, rng: random.Random) -> dict[str, str]:
    first, second, relation = scene.first, scene.second, scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    blanks = {
        "where": RELATION_PHRASES[relation],
        "back": RELATION_PHRASES[OPPOSITE[relation]],
        "place": rng.choice(wording.PLACES[scene.background]),
        "scene": rng.choice(wording.SCENES),
    }
    for name, thing in (("a", first), ("b", second)):
        short_name = f"{thing.color} {thing.kind}" if rng.random() < 0.3 else thing.kind
        blanks |= {name: f"a {format_thing(thing)}", name.upper(): f"A {format_thing(thing)}"}
        blanks |= {f"the_{name}": f"the {short_name}", f"The_{name}": f"The {short_name}"}
        blanks |= {f"kind_{name}": thing.kind, f"color_{name}": thing.color, f"size_{name}": thing.size}
    return blanks


@dataclass(frozen=True, slots=True)
class FactCheck:
    """Which facts of a scene a description states correctly, without contradicting itself."""

    has_objects: bool
    has_colors: bool
    has_relation: bool
    has_sizes: bool
    has_background: bool

    @property
    def is_correct(self) -> bool:
        """Objects, colors and relation: the facts of a short caption."""
        return self.has_objects and self.has_colors and self.has_relation

    @property
    def is_complete(self) -> bool:
        return self.is_correct and self.has_sizes and self.has_background


def check_description(text: str, scene: Scene) -> FactCheck:
    """Compare the facts that the text states with the scene's."""
    stated, actual = Facts.from_text(text), Facts.from_scene(scene)
    return FactCheck(
        has_objects=stated.kinds == actual.kinds,
        has_colors=stated.colors == actual.colors,
        has_relation=stated.relations == actual.relations,
        has_sizes=stated.sizes == actual.sizes,
        has_background=read_backgrounds(text) == {scene.background},
    )


_KEYWORD = re.compile(rf"\b(?:{'|'.join(wording.KEYWORDS.values())})\b")


def read_backgrounds(text: str) -> set[str]:
    """Return the names of all backgrounds whose keyword occurs in the text."""
    names = {keyword: name for name, keyword in wording.KEYWORDS.items()}
    return {names[keyword] for keyword in _KEYWORD.findall(" ".join(text.lower().split()))}
