"""A text as a metric compares it: words, normalized text, or LaTeX tokens.

Words are Penn Treebank tokens as coco-caption counts them, without Java: an imitation of Stanford CoreNLP 3.4.1's
PTBTokenizer with `-preserveLines -lowerCase`, without coco-caption's list of punctuation
(pycocoevalcap/tokenizer/ptbtokenizer.py). The rules follow the program's output, not its grammar; docs/metrics.md lists
the known differences. Chinese has no spaces: each Han character is a word, as in sacrebleu's `zh` tokenizer, and the
text between them is read as English. Kana and Hangul are not split.
"""

import re
import unicodedata

DROPPED_TOKENS = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""coco-caption's list. Its -LRB-, -RRB-, -LCB-, -RCB- never match: by then the tokens are lower case."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_BRACKET = re.compile(r"[][(){}]")
TOKEN_TO_BRACKET = {token: sign for sign, token in _BRACKETS.items()}
"""Bracket tokens and the characters they stand for."""

_REPLACEMENTS = str.maketrans(
    {
        **dict.fromkeys("“”„«»「」", " '' "), '"': " '' ",
        "£": " # ", "€": " $ ", "¢": " cents ", "…": " ... ", "–": " -- ", "—": " -- ",
        "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "\u00ad": "", "\u00a0": " ",
    }
)  # fmt: skip
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&apos;": "'", "&quot;": '"', "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))

# Abbreviations that keep their full stop; those of the second group only before a number.
_ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst att atty aug ave bhd bldg blvd brig bros calif capt cf cie cmdr "
    "co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs "
    "hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md mfg mich minn mlle mme mo mon "
    "mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof pt pte ptes pty ptys pvt "
    "rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs treas tue tues univ "
    "va vs vt wed wis wisc wm wyo"
).replace(" ", "|")
_NUMBER_ABBREVIATIONS = "art|ca|fig|figs|no|nos|op|pp|prop"

# Before one of these words, a letter with a full stop ends a sentence and is not an initial.
_SENTENCE_STARTERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once "
    "One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
).replace(" ", "|")
_SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "lemme": 3, "gimme": 3, "'tis": 2, "'twas": 2}
"""Two words written as one, and the length of the first."""

_L, _A = "[^\\W\\d_]\u0301?", "[^\\W_²³¹]\u0301?"  # a letter; a letter or digit
_PIECE = f"(?:{_L}(?:{_A})*(?:[.!?]{_L}(?:{_A})*)*|(?:{_A})+)"  # man · foo.jpg · a!b · 3x3
_WORD = f"(?:(?:{_A})+(?:_(?:{_A})+)+|{_PIECE})"
_SLASHED = f"(?:{_A})+(?:-(?:{_L})+)*(?:/(?:{_A})+(?:-(?:{_L})+)*){{1,2}}"  # and/or · 24/7
_HYPHENED = f"(?:{_A})(?:{_A}|[.,]){{0,40}}(?:-(?:{_A})+)+"  # up-to-date · 1,000-foot · u.s.-based
_APOSTROPHE, _QUOTE = "['’]", "['’‘‛`]"  # what begins a contraction; what may be inside a word
_CLITIC = r"(?:'(?i:s|re|ve|ll|d|m)(?!\w)|’(?i:s|re|ve|ll|d|m))"
_NOT = f"[nN]{_QUOTE}[tT]"
_NO_CLITIC = f"(?!{_APOSTROPHE}(?i:s|re|ve|ll|d|m)(?!\\w))"  # the word does not end in a contraction
# Words with an apostrophe that are one token: o'neal · n'sync · hawai'i · c'mon · cap'n · ol' · 'til.
# Those like hawai'i have a vowel before the apostrophe, and a vowel or a capital letter after it.
_APOSTROPHE_WORDS = (
    f"[dDoOlL]{_NO_CLITIC}{_QUOTE}(?:{_A}){{2,}}(?:-(?:{_A})+)*|[oO]{_QUOTE}[oO]",
    f"(?![IY])[A-Zn]{_NO_CLITIC}{_QUOTE}(?:{_L}){{2,}}",
    f"(?:{_L}){{2,}}(?<=[aeiouyAEIOUY]){_NO_CLITIC}{_QUOTE}[aeiouA-Z](?:{_L})*",
    r"(?i:nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)",
    f"(?i:cap){_APOSTROPHE}[nN]|[cC]{_APOSTROPHE}(?i:est)",
    f"(?:[lLdDjJ]|(?i:ol|dunkin|somethin)|[yY](?={_APOSTROPHE}{_L}))(?!{_APOSTROPHE}(?i:s|re|ve|ll|d|m)){_APOSTROPHE}",
    rf"'[nN](?:'|(?!\w))|’[nN]’?|{_APOSTROPHE}(?i:em|cause|till?)|{_APOSTROPHE}(?:[2-9]0s|\d\d(?= |\Z)(?! ''))",
)
_NUMBER = r"\d*(?:[.,:]\d+)+"

