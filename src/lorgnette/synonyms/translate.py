"""Entries of recipes and command lines → settings, with a line for every word that is not a setting's full name."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lorgnette.errors import UsageError
from lorgnette.io.parse import shorten
from lorgnette.io.shell import format_command
from lorgnette.synonyms.table import CLASHES, OTHER_VALUES, OWN_NAMES, SYNONYMS, VALUES
from lorgnette.synonyms.values import NoCounterpartError, Translation, format_value, is_empty, parse_value

_NOTHING = ": nothing to set; "
COMMAND_LINE = "command line"
"""The source of words on the command line."""


def normalize(word: str) -> str:
    """A word as the table has it: `--per-device-train-batch-size` is `per_device_train_batch_size`."""
    return word.strip().lstrip("-").replace("-", "_").lower()


class Entry(NamedTuple):
    """A setting as written: in a recipe, as an argument or on the command line."""

    key: str
    value: Any
    source: str


class Assignment(NamedTuple):
    """A setting, its value and where it comes from. position: of its entry; written: the word there."""

    position: int
    setting: str
    value: Any
    source: str
    written: str


class Problem(NamedTuple):
    """An entry that cannot be used. words: those of another trainer that can be left out of a file."""

    message: str
    source: str
    hint: str
    words: tuple[str, ...] = ()


def find_settings(word: str, names: Collection[str]) -> list[str]:
    """The settings that a word names: one of `names`, or the end of some; none if it is unknown."""
    name = OWN_NAMES.get(normalize(word), normalize(word))
    return [name] if name in names else [setting for setting in names if setting.endswith(f".{name}")]


def translate(entries: Sequence[Entry], names: Collection[str]) -> tuple[list[Assignment], list[str]]:
    """What the entries set, in order, and a line for each word that is not a setting's full name.

    names: all settings. Of one setting the later entry wins, and the earlier is not looked at. Raises one UsageError
    that names every entry that cannot be used.
    """
    own: list[Assignment] = []
    foreign: dict[str, dict[str, tuple[int, Entry]]] = {}  # group → canonical word → its last entry
    problems: list[Problem] = []
    remarks: list[tuple[int, str]] = []
    # A file that another trainer wrote has all its words; null is what is not used.
    peers = {entry.source for entry in entries if normalize(entry.key) in SYNONYMS and entry.key not in names}
    for index, entry in enumerate(entries):
        synonym = None if entry.key in names else SYNONYMS.get(normalize(entry.key))
        if synonym is not None:
            group = foreign.setdefault(synonym.group, {})
            _check_one_spelling(group.get(synonym.words[0]), entry, problems)
            group[synonym.words[0]] = index, entry
            continue
        matches = [entry.key] if entry.key in names else find_settings(entry.key, names)
        if not matches and is_empty(entry.value) and entry.source in peers:
            remarks.append((index, f"{entry.key}={format_value(entry.value) or '[]'}{_NOTHING}it is unknown"))
            continue
        if len(matches) != 1 or (entry.key == "data" and not isinstance(entry.value, str | Path)):
            problems.append(_explain_unknown(entry, matches, names))
            continue
        own.append(Assignment(index, matches[0], entry.value, entry.source, entry.key))
        if entry.key not in (matches[0], "data"):
            remarks.append((index, f"{entry.key} → {matches[0]}"))
    # Last the words that mean nothing without another setting.
    for words in sorted(foreign.values(), key=lambda words: bool(SYNONYMS[next(iter(words))].needs)):
        _translate_group(words, own, problems, remarks)
    assignments = [_translate_value(assignment, remarks) for assignment in sorted(own)]
    _check_agreement(assignments, problems)
    problems += _find_other_values(assignments)
    remarks += _find_clashes(own, {entry.source for words in foreign.values() for _, entry in words.values()})
    if problems:
        raise _build_error(problems)
    return assignments, _join_lines(line for _, line in sorted(remarks) if line)


def _join_lines(lines: Iterable[str]) -> list[str]:
    """Words for which nothing is to set for the same reason are in one line, at the place of the first."""
    words: dict[str, list[str]] = {}
    for line in lines:
        written, is_needless, reason = line.partition(_NOTHING)
        words.setdefault(f"{_NOTHING}{reason}" if is_needless else line, []).append(written)
    return [", ".join(written) + end if end.startswith(_NOTHING) else end for end, written in words.items()]


def _translate_group(
    words: Mapping[str, tuple[int, Entry]],
    assignments: list[Assignment],
    problems: list[Problem],
    remarks: list[tuple[int, str]],
) -> None:
    """Translate the words of one group, unless a later source sets the same setting by its own name."""
    values = {word: parse_value(entry.value) for word, (_, entry) in words.items()}
    values = {word: value for word, value in values.items() if not is_empty(value)}
    if not values:
        remarks += _explain_null(words, assignments)
        return
    index, last = max(words[word] for word in values)
    synonym = SYNONYMS[next(iter(values))]
    if any(other.setting == synonym.setting and other.position > index and other.source != last.source
           for other in assignments):  # fmt: skip
        return
    if synonym.needs and not _is_set(synonym.needs, assignments):
        translation = Translation((), f"write {synonym.needs}=nf4 for 4 bits")
        remarks.append((index, _describe([words[word][1] for word in values], translation)))
        return
    try:
        translation = synonym.translate(values)
    except NoCounterpartError as error:
        written = ", ".join(f"{words[word][1].key}={shorten(format_value(words[word][1].value))}" for word in values)
        keys = tuple(words[word][1].key for word in values)
        problems.append(Problem(f"{written}: {error.reason}", last.source, error.hint, keys))
        return
    line = _describe([words[word][1] for word in values], translation)
    remarks.append((index, line))
    written = words[next(iter(values))][1].key
    assignments += [Assignment(index, *pair, last.source, written) for pair in translation.settings]


def _explain_null(
    words: Mapping[str, tuple[int, Entry]], assignments: Iterable[Assignment]
) -> Iterator[tuple[int, str]]:
    """null leaves a word out; it does not undo what an earlier source sets by another word."""
    index, last = max(words.values())
    setting = SYNONYMS[next(iter(words))].setting
    earlier = [each for each in assignments if each.setting == setting and each.position < index]
    if earlier and earlier[-1].source != last.source:
        note = f"{earlier[-1].written} stands in {earlier[-1].source}: write {setting}=null"
        yield index, _describe([last], Translation((), note))


def _is_set(setting: str, assignments: Iterable[Assignment]) -> bool:
    """Whether the last of them gives it a value that is not null."""
    last = max((each for each in assignments if each.setting == setting), key=lambda each: each.position, default=None)
    return last is not None and not is_empty(parse_value(last.value))


def _find_other_values(assignments: Iterable[Assignment]) -> Iterator[Problem]:
    """Values that are explained better here than as values that do not fit the setting."""
    for assignment in assignments:
        setting, value = assignment.setting, parse_value(assignment.value)
        if setting in OTHER_VALUES and not is_empty(value) and value not in VALUES[setting].values():
            reason, hint = OTHER_VALUES[setting]
            yield Problem(f"{setting}={shorten(format_value(value))}: {reason}", assignment.source, hint)


def _describe(entries: Sequence[Entry], translation: Translation) -> str:
    """`lr=1e-4 → train.learning_rate`; "" for a value that asks nothing."""
    written = [f"{entry.key}={shorten(format_value(entry.value))}" for entry in entries]
    if not translation.settings:
        return translation.note and f"{', '.join(written)}{_NOTHING}{translation.note}"
    values = [parse_value(entry.value) for entry in entries] if len(entries) == 1 else []
    results = (
        setting if value in values else f"{setting}={format_value(value)}" for setting, value in translation.settings
    )
    note = f" ({translation.note})" if translation.note else ""
    return f"{', '.join(written)} → {', '.join(results)}{note}"


def _translate_value(assignment: Assignment, remarks: list[tuple[int, str]]) -> Assignment:
    """Another trainer's value of a setting → ours."""
    names = VALUES.get(assignment.setting, {})
    name = str(assignment.value).lower().removeprefix("torch.")
    if not isinstance(assignment.value, str) or names.get(name, assignment.value) == assignment.value:
        return assignment
    remarks.append((assignment.position, f"{assignment.setting}={assignment.value} → {format_value(names[name])}"))
    return assignment._replace(value=names[name])


