"""The demo's metric: how many answers state the facts of the drawn scenes, counted before and after training.

The reference caption states all facts of its scene, so references alone suffice: a resumed run has the same scores.
"""

from collections.abc import Iterable, Sequence
from operator import attrgetter, contains, eq

import numpy as np

from lorgnette.demo.captions import Facts
from lorgnette.metrics.bootstrap import compare_tallies
from lorgnette.metrics.report import SCORE_TABLES, classify_difference, format_difference
from lorgnette.metrics.score import ScoreRow, tally_mean
from lorgnette.types import PredictionRow

MAX_CAPTION_WORDS = 16
"""Words of the longest caption that captions.py writes."""


def register_facts_metric() -> None:
    """Let predict.metrics=demo score the facts of the drawn scenes. `train` calls it for any run with that setting."""
    SCORE_TABLES["demo"] = score_facts


def score_facts(rows: Sequence[PredictionRow]) -> list[ScoreRow]:
    """Counts of correct facts and exact matches, and words per answer. Empty for data other than the demo's."""
    rows = [row for row in rows if len(Facts.from_text(row.references[0]).kinds) == 2]
    if not rows:
        return []
    references = [Facts.from_text(row.references[0]) for row in rows]
    before, after = [row.base or "" for row in rows], [row.tuned or "" for row in rows]
    facts_before, facts_after = ([Facts.from_text(text) for text in answers] for answers in (before, after))

    total = len(rows)

    def count(name: str, description: str, flags: Sequence[Iterable[bool]]) -> ScoreRow:
        """flags: of every answer before, and after."""
        first, second = (tally_mean(np.array(list(part), np.float64)) for part in flags)
        difference = compare_tallies(name, first, second)
        before, after = (f"{tally.per_example.sum():.0f} of {total}" for tally in (first, second))
        text = format_difference(difference, scale=total, digits=0)
        return ScoreRow(name, before, after, classify_difference(difference), "", text, description)

    def count_facts(name: str, description: str, *fields: str) -> ScoreRow:
        select = attrgetter(*fields)
        expected = list(map(select, references))
        return count(
            name, description, [map(eq, map(select, facts), expected) for facts in (facts_before, facts_after)]
        )

    num_words = [[len(text.split()) for text in answers] for answers in (before, after)]
    words_before, words_after = (tally_mean(np.array(numbers, np.float64)) for numbers in num_words)
    longer = format_difference(compare_tallies("words per answer", words_before, words_after), digits=0)
    is_exact = [map(contains, [row.references for row in rows], answers) for answers in (before, after)]
    is_short = [[0 < number <= MAX_CAPTION_WORDS for number in numbers] for numbers in num_words]
    return [
        count_facts("both objects right", "the answer names the two objects", "kinds"),
        count_facts("both colors right", "and their colors", "colors"),
        count_facts("relation right", "and where one is, seen from the other", "relations"),
        count_facts("all three right", "objects, colors and relation", "kinds", "colors", "relations"),
        count("short caption", f"at most {MAX_CAPTION_WORDS} words, as the references are", is_short),
        count("exact match", "the answer equals the reference, word for word", is_exact),
        ScoreRow(
            "words per answer", f"{words_before.value:.0f}", f"{words_after.value:.0f}", difference=longer,
            description="shorter is not better in itself; the references are short",
        ),
    ]  # fmt: skip
