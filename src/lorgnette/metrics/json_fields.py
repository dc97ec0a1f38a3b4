"""Answers that are JSON objects, compared field by field.

A field is a value that is no list or object, or an empty one, with its path: `buyer.name`, `items[].price`. An item of
a list is compared with the item at the same position. Numbers are equal by value (1 and 1.0), texts without differences
in white space; a number is never equal to a text, nor 1 to true. A field that only the answer has is wrong as well.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorgnette.errors import LorgnetteError
from lorgnette.io.parse import parse_json
from lorgnette.metrics.score import Tally, tally_share
from lorgnette.metrics.tokenizers import normalize_whitespace

_FENCE = "```"
_Path = tuple[str | int, ...]
_Fields = dict[_Path, Any]


@dataclass(frozen=True, slots=True)
class FieldRow:
    """A field in numbers.

    support: how often references have it. Of these num_correct have its value, num_wrong another one, and
    num_missing are not in the answer. num_extra: how often only the answer has it.
    """

    name: str
    support: int
    num_correct: int
    num_missing: int
    num_extra: int

    @property
    def num_wrong(self) -> int:
        """Of the fields in references: another value."""
        return self.support - self.num_correct - self.num_missing

    @property
    def accuracy(self) -> float | None:
        """Of the fields in references; None without any."""
        return self.num_correct / self.support if self.support else None


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """num_valid: answers that are a JSON object as they stand. num_equal: those with the reference's fields."""

    rows: tuple[FieldRow, ...]
    num_answers: int
    num_valid: int
    num_equal: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        fields = [{**asdict(row), "accuracy": row.accuracy} for row in self.rows]
        return {
            "answers": self.num_answers, "valid": self.num_valid, "equal": self.num_equal, "fields": fields
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Match:
    """An answer beside its best reference. fields: path → (in the reference, in the answer, equal)."""

    fields: dict[_Path, tuple[bool, bool, bool]]
    is_valid: bool

    @property
    def num_correct(self) -> int:
        return sum(is_equal for _, _, is_equal in self.fields.values())

    @property
    def share(self) -> float:
        return self.num_correct / len(self.fields) if self.fields else 0.0


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None for any other text."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = parse_json(text)
    except LorgnetteError:
        return None
    return value if isinstance(value, dict) else None


def compare_objects(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[Tally, Tally, Tally]:
    """Share of fields that are right, of equal objects, and of answers that are a JSON object as they stand.

    The first two also read an answer inside a code fence (```json). A reference that is no JSON object counts as wrong.
    """
    matches = [_match(hypothesis, texts) for hypothesis, texts in zip(hypotheses, references, strict=True)]
    counts = np.array([(match.num_correct, len(match.fields)) for match in matches], np.float64).reshape(-1, 2)
    shares = np.array([match.share for match in matches], np.float64)
    num_broken = sum(all(parse_object(text) is None for text in texts) for texts in references)
    is_undefined = num_broken == len(references)
    note = "no reference is a JSON object" if is_undefined else None
    if num_broken and not is_undefined:
        note = f"{num_broken} of {len(references)} references are no JSON object and count as wrong"
    fields = Tally(shares, counts, lambda sums: sums[:, 0] / np.maximum(1, sums[:, 1]), note, is_undefined)
    equal = tally_share((shares == 1).astype(np.float64), note, is_undefined=is_undefined)
    is_valid = np.array([match.is_valid for match in matches], np.float64)
    return fields, equal, tally_share(is_valid)


def count_fields(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> FieldCounts:
    """The counts of every field, in the order in which references have them first; items of a list together."""
    matches = [_match(hypothesis, texts) for hypothesis, texts in zip(hypotheses, references, strict=True)]
    counts: dict[str, Counter[str]] = {}
    for of_reference in (True, False):
        for match in matches:
            for path, (in_reference, in_answer, is_equal) in match.fields.items():
                if in_reference == of_reference:
                    field = counts.setdefault(_format_path(path), Counter())
                    field["support"] += in_reference
                    field["correct"] += is_equal
                    field["missing"] += not in_answer
                    field["extra"] += not in_reference
    rows = tuple(
        FieldRow(name, field["support"], field["correct"], field["missing"], field["extra"])
        for name, field in counts.items()
    )
    num_equal = sum(match.share == 1 for match in matches)
    return FieldCounts(rows, len(matches), sum(match.is_valid for match in matches), num_equal)


def _match(hypothesis: str, references: Sequence[str]) -> _Match:
    """The answer beside the reference of which most fields are right; the first one of a tie."""
    answer = parse_object(hypothesis)
    is_valid = answer is not None
    if answer is None:
        answer = parse_object(_remove_fence(hypothesis))
    answer_fields = {} if answer is None else dict(_list_fields(answer))
    matches = []
    for text in references:
        reference = parse_object(text)
        if reference is None:
            matches.append(_Match({("",): (True, False, False)}, is_valid))
            continue
        fields = dict(_list_fields(reference))
        paths = dict.fromkeys([*fields, *answer_fields])
        compared = {
            path: (path in fields, path in answer_fields, _is_equal_field(path, fields, answer_fields))
            for path in paths
        }
        matches.append(_Match(compared, is_valid))
    return max(matches, key=lambda match: match.share)


def _remove_fence(text: str) -> str:
    """The lines between ``` or ```json and ```; without such lines the text itself."""
    first, _, rest = text.strip().partition("\n")
    is_fenced = first.startswith(_FENCE) and rest.endswith(_FENCE)
    return rest.removesuffix(_FENCE) if is_fenced else text


def _list_fields(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Every field with its path. The parser bounds the depth."""
    if not isinstance(value, dict | list) or not value:
        yield path, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield from _list_fields(item, (*path, key))


def _is_equal_field(path: _Path, fields: _Fields, others: _Fields) -> bool:
    if path not in fields or path not in others:
        return False
    a, b = fields[path], others[path]
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return a == b
    if isinstance(a, str) and isinstance(b, str):
        return normalize_whitespace(a) == normalize_whitespace(b)
    return type(a) is type(b) and bool(a == b)


def _format_path(path: _Path) -> str:
    """`buyer.name`, `items[].price`; `(whole)` for an object without fields."""
    name = ""
    for part in path:
        name += "[]" if isinstance(part, int) else f"{'.' if name else ''}{part}"
    return name or "(whole)"