_TOKEN = re.compile(
    r" ?({})".format(
        "|".join(
            [
                r"[a-zA-Z]+(?!\S)",
                r"</?[a-zA-Z!?][^<>\s]*>|&\#\d+;",
                r"(?:https?://|www\.)[^\s\"<>()]*[^\s\"<>().,;:!?'-]|[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*|[@#][a-zA-Z_]\w*",
                r"[:;=]['-]?[()]|:[DP](?!\w)|>_<",
                f"(?i:{'|'.join(_SPLIT_WORDS)})(?!\\w)",
                *_APOSTROPHE_WORDS,
                f"{_CLITIC}|{_NOT}",
                rf"\d+-\d+/\d+(?!\w)|{_HYPHENED}|{_SLASHED}",
                rf"(?!\w\.(?:\Z| (?:{_SENTENCE_STARTERS})(?!\S)))(?:[a-zA-ZÀ-ÖØ-öø-ÿ]\.)+(?!{_L})|(?i:ph\.d)\.",
                f"(?i:{_ABBREVIATIONS})\\.(?!{_L})|(?i:{_NUMBER_ABBREVIATIONS})\\.(?= ?\\d)",
                r"[A-Z]+(?:&[A-Z]+)+(?!\w)",
                f"{_NUMBER}|[-+](?:{_NUMBER}|\\d+)(?!\\w)",
                f"(?:{_A}){{1,40}}?(?={_NOT})",
                f"{_WORD}\\.(?=[,;:])|{_WORD}",
                r"\.\.\.+|\. \. \.|--+|[?!]+|_+|\*+|''|``",
                r"[^\s\u200d\ufe0f\U00010000-\U0010ffff]",
            ]
        )
    )
)
"""Tried in this order: a plain word (nearly all are), tag, address, emoticon, word with an apostrophe, contraction,
compound, abbreviation, number, word, sign."""

_CONTRACTION = re.compile(f"{_CLITIC}|{_NOT}")
_PLAIN_QUOTES = str.maketrans("’‘‛", "'``")

_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_CHINESE_PUNCTUATION = re.compile(
    "[\u3000-\u3004\u3008-\u301f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff3d\uff5b-\uff65…—·“”‘’]+"
)
_LATEX = re.compile(r"\\[a-zA-Z]+|\\.|\S", re.DOTALL)


def tokenize_ptb(text: str) -> list[str]:
    """The tokens that coco-caption counts: lower case, contractions split, most punctuation dropped."""
    text = _ENTITY.sub(lambda match: _ENTITIES[match.group()], text).translate(_REPLACEMENTS)
    text = " ".join(text.split())
    tokens: list[str] = []
    for token in _TOKEN.findall(text):
        word = token.lower()
        # Quotation marks and contractions have plain apostrophes; other words keep the sign that is written.
        if len(word) == 1 or _CONTRACTION.fullmatch(word):
            word = word.translate(_PLAIN_QUOTES)
        if word in _SPLIT_WORDS:
            tokens += [word[: _SPLIT_WORDS[word]], word[_SPLIT_WORDS[word] :]]
        elif word[0].isalnum():
            tokens.append(word)
        elif word not in DROPPED_TOKENS and not word.startswith(("..", "--", ". ")):
            tokens.append(_BRACKET.sub(lambda match: _BRACKETS[match.group()], word))
    return tokens


def tokenize_words(text: str) -> list[str]:
    """The words of a caption, lower case, without punctuation. The script tells English from Chinese."""
    if not _HAN.search(text):
        return tokenize_ptb(text)
    return tokenize_ptb(_CHINESE_PUNCTUATION.sub(" ", _HAN.sub(r" \g<0> ", text)))


def normalize_whitespace(text: str) -> str:
    """The text in Unicode NFC, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def tokenize_latex(text: str) -> list[str]:
    """Commands (`\\frac`, `\\,`) and single characters; white space is dropped, except in `\\ `."""
    return _LATEX.findall(text)
