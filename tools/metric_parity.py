"""`python -m metric_parity FOLDER`: our scores beside the official pycocoevalcap's.

FOLDER holds `expected.json` ({"cases": {name: {"scores": {"Bleu_1": …}}}}) and, per case, `references.json` (a COCO
annotation file), `results.json`, `ptb_tokenised.json` and `per_image_scores.json`.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.metrics import tokenizers
from lorgnette.metrics.bleu import bleu
from lorgnette.metrics.cider import cider_d
from lorgnette.metrics.ngrams import Tokens
from lorgnette.metrics.registry import CAPTION_METRICS
from lorgnette.metrics.rouge import rouge_l
from lorgnette.metrics.score import Tally

OFFICIAL_NAMES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
"""pycocoevalcap's names, in the order of CAPTION."""


@dataclass(frozen=True, slots=True)
class Case:
    """One set: its texts as they were written, as the official tokens, and the official scores."""

    name: str
    hypotheses: list[str]
    references: list[list[str]]
    hypothesis_tokens: list[list[str]]
    reference_tokens: list[list[list[str]]]
    scores: dict[str, float]
    per_example: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """One metric of one case. The distances: from raw text, from the official tokens, and the latter's largest over
    single examples."""

    case: str
    metric: str
    official: float
    ours: float
    text_error: float
    token_error: float
    max_example_error: float


def read_cases(folder: Path) -> Iterator[Case]:
    """Raises LorgnetteError where the folder has not that layout."""
    try:
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["cases"]
        for name, case in expected.items():
            yield _read_case(name, folder / name, case["scores"])
    except (OSError, ValueError, KeyError) as error:
        raise LorgnetteError(
            f"official scores cannot be read: {error!r}", where=str(folder), hint="see --help for the layout"
        ) from None


def compare_scores(case: Case) -> Iterator[ScoreComparison]:
    """Ours against the official scores, metric by metric."""
    raw = _compute_scores(
        [tokenizers.tokenize_words(text) for text in case.hypotheses],
        [[tokenizers.tokenize_words(text) for text in texts] for texts in case.references],
    )
    same = _compute_scores(case.hypothesis_tokens, case.reference_tokens)
    for metric, official, text, tokens in zip(CAPTION_METRICS, OFFICIAL_NAMES, raw, same, strict=True):
        value, ours, own = case.scores[official], text.value or 0.0, tokens.value or 0.0
        apart = float(np.abs(tokens.per_example - np.array(case.per_example[official])).max())
        yield ScoreComparison(case.name, metric, value, ours, abs(ours - value), abs(own - value), apart)


def count_token_differences(case: Case) -> int:
    """How many texts our tokens differ in from the official ones."""
    texts = [*case.hypotheses, *(text for texts in case.references for text in texts)]
    tokens = [*case.hypothesis_tokens, *(one for some in case.reference_tokens for one in some)]
    return sum(tokenizers.tokenize_words(text) != official for text, official in zip(texts, tokens, strict=True))


def format_table(folder: Path) -> str:
    """The parity tables, for a person."""
    lines = []
    for case in read_cases(folder):
        texts = len(case.hypotheses) + sum(map(len, case.references))
        lines += [
            f"{case.name}: {len(case.hypotheses)} pictures, tokens differ in {count_token_differences(case)} of {texts} texts"
        ]
        lines += [f"  {'':8} {'official':>12} {'from text':>12} {'apart':>8} {'same tokens':>12} {'one picture':>12}"]
        lines += [
            f"  {row.metric:8} {row.official:12.9f} {row.ours:12.9f} {row.text_error:8.1e} {row.token_error:12.1e} "
            f"{row.max_example_error:12.1e}"
            for row in compare_scores(case)
        ]
    return "\n".join(lines)


def _compute_scores(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[Tally]:
    given = hypotheses, references
    return [*bleu(*given), rouge_l(*given), cider_d(*given)]


def _read_case(name: str, folder: Path, scores: dict[str, float]) -> Case:
    annotations, results, tokens, each = (
        json.loads((folder / file).read_text(encoding="utf-8"))
        for file in ("references.json", "results.json", "ptb_tokenised.json", "per_image_scores.json")
    )
    answers = {result["image_id"]: result["caption"] for result in results}
    texts: dict[int, list[str]] = {picture: [] for picture in each["image_ids"]}
    for annotation in annotations["annotations"]:
        texts[annotation["image_id"]].append(annotation["caption"])
    return Case(
        name,
        [answers[picture] for picture in texts],
        list(texts.values()),
        [tokens["hyp"][str(picture)][0].split() for picture in texts],
        [[text.split() for text in tokens["refs"][str(picture)]] for picture in texts],
        scores,
        each["per_image"],
    )


def main(words: Sequence[str]) -> int:
    """The command."""
    try:
        if len(words) != 1 or words[0].startswith("-"):
            raise UsageError("takes one folder", where="metric_parity", hint=(__doc__ or "").strip())
        sys.stdout.write(format_table(Path(words[0])) + "\n")
    except LorgnetteError as error:
        sys.stderr.write(f"lorgnette: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
