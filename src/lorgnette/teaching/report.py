"""The HTML report of a taught run: how often suggestions were taken, what a person changed, where it still fails.

    events, images → write_report → report.html

One file that loads nothing else, in the frame of the other reports. It follows from the journal alone, but for the
images that it shows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from statistics import fmean

from lorgnette.io.shell import format_command
from lorgnette.metrics.answer_tables import AnswerTables
from lorgnette.metrics.bootstrap import compute_newcombe_interval
from lorgnette.metrics.labels import count_labels
from lorgnette.report.html.answer_tables import AnswerSection, build_answer_sections
from lorgnette.report.html.charts import Axis, Chart, Curve, Points, Tick, build_overlay, format_number
from lorgnette.report.html.inline_images import InlineImage, inline_images
from lorgnette.report.html.page import MIN_ALIKE, SIGNS, flatten_settings
from lorgnette.report.html.templates import write_page
from lorgnette.report.manifest import describe_making
from lorgnette.report.verdict import LARGE_SHARE, Verdict, VerdictKind
from lorgnette.teaching.events import Event, Finished, Opened, RoundDone, RoundFailed, Skipped, Suggested, Undone
from lorgnette.teaching.images import ImageList
from lorgnette.teaching.score import (
    LEVEL,
    MAX_SECONDS,
    MIN_EDIT_FALL,
    WINDOW,
    Agreement,
    BlindComparison,
    Effort,
    Outcome,
    Score,
    Share,
    compute_score,
    count_taken,
    measure_effort,
)

NUM_EXAMPLES = 3
"""First suggestions, and last ones."""
_END_REASONS = {"low": "loss is low", "flat": "loss no longer falls", "limit": "step limit"}
_ANSWERS = Axis("judged suggestions", "suggestion")
_PIECE = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""White space, a Chinese or Japanese character, or a word of another script."""
_FILES = {
    "captions.csv": "the answers that a person confirmed; training data for any program",
    "adapter": "the adapter after the last round, in PEFT's format",
    "suggestions.csv": "what the model writes about the other images, the least sure first; nobody has confirmed it",
    "journal.jsonl": "every suggestion and every answer, in order; all numbers here are counted from it",
    "config.yaml": "the settings",
}

Pieces = list[tuple[str, bool]]
"""A text in pieces, each with whether it is marked. The pieces add up to the text."""


@dataclass(frozen=True, slots=True)
class _Card:
    """A suggestion on the page. before, after: the suggestion and the answer; marked is what differs."""

    outcome: Outcome
    image: InlineImage
    model: str
    before: Pieces
    after: Pieces


@dataclass(frozen=True, slots=True)
class _RoundRow:
    """A round in the table. taken: of the suggestions of its model; problem: why it failed."""

    number: int
    answers: str
    steps: str
    loss: str
    seconds: str
    end: str
    taken: str
    problem: str = ""


