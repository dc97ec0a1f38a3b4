"""Text for terminals and shells: names and captions come from files, and may hold anything."""

import shlex

# ESC and the other control characters move the cursor, set titles or answer for the user; the last nine reorder text.
_CONTROLS = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS if chr(code) not in "\n\t"}


def escape_controls(text: str) -> str:
    """The text without control characters: `\\u001b` for ESC, as in JSON. Line feeds and tabs stay."""
    return text.translate(_ESCAPES)


def escape_line(text: str) -> str:
    """The text in one line: line feeds and tabs are escaped too."""
    return escape_controls(text).replace("\n", "\\n").replace("\t", "\\t")


def quote_word(word: object) -> str:
    """A word as it is typed in a shell (bash, zsh): `'my file.csv'`, `$'caf\\xe9'`."""
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escape_character, text)) + "'"


def format_command(*words: object) -> str:
    """The command `lorgnette WORD…` as it is typed in a shell, for hints and pages."""
    return " ".join(["lorgnette", *map(quote_word, words)])


def _escape_character(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if character in "\\'":
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{code:08x}"
