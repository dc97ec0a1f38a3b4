import pytest

from lorgnette.data import fields
from lorgnette.errors import LorgnetteError


@pytest.mark.parametrize("value", [None, 1, [], "half \ud83d"])
def test_a_value_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(LorgnetteError, match="the caption"):
        fields.require_string(value, "the caption")


def test_a_text_is_not_changed() -> None:
    for value in ("", " é\0<|im_end|>\r\n", "😀"):
        assert fields.require_string(value, "x") == value


@pytest.mark.parametrize("value", [None, {}, [1], [{}, "a"]])
def test_a_value_that_is_no_list_of_objects_is_refused(value: object) -> None:
    with pytest.raises(LorgnetteError, match="'turns'"):
        fields.require_objects(value, "'turns'")


def test_an_id_is_text_or_a_number_else_the_default() -> None:
    assert fields.read_id({}, "identity_3") == "identity_3"
    assert fields.read_id({"id": None}, "identity_3") == fields.read_id({"id": ""}, "identity_3") == "identity_3"
    assert fields.read_id({"id": 12}, "identity_3") == "12"
    assert fields.read_id({"id": "a b"}, "identity_3") == "a b"
    for value in (True, 1.5, []):
        with pytest.raises(LorgnetteError, match="id is"):
            fields.read_id({"id": value}, "identity_3")


def test_an_unread_key_with_content_is_named() -> None:
    record = {"id": 1, "video": None, "note": "x", "empty": " ", "list": [], "zero": 0, "no": False, "": "y"}
    assert fields.list_unread_keys(record, ("id",), prefix="a[].") == (
        "a[].note",
        "a[].zero",
        "a[].no",
        "a[].(no name)",
    )
    assert fields.list_unread_keys({"id": 1}, ("id",)) == ()


def test_an_unread_key_that_training_would_miss_is_refused() -> None:
    with pytest.raises(LorgnetteError, match="the turn has 'video'; only images and text are supported"):
        fields.list_unread_keys({"id": 1, "video": "a.mp4"}, ("id",), owner="the turn")
    for key in ("tools", "image", "bbox", "max_pixels", "Answer", " system", "rejected", "reasoning_content"):
        with pytest.raises(LorgnetteError, match=f"'{key}', which this format does not read · remove it, or use 'id'"):
            fields.check_row_keys({"id": 1, key: ["x"]}, ("id",))
        assert fields.check_row_keys({key: ["x"]}, ("id",), is_strict=False) == (key,)


@pytest.mark.parametrize(
    ("record", "is_learned"),
    [
        ({}, True),
        ({"label": "dog"}, True),
        ({"label": 0}, True),
        ({"label": True}, True),
        ({"kto_tag": "False"}, False),
    ],
)
def test_a_row_that_is_not_to_be_learned_is_refused(record: dict[str, object], is_learned: bool) -> None:
    if is_learned:
        fields.check_row_keys(record, ())
    else:
        with pytest.raises(LorgnetteError, match="marked as not to be learned"):
            fields.check_row_keys(record, ())


def test_equal_keys_share_a_tuple() -> None:
    keys = fields.join_keys(("a", "b"), ("b", "c"))
    assert keys == ("a", "b", "c")
    assert fields.join_keys(("a", "b"), ("b", "c")) is keys
