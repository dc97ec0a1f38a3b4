import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lorgnette.data import EXPORTERS, ExportFormat, prepare, read
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example


def content(path: Path) -> list[tuple[str, object]]:
    """What a file says, whatever line it stands on."""
    rows = list(read(path))
    assert all(isinstance(row, Example) for row in rows)
    return [(row.id, row.turns) for row in rows if isinstance(row, Example)]


@pytest.fixture
def captions(picture: Callable[..., Path], table: Callable[..., Path]) -> Path:
    for i in range(6):
        picture(f"images/{i}.png", colour=(i, 0, 0))
    return table([(f"images/{i}.png", f"caption, {i}") for i in range(6)])


def test_the_tutorials_files(captions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = prepare(captions, out, holdout=4)
    assert sorted(path.name for path in out.iterdir()) == [
        "data_vl.json",
        "data_vl_test.json",
        "data_vl_train.json",
    ]
    assert (made.num_train, made.num_test, made.num_shared_images, made.num_trimmed, made.problems) == (2, 4, 0, 0, ())
    everything = json.loads(made.all_path.read_text(encoding="utf-8"))
    assert everything[0] == {
        "id": "identity_1",
        "conversations": [
            {"from": "user", "value": f"COCO Yes: <|vision_start|>{tmp_path}/images/0.png<|vision_end|>"},
            {"from": "assistant", "value": "caption, 0"},
        ],
    }
    train, test = (json.loads(path.read_text(encoding="utf-8")) for path in (made.train_path, made.test_path))
    assert train + test == everything
    assert content(made.all_path) == content(captions)


def test_a_picture_never_stands_in_both_parts_unless_asked(
    picture: Callable[..., Path], table: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("a.png", "copy_of_a.png"):
        picture(name)
    picture("b.png", colour=(0, 0, 9))
    path = table([("a.png", "1"), ("b.png", "2"), ("b.png", "3"), ("copy_of_a.png", "4")])
    made = prepare(path, tmp_path / "picture", holdout=1)
    assert (made.num_test, made.num_shared_images) == (2, 0)
    made = prepare(path, tmp_path / "tail", holdout=1, split="tail")
    assert (made.num_test, made.num_shared_images) == (1, 1)


def test_the_same_call_again_changes_nothing(captions: Path, tmp_path: Path) -> None:
    made = prepare(captions, tmp_path)
    before = [path.stat().st_mtime_ns for path in (made.all_path, made.train_path, made.test_path)]
    assert prepare(captions, tmp_path) == made
    assert [path.stat().st_mtime_ns for path in (made.all_path, made.train_path, made.test_path)] == before
    assert prepare(made.all_path, tmp_path) == made


@pytest.mark.parametrize("standing", ["[]", "not json", "\udcff"])
def test_other_files_are_not_overwritten(captions: Path, tmp_path: Path, standing: str) -> None:
    other = tmp_path / "out" / "data_vl_test.json"
    other.parent.mkdir()
    other.write_bytes(standing.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        prepare(captions, other.parent)
    assert str(other) in (caught.value.where or "")
    assert "data_vl_train" not in (caught.value.where or "")
    assert list(other.parent.iterdir()) == [other]


def test_a_file_in_the_folders_place(captions: Path) -> None:
    with pytest.raises(LorgnetteError):
        prepare(captions, captions)


def test_rows_prompt_and_holdout(captions: Path, tmp_path: Path) -> None:
    made = prepare(captions, tmp_path, prompt="What is it?", max_rows=3, holdout=1)
    assert (made.num_train, made.num_test) == (2, 1)
    assert content(made.all_path) == [
        (row.id, row.turns) for row in read(captions, prompt="What is it?", max_rows=3) if isinstance(row, Example)
    ]
    with pytest.raises(UsageError, match="6 usable rows"):
        prepare(captions, tmp_path / "b", holdout=6)
    assert not (tmp_path / "b").exists()
    assert prepare(captions, tmp_path / "c", holdout=0).test_path.read_text() == "[]\n"


def test_broken_rows_stop_it_or_are_left_out_by_name(
    captions: Path, table: Callable[..., Path], tmp_path: Path
) -> None:
    path = table([("images/0.png", "x"), ("gone.png", "x"), ("images/1.png", ""), ("images/2.png", "x")], "b.csv")
    with pytest.raises(LorgnetteError, match="2 of 4 rows"):
        prepare(path, tmp_path / "out", holdout=1)
    assert not (tmp_path / "out").exists()
    made = prepare(path, tmp_path / "out", holdout=1, on_bad_row="skip")
    assert [problem.row for problem in made.problems] == [3, 4]
    assert [id_ for id_, _ in content(made.all_path)] == ["identity_1", "identity_4"]


def test_messages_become_conversations_where_they_can(captions: Path, tmp_path: Path) -> None:
    def row(user: str, *images: int) -> str:
        said = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": user},
            {"role": "assistant", "content": "a\n"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "<|vision_start|>"},
        ]
        return json.dumps({"messages": said, "images": [f"images/{i}.png" for i in images]})

    path = tmp_path / "m.jsonl"
    lines = [row("<image> and <image>\n", 0, 1), row("<image>\nwhat?", 2), row("x <image>", 3), row("<|vision_end|>")]
    path.write_text("\n".join(lines), encoding="utf-8")
    made = prepare(path, tmp_path / "out", holdout=1, on_bad_row="skip")
    assert made.num_trimmed == 1
    assert [problem.row for problem in made.problems] == [3, 4]
    assert "before a lone picture" in made.problems[0].message
    first, second = (row for row in read(path, max_rows=2) if isinstance(row, Example))
    (_, turns), (_, tidied) = content(made.all_path)
    assert turns == first.turns
    assert tidied != second.turns


NASTY = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['"', "a\r\nb", "<|im_end|>", "<|vision_start|>/etc/passwd<|vision_end|>", "😀\u2028", "\x1f\x85", "\\u0041", ","]
)


@given(st.lists(NASTY.filter(lambda text: text.strip() and "\0" not in text), min_size=1, max_size=6))
@settings(deadline=None, max_examples=50)
def test_csv_to_json_and_back_keeps_every_character(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (2, 2)).save(folder / 'a "b", c.png')
        path = folder / "c.csv"
        quoted = [f'"a ""b"", c.png","{text.replace(chr(34), chr(34) * 2)}"\r\n' for text in texts]
        path.write_bytes(("image_path,caption\r\n" + "".join(quoted)).encode())
        made = prepare(path, folder / "out", holdout=0)
        assert content(made.all_path) == content(path)
        assert [row.reference for row in read(made.all_path) if isinstance(row, Example)] == texts


@pytest.mark.parametrize("to", ["csv", "llava", "llama-factory", "swift", "openai"])
def test_other_forms(captions: Path, tmp_path: Path, to: ExportFormat) -> None:
    made = prepare(captions, tmp_path / "out", export_format=to, holdout=2)
    suffix = EXPORTERS[to].suffix
    assert [path.name for path in (made.all_path, made.train_path, made.test_path)] == [
        f"data_vl{part}{suffix}" for part in ("", "_train", "_test")
    ]
    assert (made.num_train, made.num_test, made.num_trimmed) == (4, 2, 0)
    texts = [row.reference for row in read(captions) if isinstance(row, Example)]
    assert [row.reference for row in read(made.all_path) if isinstance(row, Example)] == texts
    assert [row.reference for row in read(made.train_path) if isinstance(row, Example)] == texts[:4]
    if to == "llama-factory":
        info = tmp_path / "out" / "dataset_info.json"
        assert [row.reference for row in read(info, name="data_vl_test") if isinstance(row, Example)] == texts[4:]
    assert prepare(captions, tmp_path / "out", export_format=to, holdout=2) == made


def test_a_sample_and_pictures_from_elsewhere(
    picture: Callable[..., Path], table: Callable[..., Path], tmp_path: Path
) -> None:
    for i in range(30):
        picture(f"else/{i}.png", colour=(i, 0, 0))
    path = table([(f"{i}.png", str(i)) for i in range(30)])
    made = prepare(path, tmp_path / "out", holdout=1, sample=5, seed=3, images_from=tmp_path / "else")
    again = prepare(path, tmp_path / "again", holdout=1, sample=5, seed=3, images_from=tmp_path / "else")
    assert made.num_train == 4
    assert content(made.all_path) == content(again.all_path)
    assert max(int(row.reference) for row in read(made.all_path) if isinstance(row, Example)) > 10


def test_pictures_inside_the_source_lie_beside_what_is_written(captions: Path, tmp_path: Path) -> None:
    openai = prepare(captions, tmp_path / "openai", export_format="openai", holdout=1).all_path
    made = prepare(openai, tmp_path / "out", holdout=1)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 6
    assert not (tmp_path / "openai" / "data_vl.jsonl.pictures").exists()
    assert [turns for _, turns in content(made.all_path)] == [
        turns for _, turns in content(made.train_path) + content(made.test_path)
    ]


def test_the_real_captions(shared: Path, tmp_path: Path) -> None:
    made = prepare(shared / "coco" / "captions.csv", tmp_path)
    assert (made.num_train, made.num_test, made.num_shared_images) == (395, 5, 0)  # five captions to each picture
    assert content(made.all_path) == content(shared / "coco" / "captions.csv")
