"""Says in a few sentences which of several candidates answers best, and how sure that is.

    prompts, answers, metrics → judge_candidates → Verdict

As for a training (report/verdict.py), a difference counts only if chance does not explain it. The best candidate is
compared with each of the others on the same questions. A function of its arguments alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorgnette.metrics.box_answers import Boxes
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.metrics.registry import METRICS
from lorgnette.metrics.style import compute_style
from lorgnette.report.verdict import (
    MATCHES,
    MIN_SHOWN_SHARE,
    NOTABLE_LENGTH_RATIO,
    Change,
    Verdict,
    VerdictKind,
    count_images,
    describe_repetition,
    list_doubts,
    list_meanings,
    make_plural,
    measure_changes,
    name_rows,
)
from lorgnette.types import PredictionRow

Changes = tuple[Change, Change | None]
"""(the metric that is 0 or 1 for each answer, the metric that says how close an answer is), best over another."""


@dataclass(frozen=True, slots=True)
class _Ranking:
    """order: the candidates, best first. changes: of the best over each of the others, in their order."""

    order: Sequence[int]
    changes: Sequence[Changes]
    is_match_shown: bool

    @property
    def beaten(self) -> list[int]:
        return [i for i, pair in zip(self.order[1:], self.changes, strict=True) if list_meanings(*pair) >= {"better"}]


def judge_candidates(
    names: Sequence[str],
    prompts: Sequence[EvalPrompt],
    answers: Sequence[Sequence[str]],
    metric_names: Sequence[str],
    *,
    boxes: Sequence[Sequence[Boxes]] = (),
    tuned: Sequence[bool] = (),
    trained_on: Sequence[Sequence[bool]] = (),
) -> tuple[Verdict, int | None]:
    """Judge the answers [candidate][prompt]: the verdict, and the candidate with the highest scores; None without any.

    boxes: those of the answers that are known in pixels. tuned: whether each candidate was fine-tuned. trained_on:
    [candidate][prompt] whether the candidate was trained on the prompt's images; empty if unknown.
    """
    scored = [i for i, prompt in enumerate(prompts) if prompt.references]
    if not scored:
        why = "The questions have no reference, so nothing measures the answers."
        return Verdict("unsure", "Cannot say which is better.", why), None
    rows = [prompts[i].build_row() for i in scored]
    texts = [[own[i] for i in scored] for own in answers]
    total, noun = len(rows), name_rows(rows)
    if all(own == texts[0] for own in texts):
        many = "Both" if len(names) == 2 else f"All {len(names)}"
        return Verdict("unchanged", "No difference.", f"{many} give the same answers to {total} {noun}."), None
    ranking = _rank(rows, texts, [[own[i] for i in scored] for own in boxes], metric_names)
    best, doubts = ranking.order[0], list_doubts(*ranking.changes[0], total, noun, count_images(rows))
    headline, kind = _conclude(names, ranking, total, noun)
    if len(names) > 2 and ranking.beaten:
        closest = names[ranking.order[1]]
        doubts = [f"Beside {closest}: {doubt[0].lower()}{doubt[1:]}" for doubt in doubts]
        doubts.append(f"The best was chosen on these same {noun}, so new ones may show a smaller lead.")
    if kind in ("worked", "helped") and tuned and not tuned[best] and any(tuned[i] for i in ranking.beaten):
        kind = "harm"
    if length := _compare_length(names[best], texts[best], [prompts[i].references for i in scored]):
        doubts.append(length)
    if kind in ("worked", "helped") and (repetition := describe_repetition(texts[best], [r.references for r in rows])):
        kind = "unsure"  # repetition is no clear gain
        doubts.append(repetition)
    num_trained = {name: sum(flags) for name, flags in zip(names, trained_on, strict=False)}
    for name, count in num_trained.items():
        if count:
            doubts.append(f"{name} was trained on {count} of the {len(prompts)}: that says nothing of new images.")
    if known := [name for name, count in num_trained.items() if 2 * count >= len(prompts)]:
        was, these = "was" if len(known) == 1 else "were", f"most of these {noun}" if total > 1 else f"this {noun}"
        headline, kind = f"Cannot say: {_join(known)} {was} trained on {these}.", "unsure"
    return Verdict(kind, headline, _describe(names, ranking, total, noun), " ".join(doubts)), best


def _rank(
    rows: Sequence[PredictionRow],
    texts: Sequence[Sequence[str]],
    boxes: Sequence[Sequence[Boxes]],
    metric_names: Sequence[str],
) -> _Ranking:
    """Candidates by their matches if there are enough of them, then by how close their answers are."""

    boxes = boxes or [[()] * len(rows)] * len(texts)

    def measure(a: int, b: int) -> Changes:
        answered = [
            replace(row, base=texts[b][i], tuned=texts[a][i], base_boxes=boxes[b][i], tuned_boxes=boxes[a][i])
            for i, row in enumerate(rows)
        ]
        return measure_changes(answered, metric_names)

    over_first = [measure(i, 0) for i in range(len(texts))]
    matches = [match.after for match, _ in over_first]
    is_match_shown = over_first[0][1] is None or max(matches) >= max(1 / len(rows), MIN_SHOWN_SHARE)

    def compute_key(i: int) -> tuple[float, float]:
        graded = over_first[i][1]
        closeness = METRICS[graded.name].sign * graded.after if graded else 0.0
        return (-matches[i] if is_match_shown else 0.0, -closeness)

    order = sorted(range(len(texts)), key=compute_key)
    changes = [measure(order[0], i) for i in order[1:]]
    if len(order) == 2 and list_meanings(*changes[0]) & {"better", "worse"} == {"worse"}:
        order.reverse()  # the matches differ by chance, but the answers of the other are closer
        changes = [measure(*order)]
    return _Ranking(order, changes, is_match_shown)


def _conclude(names: Sequence[str], ranking: _Ranking, total: int, noun: str) -> tuple[str, VerdictKind]:
    best, beaten = names[ranking.order[0]], ranking.beaten
    mixed = [
        i for i, pair in zip(ranking.order[1:], ranking.changes, strict=True)
        if list_meanings(*pair) >= {"better", "worse"}
    ]  # fmt: skip
    clear = [names[i] for i in beaten if i not in mixed]
    rest = [names[i] for i in ranking.order[1:] if names[i] not in clear]
    if not clear:
        if mixed:
            return f"Cannot say: one score favors {best}, another {names[mixed[0]]}.", "unsure"
        return f"No difference that {total} {noun} can show.", "unsure"
    headline = f"{best} is better than {_join(clear)}"
    if not rest:
        return f"{headline}.", "worked"
    return f"{headline}; beside {_join(rest)}, {total} {noun} show no clear difference.", "helped"


def _describe(names: Sequence[str], ranking: _Ranking, total: int, noun: str) -> str:
    """The values of all candidates, best first."""
    (match, graded), order = ranking.changes[0], ranking.order
    sentences = []
    if ranking.is_match_shown:
        values = [match.after, *(pair[0].before for pair in ranking.changes)]
        first, *others = [f"{round(value * total)}" for value in values]
        text = MATCHES[match.name].format(reference="the reference")
        rest = ", ".join(f"{value} with {names[i]}" for i, value in zip(order[1:], others, strict=True))
        sentences.append(
            f"{text[:1].upper()}{text[1:]} in {first} of {total} {make_plural(noun)} with {names[order[0]]}, {rest}."
        )
    if graded and (not sentences or (match.meaning == "unsure" and graded.meaning != "unsure")):
        sentences.append(_describe_closeness(names, ranking, total, noun))
    return " ".join(sentences)


def _describe_closeness(names: Sequence[str], ranking: _Ranking, total: int, noun: str) -> str:
    order, graded = ranking.order, [pair[1] for pair in ranking.changes if pair[1]]
    best, others = names[order[0]], [names[i] for i in order[1:]]
    values = ", ".join(f"{change.before:.2f} with {name}" for change, name in zip(graded, others, strict=True))
    scores = f"{graded[0].name} {graded[0].after:.2f}, {values}"
    if len(order) > 2:
        return f"With {best}: {scores}."
    closer, further = graded[0].num_closer, graded[0].num_further
    if not closer and not further:
        return f"No answer is much closer to the reference with {best} than with {others[0]}, or further ({scores})."
    count = f"{closer} of {total} {make_plural(noun)}, further in {further}"
    return f"With {best} the answer is closer to the reference in {count} ({scores})."


def _compare_length(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> str:
    """A sentence if the answers are much longer or shorter than the references: scores may rise by that alone."""
    own = compute_style(texts).mean_words
    others = compute_style([text for of_prompt in references for text in of_prompt]).mean_words
    if not others or 1 / NOTABLE_LENGTH_RATIO < own / others < NOTABLE_LENGTH_RATIO:
        return ""
    longer = "longer" if own > others else "shorter"
    return f"The answers of {name} are much {longer} than the references ({own:.0f} and {others:.0f} words)."


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
