import base64
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.data.formats import messages, openai
from lorgnette.data.image_resolver import ImageResolver
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Turn


def build_example(*parts: str | Image) -> Example:
    turns = (Turn("system", ("s",)), Turn("user", parts), Turn("assistant", ("yes",)))
    return Example("7", turns, Path("/data/a.csv"), 1)


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "jpeg"), ("png", "png"), ("webp", "webp"), ("gif", "gif")])
def test_images_are_embedded_in_the_record(
    make_image: Callable[..., Path], tmp_path: Path, suffix: str, kind: str
) -> None:
    path = make_image(f"a.{suffix}")
    record = openai.embed_images(openai.to_record(build_example("see ", Image(path), "<b>?")))
    assert record == {
        "messages": [
            {"role": "system", "content": "s"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see "},
                    {
                        "type": "image_url",
                        "image_url": {
                            "url": f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
                        },
                    },
                    {"type": "text", "text": "<b>?"},
                ],
            },
            {"role": "assistant", "content": "yes"},
        ]
    }
    location = RowLocation(tmp_path / "b.jsonl", 1, 1, ImageResolver(tmp_path / "b.jsonl"))
    restored = messages.read_record(record, location)
    assert [part for part in restored.turns[1].parts if isinstance(part, str)] == ["see ", "<b>?"]
    assert restored.images[0].path.read_bytes() == path.read_bytes()
    assert restored.images[0].path.suffix == f".{suffix}"


def test_an_answer_without_loss_has_no_weight(tmp_path: Path) -> None:
    turns = (Turn("user", ("q",)), Turn("assistant", ("no",), has_loss=False), Turn("user", ("q",)))
    example = Example("7", (*turns, Turn("assistant", ("a",))), tmp_path / "a.csv", 1)
    record = openai.to_record(example)
    assert [message.get("weight") for message in record["messages"]] == [None, 0, None, None]
    assert messages.read_record(record, RowLocation(tmp_path / "b.jsonl", 1, 1)).turns == example.turns


def test_other_image_formats_are_refused(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (2, 2)).save(tmp_path / "a.bmp")
    (tmp_path / "a.webp").write_bytes(b"RIFF....WAVE")
    for name in ("a.bmp", "a.webp"):
        with pytest.raises(LorgnetteError, match="only JPEG, PNG, GIF and WebP"):
            openai.to_record(build_example(Image(tmp_path / name)))
    with pytest.raises(LorgnetteError, match="cannot be read"):
        openai.to_record(build_example(Image(tmp_path / "gone.jpg")))
