import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.columns import Column, Pair, choose


def columns(**kinds: str) -> list[Column]:
    return [Column(name, kind) for name, kind in kinds.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("there", "image", "caption"),
    [
        ({"image": "picture", "caption": "text"}, "image", "caption"),
        ({"id": "text", "image": "picture", "question": "text", "answer": "texts"}, "image", "answer"),
        ({"thing": "bytes", "words": "text"}, "thing", "words"),
        ({"image": "picture", "mask": "picture", "text": "text"}, "image", "text"),
        ({"uniq_id": "text", "image_id": "text", "caption": "text", "image": "text"}, "image", "caption"),
        ({"coco_url": "text", "file_name": "text", "captions": "texts", "height": "other"}, "coco_url", "captions"),
        ({"file_name": "text", "text": "text"}, "file_name", "text"),
        ({"Image": "picture", "Caption": "text", "text": "text"}, "Image", "Caption"),
        ({"image": "picture", "filename": "text", "sentences_raw": "texts", "clip": "text"}, "image", "sentences_raw"),
    ],
)
def test_columns_are_found(there: dict[str, str], image: str, caption: str) -> None:
    assert choose(columns(**there), image=None, caption=None, where="x") == Pair(image, caption)


@pytest.mark.parametrize(
    ("there", "option"),
    [
        ({"left": "picture", "right": "picture", "caption": "text"}, "image"),
        ({"image": "picture", "en": "text", "zh": "text"}, "caption"),
        ({"image": "picture", "n": "other"}, "caption"),
        ({"caption": "text"}, "image"),
        ({"image": "picture", "caption": "text", "captions": "texts"}, "caption"),
    ],
)
def test_in_doubt_all_columns_are_listed(there: dict[str, str], option: str) -> None:
    with pytest.raises(LorgnetteError, match=f"--{option}-column") as caught:
        choose(columns(**there), image=None, caption=None, where="x")
    assert all(f"{name} ({kind})" in str(caught.value) for name, kind in there.items())


def test_what_is_asked_for_wins() -> None:
    there = columns(left="picture", right="picture", en="text", zh="text")
    assert choose(there, image="right", caption="zh", where="x") == Pair("right", "zh")
    with pytest.raises(LorgnetteError, match="there is no column 'centre'; there are left"):
        choose(there, image="centre", caption="zh", where="x")
