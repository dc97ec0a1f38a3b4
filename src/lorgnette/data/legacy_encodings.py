"""Decodes a text that is not Unicode, such as the CSV of an older Excel, if only one reading of it can be meant.

A reading is possible if every letter belongs to the alphabet of one language that the encoding is made for, words do
not mix scripts, and neither a capital nor a sign such as § follows a small letter. Two possible readings that differ,
or a text that may be Chinese, Japanese or Korean, are not decoded: a wrong letter would be trained.
"""

from itertools import pairwise

_NOT_AFTER_LETTERS = set("½¼¾×±§©¿¡")
_PUNCTUATION = _NOT_AFTER_LETTERS | set("“”„‘’‚‹›«»–—…•·€£¥°²³®™ªº\u00a0\u00ad")
_WESTERN = (
    "äöüß", "àâæçèéêëîïôùûüÿœ", "áéíñóúü", "àáâãçéêíóôõúü", "àèéìíîòóùú", "áäçèéêëíïóôöúü", "åäöéüà", "æøåéóôòâ",
    "äöåšž", "áðéíóúýþæö", "àçèéíïòóúü", "çë",
)  # fmt: skip
"""German, French, Spanish, Portuguese, Italian, Dutch, Swedish, Danish and Norwegian, Finnish, Icelandic, Catalan,
Albanian."""
_CENTRAL = ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţ", "čćđšž", "äöüß", "çë")
"""Polish, Czech, Slovak, Hungarian, Romanian, Croatian and Slovene, German, Albanian."""
_TURKISH = ("çğıöşüâîû\u0307",)
_BALTIC = ("ąčęėįšųūž", "āčēģīķļņšūž", "äöõüšž")
_CYRILLIC = (
    "абвгдежзийклмнопрстуфхцчшщъыьэюяё", "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя", "абвгдђежзијклљмнњопрстћуфхцчџш",
    "абвгдеёжзійклмнопрстуўфхцчшыьэюя",
)  # fmt: skip
_GREEK = ("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ",)
_ALPHABETS = {
    "cp1252": ("Windows-1252", _WESTERN), "cp1250": ("Windows-1250", _CENTRAL), "cp1254": ("Windows-1254", _TURKISH),
    "cp1257": ("Windows-1257", _BALTIC), "cp1251": ("Windows-1251", _CYRILLIC), "cp1253": ("Windows-1253", _GREEK),
    "mac_roman": ("Mac Roman", _WESTERN),
}  # fmt: skip
"""Python's codec → its name for people, and the alphabets of its languages."""
_EAST_ASIAN = ("gb18030", "cp932", "cp949", "big5")


def find_encoding(content: bytes) -> tuple[str, str] | None:
    """(Python's codec, its name for people) of the only possible reading; None if there is none, or more than one."""
    if not content.decode("utf-8", "ignore").isascii():  # damaged UTF-8
        return None
    readings: dict[str, tuple[str, str]] = {}
    for codec, (name, alphabets) in _ALPHABETS.items():
        text = _decode(content, codec)
        if text is not None and _is_possible(text, alphabets, is_latin=alphabets not in (_CYRILLIC, _GREEK)):
            readings.setdefault(text, (codec, name))
    if len(readings) != 1 or any(_is_east_asian(_decode(content, codec)) for codec in _EAST_ASIAN):
        return None
    return next(iter(readings.values()))


def _decode(content: bytes, codec: str) -> str | None:
    try:
        return content.decode(codec)
    except UnicodeDecodeError:
        return None


def _is_possible(text: str, alphabets: tuple[str, ...], *, is_latin: bool) -> bool:
    letters = {letter for letter in text.lower() if not letter.isascii()} - _PUNCTUATION
    if not any(letters <= set(alphabet) for alphabet in alphabets):
        return False
    for first, second in pairwise(text):
        if second.isupper() and not (first.isascii() and second.isascii()) and first.islower():
            return False
        if first.isalpha() and second in _NOT_AFTER_LETTERS:
            return False
        if not is_latin and first.isalpha() and second.isalpha() and first.isascii() != second.isascii():
            return False
    return True


def _is_east_asian(text: str | None) -> bool:
    """Whether letters that are not ASCII stand apart from those that are."""
    if text is None:
        return False
    return not any(a.isalpha() and b.isalpha() and a.isascii() != b.isascii() for a, b in pairwise(text))
