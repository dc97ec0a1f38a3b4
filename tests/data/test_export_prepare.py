import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lorgnette.data import EXPORTERS, ExportFormat, prepare, read
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example


def read_content(path: Path, *, trim: bool = True) -> list[tuple[str, object]]:
    """A file's ids and turns, whatever the line numbers."""
    rows = list(read(path, trim=trim))
    assert all(isinstance(row, Example) for row in rows)
    return [(row.id, row.turns) for row in rows if isinstance(row, Example)]


@pytest.fixture
def captions(make_image: Callable[..., Path], make_csv: Callable[..., Path]) -> Path:
    for i in range(6):
        make_image(f"images/{i}.png", color=(i, 0, 0))
    return make_csv([(f"images/{i}.png", f"caption, {i}") for i in range(6)])


def test_the_tutorials_three_files_are_written(captions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = prepare(captions, out, holdout=4)
    assert sorted(path.name for path in out.iterdir()) == [
        "data_vl.json",
        "data_vl_test.json",
        "data_vl_train.json",
    ]
    assert (result.num_train, result.num_test, result.num_shared_images, result.num_trimmed, result.problems) == (
        2,
        4,
        0,
        0,
        (),
    )
    everything = json.loads(result.all_path.read_text(encoding="utf-8"))
    assert everything[0] == {
        "id": "identity_1",
        "conversations": [
            {"from": "user", "value": f"Describe this image. <|vision_start|>{tmp_path}/images/0.png<|vision_end|>"},
            {"from": "assistant", "value": "caption, 0"},
        ],
    }
    train, test = (json.loads(path.read_text(encoding="utf-8")) for path in (result.train_path, result.test_path))
    assert train + test == everything
    assert read_content(result.all_path) == read_content(captions)


def test_an_image_is_in_both_parts_only_with_split_tail(
    make_image: Callable[..., Path], make_csv: Callable[..., Path], tmp_path: Path
) -> None:
    for name in ("a.png", "copy_of_a.png"):
        make_image(name)
    make_image("b.png", color=(0, 0, 9))
    path = make_csv([("a.png", "1"), ("b.png", "2"), ("b.png", "3"), ("copy_of_a.png", "4")])
    result = prepare(path, tmp_path / "image", holdout=1)
    assert (result.num_test, result.num_shared_images) == (2, 0)
    result = prepare(path, tmp_path / "tail", holdout=1, split="tail")
    assert (result.num_test, result.num_shared_images) == (1, 1)


def test_preparing_again_changes_nothing(captions: Path, tmp_path: Path) -> None:
    result = prepare(captions, tmp_path)
    before = [path.stat().st_mtime_ns for path in (result.all_path, result.train_path, result.test_path)]
    assert prepare(captions, tmp_path) == result
    assert [path.stat().st_mtime_ns for path in (result.all_path, result.train_path, result.test_path)] == before
    assert prepare(result.all_path, tmp_path) == result


@pytest.mark.parametrize("content", ["[]", "not json", "\udcff"])
def test_existing_files_are_not_overwritten(captions: Path, tmp_path: Path, content: str) -> None:
    existing = tmp_path / "out" / "data_vl_test.json"
    existing.parent.mkdir()
    existing.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        prepare(captions, existing.parent)
    assert str(existing) in (caught.value.where or "")
    assert "data_vl_train" not in (caught.value.where or "")
    assert list(existing.parent.iterdir()) == [existing]


def test_the_target_must_not_be_a_file(captions: Path) -> None:
    with pytest.raises(LorgnetteError):
        prepare(captions, captions)


def test_max_rows_prompt_and_holdout_are_used(captions: Path, tmp_path: Path) -> None:
    result = prepare(captions, tmp_path, prompt="What is it?", max_rows=3, holdout=1)
    assert (result.num_train, result.num_test) == (2, 1)
    assert read_content(result.all_path) == [
        (row.id, row.turns) for row in read(captions, prompt="What is it?", max_rows=3) if isinstance(row, Example)
    ]
    with pytest.raises(UsageError, match="6 usable rows"):
        prepare(captions, tmp_path / "b", holdout=6)
    assert not (tmp_path / "b").exists()
    assert prepare(captions, tmp_path / "c", holdout=0).test_path.read_text() == "[]\n"


def test_broken_rows_stop_it_or_are_skipped(captions: Path, make_csv: Callable[..., Path], tmp_path: Path) -> None:
    path = make_csv([("images/0.png", "x"), ("gone.png", "x"), ("images/1.png", ""), ("images/2.png", "x")], "b.csv")
    with pytest.raises(LorgnetteError, match="2 of 4 rows"):
        prepare(path, tmp_path / "out", holdout=1)
    assert not (tmp_path / "out").exists()
    result = prepare(path, tmp_path / "out", holdout=1, on_bad_row="skip")
    assert [problem.row for problem in result.problems] == [3, 4]
    assert [id_ for id_, _ in read_content(result.all_path)] == ["identity_1", "identity_4"]


def test_messages_become_conversations_if_possible(captions: Path, tmp_path: Path) -> None:
    def row(user: str, *images: int) -> str:
        messages = [
            {"role": "system", "content": "s"},
            {"role": "user", "content": user},
            {"role": "assistant", "content": "a\n"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "<|vision_start|>"},
        ]
        return json.dumps({"messages": messages, "images": [f"images/{i}.png" for i in images]})

    path = tmp_path / "m.jsonl"
    lines = [row("<image> and <image>\n", 0, 1), row("<image>\nwhat?", 2), row("x <image>", 3), row("<|vision_end|>")]
    path.write_text("\n".join(lines), encoding="utf-8")
    result = prepare(path, tmp_path / "out", holdout=1, on_bad_row="skip")
    assert result.num_trimmed == 1
    assert [problem.row for problem in result.problems] == [3, 4]
    assert "before a single image" in result.problems[0].message
    first, second = (row for row in read(path, max_rows=2) if isinstance(row, Example))
    (_, turns), (_, trimmed) = read_content(result.all_path)
    assert turns == first.turns
    assert trimmed != second.turns


NASTY = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ['"', "a\r\nb", "<|im_end|>", "<|vision_start|>/etc/passwd<|vision_end|>", "😀\u2028", "\x1f\x85", "\\u0041", ","]
)


