"""What is said of a scene, short and long, and whether what was said is right.

Knows nothing about pictures' pixels or models. The long description is the untuned model's manner, the short caption
is what `lorgnette demo` tunes it to; both are read back by one reader, `Stated.read`, so that a text counts as right
by the facts it states and never by its wording.
"""

import random
import re
from dataclasses import dataclass

from lorgnette.demo import wording
from lorgnette.demo.scenes import OPPOSITE, Relation, Scene, Thing
from lorgnette.demo.shapes import COLORS, KINDS

RELATION_PHRASES: dict[Relation, str] = {
    "left of": "to the left of",
    "right of": "to the right of",
    "above": "above",
    "below": "below",
}


def write_caption(scene: Scene) -> str:
    """One short sentence, always the same for the same scene: "A small red car to the left of a big green tree."

    The smaller thing comes first; of two equally big ones the left one, or the upper one. So a picture alone settles
    the words, and a reference never differs from a right answer by mere taste.
    """
    first, second, relation = scene.first, scene.second, scene.relation
    same, reading_order = first.size == second.size, relation in ("left of", "above")
    if (same and not reading_order) or (not same and first.size == "big"):
        first, second, relation = second, first, OPPOSITE[relation]
    return f"A {_format_thing(first)} {RELATION_PHRASES[relation]} a {_format_thing(second)}."


def write_description(scene: Scene, rng: random.Random) -> str:
    """Several sentences, 45 to 80 words, the way a chat model describes a picture when nobody told it to be brief.

    States everything `caption` states, and the background, at least once; which thing comes first, the sentences and
    their order are drawn from rng.
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
    fewest = rng.randint(wording.NUM_WORDS[0], wording.NUM_WORDS[0] + 15)
    for remark in remarks:
        if len(text.split()) >= fewest:
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
        shown = f"{thing.color} {thing.kind}" if rng.random() < 0.3 else thing.kind
        blanks |= {name: f"a {_format_thing(thing)}", name.upper(): f"A {_format_thing(thing)}"}
        blanks |= {f"the_{name}": f"the {shown}", f"The_{name}": f"The {shown}"}
        blanks |= {f"kind_{name}": thing.kind, f"colour_{name}": thing.color, f"size_{name}": thing.size}
    return blanks


def _format_thing(thing: Thing) -> str:
    return f"{thing.size} {thing.color} {thing.kind}"


_KIND = f"(?P<kind>{'|'.join(KINDS)})"
_ADJECTIVE = f"(?:{'|'.join([*COLORS, 'small', 'big'])})"
_NAMED = re.compile(rf"\b(?P<said>(?:{_ADJECTIVE} )*){_KIND}\b")
_IS = re.compile(rf"\b{_KIND} is (?P<said>{_ADJECTIVE}(?: and {_ADJECTIVE})*)\b")
_WHERE = re.compile(r"\b(?:(?P<side>left|right) of|(?P<level>above|below))\b")
_RELATION: dict[str, Relation] = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_PLACE = re.compile(rf"\b(?:{'|'.join(wording.KEY_WORDS.values())})\b")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that a text states. Contradictions stay in: a text that says both is wrong about it.

    colours, sizes: (kind, word). relations: (kind, relation, kind), each written from both ends.
    """

    kinds: frozenset[str]
    colors: frozenset[tuple[str, str]]
    sizes: frozenset[tuple[str, str]]
    relations: frozenset[tuple[str, str, str]]
    backgrounds: frozenset[str]

    @classmethod
    def from_text(cls, text: str) -> "Facts":
        text = " ".join(text.lower().split())
        said: set[tuple[str, str]] = set()
        for pattern in (_NAMED, _IS):
            for found in pattern.finditer(text):
                said |= {(found["kind"], word) for word in found["said"].split() if word != "and"}
        keys = {word: name for name, word in wording.KEY_WORDS.items()}
        return cls(
            kinds=frozenset(found["kind"] for found in _NAMED.finditer(text)),
            colors=frozenset(pair for pair in said if pair[1] in COLORS),
            sizes=frozenset(pair for pair in said if pair[1] not in COLORS),
            relations=frozenset(fact for sentence in re.split(r"[.;!?]", text) for fact in _read_relations(sentence)),
            backgrounds=frozenset(keys[word] for word in _PLACE.findall(text)),
        )

    @classmethod
    def from_scene(cls, scene: Scene) -> "Facts":
        a, b, relation = scene.first, scene.second, scene.relation
        return cls(
            kinds=frozenset({a.kind, b.kind}),
            colors=frozenset({(a.kind, a.color), (b.kind, b.color)}),
            sizes=frozenset({(a.kind, a.size), (b.kind, b.size)}),
            relations=frozenset({(a.kind, relation, b.kind), (b.kind, OPPOSITE[relation], a.kind)}),
            backgrounds=frozenset({scene.background}),
        )


def _read_relations(sentence: str) -> list[tuple[str, str, str]]:
    """Facts of "A … left of … B" and of the fronted "left of B there is A"; none where an end is missing."""
    facts: list[tuple[str, str, str]] = []
    for found in _WHERE.finditer(sentence):
        relation = _RELATION[found["side"] or found["level"]]
        before = [kind["kind"] for kind in _NAMED.finditer(sentence[: found.start()])]
        after = [kind["kind"] for kind in _NAMED.finditer(sentence[found.end() :])]
        if before and after:
            one, other = before[-1], after[0]
        elif len(after) > 1:
            one, other = after[1], after[0]
        else:
            continue
        facts += [(one, relation, other), (other, OPPOSITE[relation], one)]
    return facts


@dataclass(frozen=True, slots=True)
class FactCheck:
    """What a short caption got right: both objects, the colour of each, how they stand to each other."""

    has_objects: bool
    has_colors: bool
    has_relation: bool

    @property
    def is_correct(self) -> bool:
        return self.has_objects and self.has_colors and self.has_relation


@dataclass(frozen=True, slots=True)
class FullFactCheck(FactCheck):
    """The same for a long description, which also states sizes and the background."""

    has_sizes: bool
    has_background: bool

    @property
    def is_complete(self) -> bool:
        return self.is_correct and self.has_sizes and self.has_background


def check_caption(text: str, scene: Scene) -> FactCheck:
    """Right if it states the two things, both colours and the relation, from either end, and nothing against them."""
    said, true = Facts.from_text(text), Facts.from_scene(scene)
    return FactCheck(said.kinds == true.kinds, said.colors == true.colors, said.relations == true.relations)


def check_description(text: str, scene: Scene) -> FullFactCheck:
    said, true = Facts.from_text(text), Facts.from_scene(scene)
    short = check_caption(text, scene)
    return FullFactCheck(
        short.has_objects,
        short.has_colors,
        short.has_relation,
        has_sizes=said.sizes == true.sizes,
        has_background=said.backgrounds == true.backgrounds,
    )
