"""The demo's metric: how many answers state the facts of the drawn scenes, counted before and after training.

The reference caption states all facts of its scene, so references alone suffice: a resumed run has the same scores.
"""

from collections.abc import Sequence
from operator import attrgetter, contains, eq

from lorgnette.demo.captions import Facts
from lorgnette.metrics.report import SCORE_TABLES
from lorgnette.metrics.score import ScoreRow
from lorgnette.types import PredictionRow


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

    def build_row(name: str, num_before: int, num_after: int) -> ScoreRow:
        total = len(rows)
        return ScoreRow(name, f"{num_before} of {total}", f"{num_after} of {total}", is_better=num_after > num_before)

    def count_facts(name: str, *fields: str) -> ScoreRow:
        select = attrgetter(*fields)
        expected = list(map(select, references))
        return build_row(name, *(sum(map(eq, map(select, facts), expected)) for facts in (facts_before, facts_after)))

    num_exact = (sum(map(contains, [row.references for row in rows], answers)) for answers in (before, after))
    mean_words = [sum(len(text.split()) for text in answers) / len(rows) for answers in (before, after)]
    return [
        count_facts("both objects right", "kinds"),
        count_facts("both colors right", "colors"),
        count_facts("relation right", "relations"),
        count_facts("all three right", "kinds", "colors", "relations"),
        build_row("exact match", *num_exact),
        ScoreRow("words per answer", f"{mean_words[0]:.0f}", f"{mean_words[1]:.0f}"),
    ]