def _check_one_spelling(earlier: tuple[int, Entry] | None, entry: Entry, problems: list[Problem]) -> None:
    """A recipe must not write one word in two ways with two values."""
    if earlier is None or earlier[1].source != entry.source or entry.source == COMMAND_LINE:
        return
    if earlier[1].key != entry.key and earlier[1].value != entry.value:
        message = f"{earlier[1].key} and {entry.key} mean the same and differ"
        problems.append(Problem(message, entry.source, "write one of them"))


def _check_agreement(assignments: Iterable[Assignment], problems: list[Problem]) -> None:
    """A recipe must not set one setting by two words to two values; on the command line the later one wins."""
    last: dict[str, Assignment] = {}
    for assignment in assignments:
        if assignment.source == COMMAND_LINE:
            continue
        earlier = last.get(assignment.setting)
        is_same = earlier is None or format_value(earlier.value) == format_value(assignment.value)
        if earlier and not is_same and earlier.source == assignment.source and earlier.written != assignment.written:
            message = f"{earlier.written} and {assignment.written} both set {assignment.setting}"
            problems.append(Problem(message, assignment.source, "write one of them"))
        last[assignment.setting] = assignment


def _find_clashes(own: Iterable[Assignment], sources: Collection[str]) -> Iterator[tuple[int, str]]:
    """What differs for a setting of the same name, in a source that has other trainers' words too."""
    for assignment in own:
        if assignment.source in sources and assignment.written == assignment.setting in CLASHES:
            yield assignment.position, f"{assignment.setting}: {CLASHES[assignment.setting]}"


