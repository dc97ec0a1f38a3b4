"""Words, normalized text, and LaTeX tokens."""

import pytest

from lorgnette.metrics import tokenizers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's ball.", ["a", "dog", "'s", "ball"]),
        ("一只猫在沙发上。", ["一", "只", "猫", "在", "沙", "发", "上"]),
        ("穿T恤的人，拿着 iPhone 15！", ["穿", "t", "恤", "的", "人", "拿", "着", "iphone", "15"]),
        ("“图”（左）", ["图", "左"]),
        ("犬 が いる", ["犬", "が", "いる"]),
        ("", []),
    ],
)
def test_words_of_english_and_characters_of_chinese(text: str, words: list[str]) -> None:
    assert tokenizers.tokenize_words(text) == words


def test_white_space_is_normalized() -> None:
    assert tokenizers.normalize_whitespace("  a\n\tb  e\u0301\u3000c ") == "a b \u00e9 c"


@pytest.mark.parametrize(
    ("formula", "tokens"),
    [
        (r"\frac {a} {b}", [r"\frac", "{", "a", "}", "{", "b", "}"]),
        (r"x^{2}\,\alpha_1 \\ y", ["x", "^", "{", "2", "}", r"\,", r"\alpha", "_", "1", r"\\", "y"]),
        (r"\alpha b", [r"\alpha", "b"]),
        (r"\alphab", [r"\alphab"]),
        ("a\\ b", ["a", "\\ ", "b"]),
        ("\\", ["\\"]),
        ("", []),
    ],
)
def test_latex_tokens_are_commands_and_characters(formula: str, tokens: list[str]) -> None:
    assert tokenizers.tokenize_latex(formula) == tokens
