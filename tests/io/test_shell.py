"""Control characters are escaped, and a command can be typed as it is printed."""

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.io.shell import escape_controls, format_command, quote_word


def test_control_characters_are_escaped_as_in_json() -> None:
    text = "a\x1b[2Jb\x07c\x00d\x9b31me\r\n\tf \u202eg\x7f图 é 😀"
    assert escape_controls(text) == ("a\\u001b[2Jb\\u0007c\\u0000d\\u009b31me\\u000d\n\tf \\u202eg\\u007f图 é 😀")


@given(st.text())
def test_no_text_controls_a_terminal(text: str) -> None:
    escaped = escape_controls(text)
    assert all(character.isprintable() or ord(character) > 0x9F or character in "\n\t" for character in escaped)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Cf", "Co", "Cn", "Zs"]), min_size=1))
def test_a_printable_word_is_one_word_of_the_shell(word: str) -> None:
    assert shlex.split(format_command("train", word)) == ["lorgnette", "train", word]


@pytest.mark.parametrize("word", ["runs/coco", "my run", "$(reboot)", "it's", "", "a;b", "\x1b[2J", "é\n'\\", "\u00a0"])
def test_bash_reads_the_word_back(word: str) -> None:
    command = ["bash", "-c", f"printf %s {quote_word(word)}"]
    result = subprocess.run(command, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert result.stdout.decode() == word


def test_a_name_that_is_not_utf8_is_quoted_as_bytes() -> None:
    result = subprocess.run(
        ["bash", "-c", f"printf %s {quote_word('caf' + chr(0xDCE9))}"], capture_output=True, check=True
    )
    assert result.stdout == b"caf\xe9"


def test_a_plain_command_has_no_quotes() -> None:
    assert format_command("train", "--resume", "runs/coco") == "lorgnette train --resume runs/coco"