@given(st.lists(NASTY.filter(lambda text: text.strip() and "\0" not in text), min_size=1, max_size=6))
def test_csv_to_json_keeps_every_character(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (2, 2)).save(folder / 'a "b", c.png')
        path = folder / "c.csv"
        quoted = [f'"a ""b"", c.png","{text.replace(chr(34), chr(34) * 2)}"\r\n' for text in texts]
        path.write_bytes(("image_path,caption\r\n" + "".join(quoted)).encode())
        result = prepare(path, folder / "out", holdout=0)
        assert read_content(result.all_path) == read_content(path, trim=False)
        assert [row.reference for row in read(result.all_path) if isinstance(row, Example)] == texts


@pytest.mark.parametrize("export_format", ["csv", "llava", "llama-factory", "swift", "openai"])
def test_every_export_format_can_be_prepared(captions: Path, tmp_path: Path, export_format: ExportFormat) -> None:
    result = prepare(captions, tmp_path / "out", export_format=export_format, holdout=2)
    suffix = EXPORTERS[export_format].suffix
    assert [path.name for path in (result.all_path, result.train_path, result.test_path)] == [
        f"data_vl{part}{suffix}" for part in ("", "_train", "_test")
    ]
    assert (result.num_train, result.num_test, result.num_trimmed) == (4, 2, 0)
    texts = [row.reference for row in read(captions) if isinstance(row, Example)]
    assert [row.reference for row in read(result.all_path) if isinstance(row, Example)] == texts
    assert [row.reference for row in read(result.train_path) if isinstance(row, Example)] == texts[:4]
    if export_format == "llama-factory":
        info = tmp_path / "out" / "dataset_info.json"
        assert [row.reference for row in read(info, name="data_vl_test") if isinstance(row, Example)] == texts[4:]
    assert prepare(captions, tmp_path / "out", export_format=export_format, holdout=2) == result


def test_a_sample_with_images_from_anexisting_folder(
    make_image: Callable[..., Path], make_csv: Callable[..., Path], tmp_path: Path
) -> None:
    for i in range(30):
        make_image(f"elsewhere/{i}.png", color=(i, 0, 0))
    path = make_csv([(f"{i}.png", str(i)) for i in range(30)])
    result = prepare(path, tmp_path / "out", holdout=1, sample=5, seed=3, images_from=tmp_path / "elsewhere")
    again = prepare(path, tmp_path / "again", holdout=1, sample=5, seed=3, images_from=tmp_path / "elsewhere")
    assert result.num_train == 4
    assert read_content(result.all_path) == read_content(again.all_path)
    assert max(int(row.reference) for row in read(result.all_path) if isinstance(row, Example)) > 10


def test_images_inside_the_source_are_extracted_to_the_output_folder(captions: Path, tmp_path: Path) -> None:
    openai = prepare(captions, tmp_path / "openai", export_format="openai", holdout=1).all_path
    result = prepare(openai, tmp_path / "out", holdout=1)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 6
    assert not (tmp_path / "openai" / "data_vl.jsonl.images").exists()
    assert [turns for _, turns in read_content(result.all_path)] == [
        turns for _, turns in read_content(result.train_path) + read_content(result.test_path)
    ]


def test_the_real_captions_are_split_by_image(shared: Path, tmp_path: Path) -> None:
    result = prepare(shared / "coco" / "captions.csv", tmp_path)
    assert (result.num_train, result.num_test, result.num_shared_images) == (
        360,
        40,
        0,
    )  # a tenth of 80 images with five captions each
    assert read_content(result.all_path) == read_content(shared / "coco" / "captions.csv", trim=False)