def _explain_unknown(entry: Entry, matches: Sequence[str], names: Collection[str]) -> Problem:
    if matches and entry.key != "data":
        return Problem(f"{entry.key} can be several settings", entry.source, f"write {' or '.join(matches)}")
    word = normalize(entry.key)
    section, _, field = word.rpartition(".")
    known = {name: name for name in names} | {name.rpartition(".")[2]: name for name in names}
    known |= {name: synonym.setting for name, synonym in SYNONYMS.items() if synonym.kind == "accepted"}
    for typed in (word, field):
        if nearest := difflib.get_close_matches(typed, known, n=1, cutoff=0.8):
            return Problem(f"unknown setting {entry.key}", entry.source, f"did you mean {known[nearest[0]]}?")
    is_section = any(name.startswith(f"{section or word}.") for name in names)
    words = [section or word] if is_section else []
    hint = f"`{format_command('settings', *words)}` lists what there is"
    return Problem(f"unknown setting {entry.key}", entry.source, hint)


def _build_error(problems: Sequence[Problem]) -> UsageError:
    if len(problems) == 1:
        [(message, source, hint, words)] = problems
        if words and source not in (COMMAND_LINE, "arguments"):
            hint = f"{hint}; or leave it out: {' '.join(f'{word}=null' for word in words)} behind the recipe"
        return UsageError(message, where=source, hint=hint)
    facts = "; ".join(f"{message} ({hint})" for message, _, hint, _ in problems)
    sources = ", ".join(dict.fromkeys(source for _, source, _, _ in problems))
    hint = "change each, or leave it out: WORD=null on the command line"
    return UsageError(f"{len(problems)} settings do not fit: {facts}", where=sources, hint=hint)
