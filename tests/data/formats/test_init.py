import json
from pathlib import Path

import pytest

from lorgnette.data import check_rows, read
from lorgnette.data.formats import EXPORTERS, FILE_FORMATS, RECORD_FORMATS, read_record
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image


def test_images_beside_the_turns_mark_llavas_format(location: RowLocation, cat: Image) -> None:
    def build_record(question: str) -> dict[str, object]:
        return {"conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": "a"}]}

    [tutorial] = read_record(build_record("what? <|vision_start|>cat.jpg<|vision_end|>"), location)
    [llava] = read_record(build_record("<image>what?") | {"image": "cat.jpg"}, location)
    assert tutorial.turns[0].parts == llava.turns[0].parts == (cat, "what?")
    with pytest.raises(LorgnetteError, match="1 × <image> in the user's text, but 0"):
        read_record(build_record("<image>what?"), location)


@pytest.mark.parametrize("record", [{}, {"messages": [], "conversations": []}])
def test_a_record_must_have_exactly_one_format(location: RowLocation, record: dict[str, object]) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_record(record, location)
    assert "'messages'" in (caught.value.hint or "")


def test_every_exported_suffix_can_be_read() -> None:
    assert {exporter.suffix for exporter in EXPORTERS.values()} <= set(FILE_FORMATS)
    assert "messages" in RECORD_FORMATS


def test_the_real_files_are_read_or_refused_with_a_reason(shared: Path) -> None:
    messages = {}
    for path in sorted((shared / "formats").rglob("*.json*")):
        rows = list(read(path))
        assert len(rows) == 3
        messages[path.name] = [None if isinstance(row, Example) else row.message for row in rows]
    url = ["an image path is a URL, not a file: https://qianwen-res.oss-cn-beijing.aliyuncs.com/Qwen-VL/a…"]
    video = ["the row has 'video'; only images and text are supported"]
    assert messages == {
        "conversations.jsonl": [None] * 3,
        "sharegpt.jsonl": [None] * 3,
        "multi_modal_1.jsonl": [*url * 2, None],
        "multi_modal_2.jsonl": url * 3,
        "multi_modal_3.jsonl": url * 3,
        "single_images.json": [None] * 3,
        "video.json": video * 3,
    }
    single = shared / "formats" / "qwen-vl-finetune" / "single_images.json"
    assert "image is missing" in check_rows(read(single)).problems[0].message
    assert check_rows(read(single, images_from=single.parent / "images")).num_usable == 3


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_name_is_refused_for_a_file_without_parts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps([]) if name == "a.json" else "image_path,caption\n")
    with pytest.raises(LorgnetteError, match="no named parts"):
        list(read(tmp_path / name, name="val"))