def write_report(
    path: Path,
    events: Sequence[Event],
    images: ImageList,
    *,
    run: Path,
    settings: Mapping[str, object] | None = None,
    folders: Sequence[Path] = (),
) -> None:
    """Write the report of a run to `path`, and replace what is there.

    events: of the journal, in order. run: the run's folder, whose files are listed. settings: may be nested.
    folders: absolute ones that paths on the page lose. Raises LorgnetteError if the events are no journal.
    """
    score = compute_score(events)
    verdict = judge_teaching(score)
    first, last, wrong = _select_cards(score)
    sources = inline_images(_find_image(images, outcome) for outcome in {*first, *last, *wrong})
    cards = [
        [_build_card(outcome, sources[_find_image(images, outcome)]) for outcome in group]
        for group in (first, last, wrong)
    ]
    charts = _build_charts(score)
    rounds = _list_rounds(events, score)
    trust = [*_describe_blind(score.blind), *_describe_untuned_shown(score)]
    trust += [_describe_agreement(agreement) for agreement in score.agreements]
    labels = _count_labels(events, score)
    rows = flatten_settings(settings or {})
    parts = [
        ("curve", "Curve", charts),
        ("numbers", "In numbers", score.outcomes),
        ("fails", "Where it fails", score.outcomes),
        ("examples", "First and last", [*first, *last]),
        ("trust", "How far to trust it", score.outcomes or trust),
        *((section.id, section.title, section) for section in labels),
        ("rounds", "Rounds", rounds),
        ("next", "Next steps", True),
        ("files", "Files", True),
        ("settings", "Settings", rows),
    ]
    write_page(
        path,
        "report.html.j2",
        template_folders=[Path(__file__).parent],
        folders=folders,
        title=run.name,
        summary="",
        verdict=verdict,
        sign=SIGNS[verdict.kind],
        taught=_list_facts(events, images, score),
        parts=[(id, name) for id, name, content in parts if content],
        charts=charts,
        data={"charts": [chart.script_data for chart in charts]},
        numbers=_tabulate_effort(score),
        counted=len(score.outcomes),
        window=min(WINDOW, len(score.outcomes)),
        level=f"{LEVEL:.0%}".replace("%", "\u00a0%"),
        first=cards[0],
        last=cards[1],
        wrong=cards[2],
        trust=trust,
        has_blind=score.blind is not None,
        answer_sections=labels,
        rounds=rounds,
        next_steps=list_next_steps(run),
        files=[
            (f"{name}/" if (run / name).is_dir() else name, _FILES[name]) for name in _FILES if (run / name).exists()
        ],
        settings=rows,
    )


def list_next_steps(run: Path) -> list[tuple[str, str]]:
    """(purpose, command) of what a person can do with a run. What needs an adapter is listed only if it has one."""
    steps = [
        ("Ask it about another image, beside the model before", ("predict", "IMAGE", "--adapter", run, "--both")),
        ("Ask both on a page, or from another program", ("serve", run)),
        ("Check that plain transformers + PEFT give the same output", ("verify", run)),
        ("Go on teaching", ("teach", run)),
        ("Let somebody look at the answers again", ("teach", run, "--review", "NAME")),
    ]
    has_adapter = (run / "adapter").is_dir()
    return [(purpose, format_command(*words)) for purpose, words in steps if has_adapter or words[0] == "teach"]


def judge_teaching(score: Score) -> Verdict:
    """Say in a few sentences how well the last suggestions did, and how sure that is."""
    share, recent = score.window, score.recent
    if share is None or recent is None:
        evidence = f"{_count(len(score.answers), 'answer')} so far; none judged a suggestion."
        return Verdict("unsure", "Cannot say whether it learned.", evidence)
    before = [outcome for outcome in score.outcomes if outcome.round == 0]
    kind, headline = _conclude(score, share, recent, before)
    evidence = _describe_share(share, recent, before, score.enough)
    if score.unlearned:
        evidence = f"The loss did not get low in the last rounds, and few of their suggestions were taken. {evidence}"
    return Verdict(kind, headline, evidence, _describe_doubt(share, score.blind))


def _conclude(score: Score, share: Share, recent: Effort, before: Sequence[Outcome]) -> tuple[VerdictKind, str]:
    """The kind of the verdict, and its headline."""
    if share.count < WINDOW:
        few = "one judged suggestion is" if share.count == 1 else f"{share.count} judged suggestions are"
        return "unsure", f"Cannot say yet: {few} too few."
    if score.unlearned:
        return "unchanged", "It does not learn this yet."
    if score.is_enough:
        return "worked", "It writes what was wanted."
    if not _has_improved(share, recent, before):
        return "unsure", "Cannot say whether teaching helped."
    if score.is_edit_first:
        return "helped", "It comes close."
    return ("worked", "It learned most of it.") if share.value >= LARGE_SHARE else ("helped", "It learned some of it.")


def _has_improved(share: Share, recent: Effort, before: Sequence[Outcome]) -> bool:
    """Whether the last suggestions are better than the untuned ones; without these there is nothing to compare."""
    untuned = count_taken([outcome.taken for outcome in before])
    if untuned is None:
        return True
    low, _ = compute_newcombe_interval(share.value, share.count, untuned.value, untuned.count, LEVEL)
    edit = fmean(outcome.edit for outcome in before)
    return low > 0 or recent.edit < edit * (1 - MIN_EDIT_FALL)


