"""Words, normalized text, and LaTeX tokens."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.metrics import tokenizers

OFFICIAL_LINES = """
A dog's (big) ball, it's red -- isn't it? | a dog 's -lrb- big -rrb- ball it 's red is n't it
don't can't won't he'll I'm they've I'd who'd | do n't ca n't wo n't he 'll i 'm they 've i 'd who 'd
cannot gonna gotta wanna 'tis 'twas | can not gon na got ta wan na 't is 't was
don’t it’s dogs’ “a” «a» | do n't it 's dogs a a
dogs', dogs'. dog's' women's mens' | dogs dogs dog 's women 's mens
rock'n'roll rock 'n' roll ol' 'em 'til | rock 'n' roll rock 'n' roll ol' 'em 'til
o'neal's l'eau o'clock ma'am y'all salt 'n pepper | o'neal 's l'eau o'clock ma'am y' all salt 'n pepper
hawai'i Hawai'i's xi'an shi'ite co'op Sha'Carri AA'BB | hawai'i hawai'i 's xi'an shi'ite co'op sha'carri aa'bb
qur'an na'vi t'ai tai'chi a'a aB'cc muu'muu pa'i'ai | qur an na vi t ai tai chi a a ab cc muu muu pa'i ai
B'Gosh N'Sync n'est T'ai J'ai j'ai | b'gosh n'sync n'est t'ai j'ai j' ai
D'Angelo McD'Angelo o'o l'a | d'angelo mcd angelo o'o l' a
c'mon ev'ry li'l nat'l s'mores | c'mon ev'ry li'l nat'l s'mores
nor'easter e'er cap'n c'est cont'd | nor'easter e'er cap'n c'est cont 'd
don'ts DON'T couldn'tve WE'RE MARIA'S we’re don‘t | do n'ts do n't could n'tve we 're maria 's we 're do n`t
'empty' 'tilted' 'nice' ol'man somethin' nothin' y'know | 'em pty 'til ted nice ol man somethin' nothin y' know
o’clock hawai’i d’oeuvres hawai‘i hawai`i dog’s ’em | o’clock hawai’i d’oeuvres hawai‘i hawai`i dog 's ’em
5'10" '98. '98 '90s, hawai'i-based d'oeuvre-like | 5 10 98 '98 '90s hawai'i based d'oeuvre-like
'bout '70s '70's 70's 1990s' | bout '70s 70 's 70 's 1990s
Mr. Smith and Dr. Jones on Main St. at 5 p.m. | mr. smith and dr. jones on main st. at 5 p.m.
T.V. on a stand. W. a b. a. c | t.v. on a stand w. a b. a. c
in the U.S. a T.V. | in the u.s. a t.v.
5p.m. 5 p.m, ph.d. x | 5p m. 5 p.m ph.d. x
co. jr. ft. in. lbs. oz. no. x | co. jr. ft. in lbs oz no x
no. 5 no.5 no. a fig. 5 dr., x | no. 5 no. 5 no a fig. 5 dr. x
plan B. The end, plan B. foo | plan b the end plan b. foo
the lot., foo.; bar.: x. y | the lot. foo. bar. x. y
the man.The dog .The a!b a..b | the man.the dog the a!b a. b
d... e .... f .. g . . . h | d. e f g h
hello!!! what??? wow!? no! | hello !!! what ??? wow !? no
and/or his/her w/ w/o 1/2 24/7 3-1/2 he/she/it | and/or his/her w / w/o 1/2 24/7 3-1/2 he/she/it
well-known up-to-date x-ray -a a- well-, mother-in-law's | well-known up-to-date x-ray a a well mother-in-law 's
dog--cat dog – cat dog—cat dog---cat | dog cat dog cat dog cat dog cat
1,000.50 .5 -5 +3 5+5 2.0T 10% $5 £5 5¢ €10 #1 | 1,000.50 .5 -5 +3 5 +5 2.0 t 10 % $ 5 # 5 5 cents $ 10 # 1
10:15am 5pm 3x3 2x4s 1st 747s 6'2" 5'10 | 10:15 am 5pm 3x3 2x4s 1st 747s 6 2 5 '10
a,b a;b a:b a,1 1:1 eastern,t-shirt 1½ m² | a b a b a b a ,1 1:1 eastern,t-shirt 1 1/2 m ²
[a] {a} a(b)c 1) | -lsb- a -rsb- -lcb- a -rcb- a -lrb- b -rrb- c 1 -rrb-
:) :-) :( ;) <3 :/ | :-rrb- :--rrb- :-lrb- ;-rrb- < 3 /
& AT&T R&B a&b m&ms &amp; &#39; | & at&t r&b a & b m & ms & &#39;
a@b.com http://www.b.com/a www.foo.com. @home #tag | a@b.com http://www.b.com/a www.foo.com @home #tag
*star* **bold** <br> a_b _a img_01.jpg foo.jpg c:\\a | * star * ** bold ** <br> a_b _ a img_01 jpg foo.jpg c \\ a
café naïve Ünder 20°C ™ | café naïve ünder 20 ° c ™
犬が いる 😀 a😀b ❤️ | 犬が いる a b ❤
. |
""".replace("\\\\", "\\").strip("\n")
"""Texts and their tokens by CoreNLP 3.4.1's PTBTokenizer and coco-caption."""


@pytest.mark.parametrize("line", OFFICIAL_LINES.split("\n"))
def test_a_text_is_tokenized_as_by_the_official_program(line: str) -> None:
    text, _, official = line.partition(" |")
    assert tokenizers.tokenize_ptb(text) == official.split()


@pytest.mark.parametrize("case", ["fakecap_126", "odd_7"])
def test_tokens_of_official_data_sets(case: str, shared: Callable[[str], Path]) -> None:
    folder = shared("metrics") / case
    official = json.loads((folder / "ptb_tokenised.json").read_text(encoding="utf-8"))
    texts: dict[str, list[str]] = {}
    for annotation in json.loads((folder / "references.json").read_text(encoding="utf-8"))["annotations"]:
        texts.setdefault(str(annotation["image_id"]), []).append(
            " ".join(tokenizers.tokenize_ptb(annotation["caption"]))
        )
    assert texts == official["refs"]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert {str(r["image_id"]): [" ".join(tokenizers.tokenize_ptb(r["caption"]))] for r in results} == official["hyp"]


@given(st.text())
def test_tokens_have_no_white_space_and_no_capitals(text: str) -> None:
    for token in tokenizers.tokenize_ptb(text):
        assert token
        assert token == "".join(token.split()).lower()
        assert token not in tokenizers.DROPPED_TOKENS


@pytest.mark.parametrize("piece", ["a", "a,", "a.", "a-", "n'", "a/", "<", ".", "1,", "@a", "don't", "www.", ". ", " "])
def test_long_repetitions_are_tokenized_fast(piece: str) -> None:
    start = time.perf_counter()
    tokenizers.tokenize_ptb(piece * 2000)
    assert time.perf_counter() - start < 2


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
