"""Short captions of scenes, and the facts that a text states about a scene.

Knows nothing about pixels or models. `lorgnette demo` trains the model on these captions; an answer is correct by the
facts it states, never by its wording.
"""

import re
from dataclasses import dataclass

from lorgnette.demo.scenes import OPPOSITE, Scene, Thing
from lorgnette.demo.shapes import COLORS, KINDS

RELATION_PHRASES = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def write_caption(scene: Scene) -> str:
    """Return the scene's one caption: "A small red car to the left of a big green tree."

    The smaller thing comes first; of two equally large ones the left or upper one. So the image alone determines the
    words, and a correct answer equals the reference.
    """
    first, second, relation = scene.first, scene.second, scene.relation
    is_same_size, is_reading_order = first.size == second.size, relation in ("left of", "above")
    if (is_same_size and not is_reading_order) or (not is_same_size and first.size == "big"):
        first, second, relation = second, first, OPPOSITE[relation]
    return f"A {format_thing(first)} {RELATION_PHRASES[relation]} a {format_thing(second)}."


def format_thing(thing: Thing) -> str:
    """Return "small red car"."""
    return f"{thing.size} {thing.color} {thing.kind}"


_KIND = f"(?P<kind>{'|'.join(KINDS)})"
_ADJECTIVE = f"(?:{'|'.join([*COLORS, 'small', 'big'])})"
_ADJECTIVES_KIND = re.compile(rf"\b(?P<adjectives>(?:{_ADJECTIVE} )*){_KIND}\b")
_KIND_IS_ADJECTIVES = re.compile(rf"\b{_KIND} is (?P<adjectives>{_ADJECTIVE}(?: and {_ADJECTIVE})*)\b")


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that a text states, contradictions included: a text that states both is wrong about it.

    colors, sizes: (kind, word). relations: (kind, relation, kind), in both directions.
    """

    kinds: frozenset[str]
    colors: frozenset[tuple[str, str]]
    sizes: frozenset[tuple[str, str]]
    relations: frozenset[tuple[str, str, str]]

    @classmethod
    def from_text(cls, text: str) -> "Facts":
        text = " ".join(text.lower().split())
        pairs: set[tuple[str, str]] = set()
        for pattern in (_ADJECTIVES_KIND, _KIND_IS_ADJECTIVES):
            for match in pattern.finditer(text):
                pairs |= {(match["kind"], word) for word in match["adjectives"].split() if word != "and"}
        return cls(
            kinds=frozenset(match["kind"] for match in _ADJECTIVES_KIND.finditer(text)),
            colors=frozenset(pair for pair in pairs if pair[1] in COLORS),
            sizes=frozenset(pair for pair in pairs if pair[1] not in COLORS),
            relations=frozenset(fact for sentence in re.split(r"[.;!?]", text) for fact in _read_relations(sentence)),
        )

    @classmethod
    def from_scene(cls, scene: Scene) -> "Facts":
        a, b, relation = scene.first, scene.second, scene.relation
        return cls(
            kinds=frozenset({a.kind, b.kind}),
            colors=frozenset({(a.kind, a.color), (b.kind, b.color)}),
            sizes=frozenset({(a.kind, a.size), (b.kind, b.size)}),
            relations=frozenset({(a.kind, relation, b.kind), (b.kind, OPPOSITE[relation], a.kind)}),
        )


def _read_relations(sentence: str) -> list[tuple[str, str, str]]:
    """Read "A … left of … B" and the fronted "left of B there is A"; skip a relation without two kinds."""
    facts: list[tuple[str, str, str]] = []
    for relation, match in ((name, match) for name in OPPOSITE for match in re.finditer(rf"\b{name}\b", sentence)):
        kinds_before = [kind["kind"] for kind in _ADJECTIVES_KIND.finditer(sentence[: match.start()])]
        kinds_after = [kind["kind"] for kind in _ADJECTIVES_KIND.finditer(sentence[match.end() :])]
        if kinds_after and (kinds_before or len(kinds_after) > 1):
            a, b = kinds_before[-1] if kinds_before else kinds_after[1], kinds_after[0]
            facts += [(a, relation, b), (b, OPPOSITE[relation], a)]
    return facts