def _describe_share(share: Share, recent: Effort, before: Sequence[Outcome], enough: Share | None) -> str:
    best = enough or share
    text = f"{best.taken} of the last {best.count} suggestions were taken as they stand"
    untuned = count_taken([outcome.taken for outcome in before])
    if untuned is not None and untuned.count < best.count:
        text += f"; before tuning {untuned.taken} of {untuned.count}"
    text += f". The last {share.count} differ from the answers in {_format_percent(recent.edit)} of the characters"
    if before and len(before) < share.count:
        text += f" ({_format_percent(fmean(outcome.edit for outcome in before))} before tuning)"
    text += "."
    if recent.median_seconds is not None:
        text += f" An image takes {_format_seconds(recent.median_seconds)}."
    return text


def _describe_doubt(share: Share, blind: BlindComparison | None) -> str:
    level = _format_percent(LEVEL)
    text = f"With so few answers the share may be {_format_interval(share.low, share.high)} ({level} interval)."
    if blind is None:
        return f"{text} People tend to take what is offered, so it may be too high."
    if blind.low is not None and blind.low > 0:
        return f"{text} It is too high: who does not see the suggestion writes it less often."
    written = f"{_count(blind.blind.count, 'answer')} written without seeing the suggestion"
    return f"{text} Of {written}, {blind.blind.taken} equal it."


def _describe_blind(blind: BlindComparison | None) -> list[str]:
    if blind is None:
        return []
    text = (
        f"Written without seeing the suggestion: {_format_share(blind.blind)} are equal to it."
        if blind.shown is None
        else f"Written without seeing the suggestion: {_format_share(blind.blind)} are equal to it. Of those shown in "
        f"the same time {_format_share(blind.shown)} were taken."
    )
    if blind.shown is not None and blind.low is not None and blind.high is not None:
        points = round(100 * (blind.shown.value - blind.blind.value))
        bounds = f"{_sign(round(100 * blind.low))} to {_sign(round(100 * blind.high))}"
        text += f" The difference is {_sign(points)} points ({_format_percent(LEVEL)} interval {bounds}): "
        if blind.low > 0:
            text += "more than chance. People take what is offered, so the share above is too high."
        else:
            text += "more than chance." if blind.high < 0 else "chance could explain it."
    return [text]


def _describe_untuned_shown(score: Score) -> list[str]:
    if not score.num_untuned_shown:
        return []
    return [
        f"Before {score.num_untuned_shown} of the {_count(len(score.outcomes), 'counted answer')} the person also "
        "looked at what the untuned model says. Such an answer counts like the others."
    ]


def _describe_agreement(agreement: Agreement) -> str:
    equal = agreement.equal
    text = f"{agreement.reviewer} looked at answers again and left {_format_share(equal)} as they were."
    if agreement.kappa is not None:
        text += f" Cohen's kappa is {_sign(agreement.kappa, 2)}: 1 is full agreement, 0 what chance gives."
    return text


def _select_cards(score: Score) -> tuple[list[Outcome], list[Outcome], list[Outcome]]:
    """The first untuned suggestions, the last suggestions, and the last that were not taken."""
    first = [outcome for outcome in score.outcomes if outcome.round == 0][:NUM_EXAMPLES]
    last = [outcome for outcome in score.outcomes[-NUM_EXAMPLES:] if outcome.round > 0]
    return first, last, score.wrong


def _find_image(images: ImageList, outcome: Outcome) -> Path:
    number = images.numbers.get(outcome.image)
    return images.folder / outcome.image if number is None else images.paths[number]


def _build_card(outcome: Outcome, image: InlineImage) -> _Card:
    model = "untuned" if outcome.round == 0 else f"round {outcome.round}"
    return _Card(outcome, replace(image, name=outcome.image), model, *mark_changes(outcome.suggestion, outcome.answer))


