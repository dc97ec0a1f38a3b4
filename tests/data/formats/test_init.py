import json
from pathlib import Path

import pytest

from lorgnette.data import read
from lorgnette.data.checks import data_report
from lorgnette.data.formats import EXPORTERS, FILE_FORMATS, RECORD_FORMATS, read_record
from lorgnette.data.row_location import RowLocation
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image


def test_pictures_beside_the_turns_tell_llavas_form_from_the_tutorials(place: RowLocation, cat: Image) -> None:
    said = {"conversations": [{"from": "user", "value": "<image>"}, {"from": "assistant", "value": "a"}]}
    [tutorial], [llava] = read_record(said, place), read_record(said | {"image": "cat.jpg"}, place)
    assert tutorial.turns[0].parts == ("<image>",)
    assert llava.turns[0].parts == (cat,)


@pytest.mark.parametrize("record", [{}, {"image": "a.jpg", "title": "x"}, {"messages": [], "conversations": []}])
def test_no_form_or_two(place: RowLocation, record: dict[str, object]) -> None:
    with pytest.raises(LorgnetteError) as caught:
        read_record(record, place)
    assert "'messages'" in (caught.value.hint or "")


def test_the_tables_agree() -> None:
    assert {export.suffix for export in EXPORTERS.values()} <= set(FILE_FORMATS)
    assert "messages" in RECORD_FORMATS


def test_the_real_files_are_read_or_refused_in_a_sentence(shared: Path) -> None:
    told = {}
    for path in sorted((shared / "formats").rglob("*.json*")):
        rows = list(read(path))
        assert len(rows) == 3
        told[path.name] = [None if isinstance(row, Example) else row.message for row in rows]
    web = ["a picture's path is an address, not a file: https://qianwen-res.oss-cn-beijing.aliyuncs.com/Qwen-VL/a…"]
    film = ["the row holds 'video'; only pictures and text can be learned from"]
    assert told == {
        "conversations.jsonl": [None] * 3,
        "sharegpt.jsonl": [None] * 3,
        "multi_modal_1.jsonl": [*web * 2, None],
        "multi_modal_2.jsonl": web * 3,
        "multi_modal_3.jsonl": web * 3,
        "single_images.json": [None] * 3,
        "video.json": film * 3,
    }
    single = shared / "formats" / "qwen-vl-finetune" / "single_images.json"
    assert "picture is missing" in data_report(read(single)).problems[0].what
    assert data_report(read(single, images_from=single.parent / "images")).usable == 3


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_a_name_where_there_are_no_parts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(json.dumps([]) if name == "a.json" else "image_path,caption\n")
    with pytest.raises(LorgnetteError, match="no parts with names"):
        list(read(tmp_path / name, name="val"))
