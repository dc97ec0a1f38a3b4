"""`settings`: prints the settings, or those that match a word, with their defaults, meanings and other names."""

import difflib
import re
from collections.abc import Iterator, Sequence

from lorgnette import config
from lorgnette.errors import UsageError
from lorgnette.io.shell import quote_word
from lorgnette.report.console import Terminal
from lorgnette.synonyms import DIFFERENCES, SYNONYMS, TABLE, Synonym, find_settings, normalize


def list_settings(word: str | None = None) -> list[str]:
    """Print settings on standard output; returns their names.

    word: part of a name or a meaning, or another trainer's word; None: all. Raises UsageError if nothing matches.
    """
    names = config.list_settings()
    matches, synonyms = (names, []) if word is None else _search(word, names)
    if not matches and not synonyms:
        nearest = suggest_settings(word or "", names)
        hint = f"nearest: {', '.join(nearest)}" if nearest else "`lorgnette settings` lists all"
        raise UsageError("no setting matches", where=quote_word(word or ""), hint=hint)
    terminal = Terminal()
    for line in _format_settings(matches, with_words=word is not None):
        terminal.print_result(line)
    for other in synonyms:
        terminal.print_result(_format_synonym(other))
    return matches


def suggest_settings(word: str, names: Sequence[str]) -> list[str]:
    """The settings whose names are like a word, else those with most of its parts in name and meaning; the best 3."""
    known = [(name.rpartition(".")[2], name) for name in names]
    known += [(other, synonym.setting) for other, synonym in SYNONYMS.items() if synonym.kind == "accepted"]
    squeezed: dict[str, list[str]] = {}
    for other, name in known:
        squeezed.setdefault(other.replace("_", ""), []).append(name)
    parts = re.findall(r"[a-z]{3,}", word.lower())
    close = difflib.get_close_matches("".join(re.findall(r"[a-z0-9]+", word.lower())), squeezed, n=3, cutoff=0.75)
    if close or not parts:
        return list(dict.fromkeys(name for match in close for name in squeezed[match]))
    texts = {name: f"{name} {config.describe_setting(name)[1]}".lower() for name in names}
    counts = {name: sum(part.removesuffix("s") in text for part in parts) for name, text in texts.items()}
    best = max(counts.values())
    return [name for name, count in counts.items() if count == best][:3] if best else []


def _search(word: str, names: list[str]) -> tuple[list[str], list[Synonym]]:
    """(settings, words of other trainers) that match."""
    name = normalize(word)
    if name in SYNONYMS:
        synonym = SYNONYMS[name]
        return [setting for setting in names if setting == synonym.setting], [synonym]
    if name in names:
        return [name], []
    meanings = {setting: config.describe_setting(setting)[1].lower() for setting in names}
    found = [s for s in names if name.replace(" ", "_") in s or word.lower() in meanings[s]]
    synonyms = [synonym for synonym in TABLE if any(name in other for other in synonym.words)]
    return list(dict.fromkeys([*find_settings(word, names), *found])), synonyms


def _format_settings(names: list[str], *, with_words: bool) -> Iterator[str]:
    width = max(map(len, names), default=0)
    for name in names:
        default, meaning = config.describe_setting(name)
        yield f"{name:{width}}  {default}  {meaning}"
        if not with_words:
            continue
        synonyms = [synonym for synonym in TABLE if synonym.setting == name and synonym.kind == "accepted"]
        words = [word for synonym in synonyms for word in synonym.words if word != name.rpartition(".")[2]]
        if words:
            yield f"{'':{width}}  also: {', '.join(words)}"
        if name in DIFFERENCES:
            yield f"{'':{width}}  {DIFFERENCES[name]}"


def _format_synonym(synonym: Synonym) -> str:
    words = ", ".join(synonym.words)
    tools = ", ".join(synonym.tools)
    if synonym.kind == "accepted":
        return f"{words} ({tools}) → {synonym.setting}{f': {synonym.meaning}' if synonym.meaning else ''}"
    state = "nothing to set" if synonym.kind == "needless" else "no counterpart"
    return f"{words} ({tools}): {state}; {synonym.meaning}"
