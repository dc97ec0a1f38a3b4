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
    assert fields.read_id({"id": None}, "identity_3") == "identity_3"
    assert fields.read_id({"id": 12}, "identity_3") == "12"
    assert fields.read_id({"id": "a b"}, "identity_3") == "a b"
    for value in (True, 1.5, []):
        with pytest.raises(LorgnetteError, match="id is"):
            fields.read_id({"id": value}, "identity_3")


def test_content_under_an_unread_key_is_refused() -> None:
    fields.reject_unread_keys({"id": 1, "video": None, "note": "x"}, ("id",), ("video", "tools"))
    with pytest.raises(LorgnetteError, match="'video'; only images and text are supported"):
        fields.reject_unread_keys({"id": 1, "video": "a.mp4"}, ("id",), ("video", "tools"))
    with pytest.raises(LorgnetteError, match="'tools', which this format does not read"):
        fields.reject_unread_keys({"id": 1, "tools": ["x"]}, ("id",), ("video", "tools"))
