"""The demo's metric: how many answers state the facts of the drawn scenes, counted before and after training.

The reference caption states all facts of its scene, so references alone suffice: a resumed run has the same scores.
"""

from collections.abc import Callable, Sequence

from lorgnette.demo.captions import Facts
from lorgnette.metrics.score import ScoreRow
from lorgnette.types import PredictionRow


def score_facts(rows: Sequence[PredictionRow]) -> list[ScoreRow]:
    """Counts of correct facts and exact matches, and words per answer. Empty for data other than the demo's."""
    rows = [row for row in rows if len(Facts.from_text(row.references[0]).kinds) == 2]
    if not rows:
        return []
    references = [Facts.from_text(row.references[0]) for row in rows]
    before, after = [row.base or "" for row in rows], [row.tuned or "" for row in rows]
    facts_before, facts_after = ([Facts.from_text(text) for text in answers] for answers in (before, after))

    def build_count_row(name: str, num_before: int, num_after: int) -> ScoreRow:
        total = len(rows)
        return ScoreRow(name, f"{num_before} of {total}", f"{num_after} of {total}", is_better=num_after > num_before)

    def count_facts(name: str, is_correct: Callable[[Facts, Facts], bool]) -> ScoreRow:
        return build_count_row(
            name, *(sum(map(is_correct, facts, references)) for facts in (facts_before, facts_after))
        )

    num_exact = [
        sum(text in row.references for row, text in zip(rows, answers, strict=True)) for answers in (before, after)
    ]
    mean_words = [sum(len(text.split()) for text in answers) / len(rows) for answers in (before, after)]
    return [
        count_facts("both objects right", lambda a, b: a.kinds == b.kinds),
        count_facts("both colors right", lambda a, b: a.colors == b.colors),
        count_facts("relation right", lambda a, b: a.relations == b.relations),
        count_facts(
            "all three right", lambda a, b: (a.kinds, a.colors, a.relations) == (b.kinds, b.colors, b.relations)
        ),
        build_count_row("exact match", *num_exact),
        ScoreRow("words per answer", f"{mean_words[0]:.0f}", f"{mean_words[1]:.0f}"),
    ]
