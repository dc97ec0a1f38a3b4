"""`python tools/metric_parity.py FOLDER`: compares our caption scores with the official pycocoevalcap's.

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
"""pycocoevalcap's names, in the order of CAPTION_METRICS."""


@dataclass(frozen=True, slots=True)
class Case:
    """One set of captions: the texts, the official tokens, and the official scores."""

    name: str
    hypotheses: list[str]
    references: list[list[str]]
    hypothesis_tokens: list[list[str]]
    reference_tokens: list[list[list[str]]]
    scores: dict[str, float]
    per_example: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class ScoreComparison:
    """One metric of one case. text_error, token_error: our distance from the official score, computed from the texts
    and from the official tokens; max_example_error: the largest of the latter over single examples."""

    case: str
    metric: str
    official: float
    ours: float
    text_error: float
    token_error: float
    max_example_error: float


def read_cases(folder: Path) -> Iterator[Case]:
    """Read every case. Raises LorgnetteError if the folder does not have this layout."""
    try:
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["cases"]
        for name, case in expected.items():
            yield _read_case(name, folder / name, case["scores"])
    except (OSError, ValueError, KeyError) as error:
        raise LorgnetteError(
            f"cannot read the official scores: {error!r}", where=str(folder), hint="see --help for the layout"
        ) from None


def compare_scores(case: Case) -> Iterator[ScoreComparison]:
    """Compare our scores with the official ones, metric by metric."""
    from_texts = _compute_scores(
        [tokenizers.tokenize_words(text) for text in case.hypotheses],
        [[tokenizers.tokenize_words(text) for text in texts] for texts in case.references],
    )
    from_tokens = _compute_scores(case.hypothesis_tokens, case.reference_tokens)
    for metric, official_name, text_score, token_score in zip(
        CAPTION_METRICS, OFFICIAL_NAMES, from_texts, from_tokens, strict=True
    ):
        official, ours = case.scores[official_name], text_score.value or 0.0
        example_errors = np.abs(token_score.per_example - np.array(case.per_example[official_name]))
        yield ScoreComparison(
            case.name,
            metric,
            official,
            ours,
            text_error=abs(ours - official),
            token_error=abs((token_score.value or 0.0) - official),
            max_example_error=float(example_errors.max()),
        )


def count_token_differences(case: Case) -> int:
    """Return the number of texts whose tokens differ from the official ones."""
    texts = [*case.hypotheses, *(text for texts in case.references for text in texts)]
    tokens = [*case.hypothesis_tokens, *(words for texts in case.reference_tokens for words in texts)]
    return sum(tokenizers.tokenize_words(text) != official for text, official in zip(texts, tokens, strict=True))


def format_table(folder: Path) -> str:
    """Format one table per case."""
    lines = []
    for case in read_cases(folder):
        num_texts = len(case.hypotheses) + sum(map(len, case.references))
        num_different = count_token_differences(case)
        lines += [
            f"{case.name}: {len(case.hypotheses)} images, tokens differ in {num_different} of {num_texts} texts",
            f"  {'':8} {'official':>12} {'ours':>12} {'error':>8} {'same tokens':>12} {'one image':>12}",
        ]
        lines += [
            f"  {row.metric:8} {row.official:12.9f} {row.ours:12.9f} {row.text_error:8.1e} {row.token_error:12.1e} "
            f"{row.max_example_error:12.1e}"
            for row in compare_scores(case)
        ]
    return "\n".join(lines)


def _compute_scores(hypotheses: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[Tally]:
    texts = hypotheses, references
    return [*bleu(*texts), rouge_l(*texts), cider_d(*texts)]


def _read_case(name: str, folder: Path, scores: dict[str, float]) -> Case:
    annotations, results, tokens, per_image = (
        json.loads((folder / file).read_text(encoding="utf-8"))
        for file in ("references.json", "results.json", "ptb_tokenised.json", "per_image_scores.json")
    )
    hypotheses = {result["image_id"]: result["caption"] for result in results}
    references: dict[int, list[str]] = {image_id: [] for image_id in per_image["image_ids"]}
    for annotation in annotations["annotations"]:
        references[annotation["image_id"]].append(annotation["caption"])
    return Case(
        name,
        [hypotheses[image_id] for image_id in references],
        list(references.values()),
        [tokens["hyp"][str(image_id)][0].split() for image_id in references],
        [[text.split() for text in tokens["refs"][str(image_id)]] for image_id in references],
        scores,
        per_image["per_image"],
    )


def main(arguments: Sequence[str]) -> int:
    try:
        if len(arguments) != 1 or arguments[0].startswith("-"):
            raise UsageError("one folder is required", where="metric_parity", hint=(__doc__ or "").strip())
        sys.stdout.write(format_table(Path(arguments[0])) + "\n")
    except LorgnetteError as error:
        sys.stderr.write(f"lorgnette: {error}\n")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
