import pytest

from lorgnette.hub.rows import Choice, captions


@pytest.mark.parametrize(
    ("value", "joined", "found"),
    [
        ("a cat", None, ("a cat",)),
        (" a && b&&  && c ", "&&", ("a", "b", "c")),
        (r"x && y", None, ("x && y",)),
        (["a ", "", " b"], None, ("a", "b")),
        ([{"raw": "a", "tokens": ["a"]}, {"raw": "b"}], None, ("a", "b")),
        ({"caption": ["a", "b"], "text": "c"}, None, ("a", "b")),
        (None, None, ()),
        ("  ", None, ()),
        (3, None, ()),
        (b"bytes", None, ()),
        ([[["deep"]]], None, ("deep",)),
    ],
)
def test_texts_are_found_in_a_cell(value: object, joined: str | None, found: tuple[str, ...]) -> None:
    assert captions(value, joined=joined) == found


def test_a_choice_names_its_rows() -> None:
    assert list(Choice(first=3).numbers(10)) == [0, 1, 2]
    assert list(Choice(first=30).numbers(2)) == [0, 1]
    assert len(Choice().numbers(10)) == 10
    sample = Choice(sample=4, seed=1).numbers(10)
    assert len(set(sample)) == 4
    assert list(sample) == sorted(sample) == list(Choice(sample=4, seed=1).numbers(10))
    assert list(Choice(sample=40).numbers(5)) == [0, 1, 2, 3, 4]
    assert Choice(first=3).key == Choice(first=9).key == Choice().key
    assert Choice(sample=3).key != Choice(sample=4).key


def test_a_sample_is_fair() -> None:
    counts = [0] * 20
    for seed in range(400):
        for number in Choice(sample=5, seed=seed).numbers(20):
            counts[number] += 1
    assert 60 < min(counts) <= max(counts) < 140
