import pytest

from lorgnette.data.legacy_encodings import find_encoding

WESTERN = (
    "image;text\r\nbär.jpg;Die Hündin läuft über die Straße\r\n",
    "Un café près de la forêt, à côté d’un garçon\n",
    "un été\n",
    "el niño pequeño está aquí\n",
    "la città è più bella\n",
    "o cão não está no coração\n",
    "en pojke på en häst, två små öar\n",
    "en pige på en blå sø\n",
)
OTHERS = {
    "cp1250": (
        "żółta łódź, mały pies i dziewczyna stoją\n",
        "malý pes běží přes louku\n",
        "egy őrült kutya, kék ég és fű\n",
    ),
    "cp1251": ("Собака бежит по траве, моя кошка\n",),
    "cp1253": ("Ένας σκύλος τρέχει στο γρασίδι\n",),
    "cp1254": ("kırmızı araba ağaçlı yolda, küçük şehir\n",),
    "cp1257": ("Šuo bėga per žolę į mišką\n", "Suns skrien pa pļavu, bērns ķer ģitāru\n"),
}


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        *(("cp1252", text) for text in WESTERN),
        *(("mac_roman", text) for text in WESTERN if text != "un été\n"),
        *((codec, text) for codec, texts in OTHERS.items() for text in texts),
    ],
)
def test_the_only_possible_reading_is_found(codec: str, text: str) -> None:
    found = find_encoding(text.encode(codec))
    assert found is not None
    assert text.encode(codec).decode(found[0]) == text


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("cp1252", "la mère et le père\n"),  # in Czech: mčre
        ("gb18030", "a.jpg,一只猫在沙发上\n"),
        ("big5", "a.jpg,一隻貓在沙發上\n"),
        ("cp932", "a.jpg,ソファの上の猫\n"),
        ("cp949", "a.jpg,소파 위의 고양이\n"),
        ("mac_latin2", "żółta łódź, mały pies i dziewczyna stoją\n"),
        ("cp1252", "no alphabet has ð and ø and ß\n"),
    ],
)
def test_in_doubt_nothing_is_decoded(codec: str, text: str) -> None:
    assert find_encoding(text.encode(codec)) is None


def test_damaged_utf8_is_no_other_encoding() -> None:
    assert find_encoding("à la carte ".encode() + b"\xe0 la") is None
