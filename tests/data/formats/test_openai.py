import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.data.formats import messages, openai
from lorgnette.data.image_resolver import Shelf
from lorgnette.data.rows import Place
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Picture, Turn


def made(*parts: str | Picture) -> Example:
    turns = (Turn("system", ("s",)), Turn("user", parts), Turn("assistant", ("yes",)))
    return Example("7", turns, Path("/data/a.csv"), 1)


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "jpeg"), ("png", "png"), ("webp", "webp"), ("gif", "gif")])
def test_pictures_are_in_the_record(picture: Callable[..., Path], tmp_path: Path, suffix: str, kind: str) -> None:
    path = picture(f"a.{suffix}")
    record = openai.embedded(openai.written(made("see ", Picture(path), "<image>?")))
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
                    {"type": "text", "text": "<image>?"},
                ],
            },
            {"role": "assistant", "content": "yes"},
        ]
    }
    place = Place(tmp_path / "b.jsonl", 1, 1, Shelf(tmp_path / "b.jsonl"))
    back = messages.example(record, place)
    assert [part for part in back.turns[1].parts if isinstance(part, str)] == ["see ", "<image>?"]
    assert back.pictures[0].path.read_bytes() == path.read_bytes()
    assert back.pictures[0].path.suffix == f".{suffix}"


def test_what_the_api_does_not_take(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.bmp")
    (tmp_path / "a.webp").write_bytes(b"RIFF....WAVE")
    for name in ("a.bmp", "a.webp"):
        with pytest.raises(LorgnetteError, match="JPEG, PNG, GIF and WebP only"):
            openai.written(made(Picture(tmp_path / name)))
    with pytest.raises(LorgnetteError, match="cannot be read"):
        openai.written(made(Picture(tmp_path / "gone.jpg")))