def mark_changes(before: str, after: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces, with the words marked that the other one has not at this place.

    Nothing is marked in texts that have little in common.
    """
    old, new = _PIECE.findall(before), _PIECE.findall(after)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < MIN_ALIKE:
        return [(before, False)], [(after, False)]
    marked_old, marked_new = [False] * len(old), [False] * len(new)
    for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        if kind != "equal":
            marked_old[old_start:old_end] = [True] * (old_end - old_start)
            marked_new[new_start:new_end] = [True] * (new_end - new_start)
    return _join_pieces(old, marked_old), _join_pieces(new, marked_new)


def _join_pieces(words: Sequence[str], marked: Sequence[bool]) -> Pieces:
    groups = groupby(zip(words, marked, strict=True), key=lambda item: item[1])
    return [("".join(word for word, _ in group), is_marked) for is_marked, group in groups]


def _build_charts(score: Score) -> list[Chart]:
    """The share with its interval, then what a person still did, each over the last WINDOW answers."""
    curve = score.curve
    ends = range(1, len(score.outcomes) + 1)
    efforts = [measure_effort(score.outcomes[max(0, end - WINDOW) : end]) for end in ends]
    found = [(float(end), effort) for end, effort in zip(ends, efforts, strict=True) if effort is not None]
    share = Curve(
        "taken as they stand",
        [(float(point.answers), 100 * point.share) for point in curve],
        [(100 * point.low, 100 * point.high) for point in curve],
    )
    seconds: Points = [(end, effort.median_seconds) for end, effort in found if effort.median_seconds is not None]
    charts = [
        (share, f"% of the last {WINDOW}", (0.0, 100.0)),
        (Curve("edit distance", [(end, effort.edit) for end, effort in found]), "0 is equal", (0.0, 1.0)),
        (
            Curve("keys saved", [(end, 100 * effort.keys_saved) for end, effort in found]),
            "% of the characters",
            (0.0, 100.0),
        ),
        (Curve("time", seconds), "seconds for an image, the median", (0.0, 1.0)),
    ]
    built = [
        replace(chart, y_name=y_name)
        for curve, y_name, limits in charts
        for chart in build_overlay(curve.name, [curve], axis=_ANSWERS, y_limits=limits)
    ]
    first_tuned = next((end for end, outcome in enumerate(score.outcomes, 1) if outcome.round > 0), None)
    if built and first_tuned is not None and first_tuned > 1:
        low, high = built[0].x_range
        built[0] = replace(built[0], mark=Tick(round(100 * (first_tuned - low) / (high - low), 2), "tuned from here"))
    return built


def _tabulate_effort(score: Score) -> list[tuple[str, str, str, str]]:
    """(name, explanation, before tuning, over the last WINDOW) of each number."""
    untuned = [outcome for outcome in score.outcomes if outcome.round == 0]
    columns = _format_effort(untuned), _format_effort(score.outcomes[-WINDOW:])
    names = [
        ("Taken as they stand", "equal to the answer, but for spaces around it"),
        (
            "Edit distance",
            "inserted, deleted and replaced characters over the length of the longer text: 0 is equal",
        ),
        (
            "Words changed",
            "inserted, deleted and replaced words over the words of the answers, without punctuation and letter case",
        ),
        ("Keys saved", "1 − key presses over characters of the answers; negative if more keys were pressed"),
        ("Time for an image", f"the median; longer than {MAX_SECONDS:g} s is a pause and left out"),
    ]
    if not score.outcomes:
        return []
    return [(*name, before, last) for name, before, last in zip(names, *columns, strict=True)]


def _format_effort(outcomes: Sequence[Outcome]) -> list[str]:
    """The values of the table."""
    share, effort = count_taken([outcome.taken for outcome in outcomes]), measure_effort(outcomes)
    if share is None or effort is None:
        return ["–"] * 5
    return [
        _format_share(share),
        f"{effort.edit:.2f}",
        _format_percent(effort.words_changed),
        _format_percent(effort.keys_saved),
        _format_seconds(effort.median_seconds),
    ]


def _list_rounds(events: Sequence[Event], score: Score) -> list[_RoundRow]:
    rows = []
    for event in events:
        if isinstance(event, RoundDone):
            share = count_taken([outcome.taken for outcome in score.outcomes if outcome.round == event.round])
            rows.append(
                _RoundRow(
                    event.round,
                    str(event.answers),
                    str(event.steps),
                    f"{event.loss:.3f}",
                    f"{event.seconds:.1f}",
                    _END_REASONS.get(event.end_reason, event.end_reason),
                    f"{share.taken} of {share.count}" if share else "–",
                )
            )
        elif isinstance(event, RoundFailed):
            rows.append(_RoundRow(event.round, "–", "–", "–", "–", "did not finish", "–", event.message))
    return rows


def _count_labels(events: Sequence[Event], score: Score) -> list[AnswerSection]:
    """Which label was suggested for which, by tuned models."""
    labels = next((event.labels for event in reversed(events) if isinstance(event, Opened)), [])
    tuned = [outcome for outcome in score.outcomes if outcome.round > 0]
    if not labels or not tuned:
        return []
    counts = count_labels([outcome.suggestion for outcome in tuned], [[outcome.answer] for outcome in tuned], labels)
    return build_answer_sections(AnswerTables(labels=(counts,)), ["suggested"])


def _list_facts(events: Sequence[Event], images: ImageList, score: Score) -> list[tuple[str, str]]:
    """What was taught, in (label, value)."""
    opened = next((event for event in reversed(events) if isinstance(event, Opened)), None)
    finished = next((event for event in reversed(events) if isinstance(event, Finished)), None)
    skipped = _count_skips(events)
    seconds = sum(min(outcome.seconds, MAX_SECONDS) for outcome in (*score.outcomes, *score.blind_outcomes))
    tuned_on = score.rounds[-1].answers if score.rounds else 0
    facts = [
        ("Images", f"{len(images)} in {images.source.name or images.source}"),
        ("Answers", f"{len(score.answers)}, of which {len(score.outcomes)} judged a suggestion"),
        ("Adapter", f"tuned on {_count(tuned_on, 'answer')}" if tuned_on else "not tuned yet"),
    ]
    if opened is not None:
        facts[:0] = [("Model", opened.model), ("Prompt", opened.prompt)]
        if opened.labels:
            facts.append(("Labels", ", ".join(opened.labels)))
    if finished is not None and finished.suggestions:
        facts.append(("Captioned without a person", str(finished.suggestions)))
    if skipped:
        facts.append(("Skipped", str(skipped)))
    if images.broken:
        facts.append(("Cannot be read", str(len(images.broken))))
    if images.alike:
        facts.append(("Look-alikes", f"{len(images.alike)}, which judge no suggestion"))
    if seconds:
        minutes = seconds / 60
        facts.append(("Time at the images", f"{minutes:.0f} min" if minutes >= 1.5 else f"{seconds:.0f} s"))
    return [*facts, ("Made", describe_making())]


def _count_skips(events: Sequence[Event]) -> int:
    """How many images a person skipped and did not answer since."""
    image_by_id: dict[str, str] = {}
    skipped: set[str] = set()
    for event in events:
        if isinstance(event, Suggested):
            image_by_id[event.id] = event.image
            skipped.discard(event.image)
        elif isinstance(event, Skipped) and event.reason == "user":
            skipped.add(image_by_id[event.id])
        elif isinstance(event, Undone):
            skipped.discard(image_by_id[event.id])
    return len(skipped)


def _format_share(share: Share) -> str:
    return f"{share.taken} of {share.count} ({_format_interval(share.low, share.high)})"


def _format_interval(low: float, high: float) -> str:
    return f"{100 * low:.0f} to {_format_percent(high)}"


def _format_percent(share: float) -> str:
    return f"{_sign(round(100 * share))}\u00a0%"


def _sign(value: float, digits: int = 0) -> str:
    """The number with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "−")


def _format_seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{format_number(round(seconds, 1))}\u00a0s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
