import json
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data.checks.data_report import load_usable
from lorgnette.data.dataset import is_dataset, read, read_images
from lorgnette.data.row_location import ColumnChoice
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Problem

GOOD: list[dict[str, Any]] = [
    {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
]
BAD: list[Any] = [{}, {"query": 3}, {"messages": [], "conversations": []}, [], None, "text", 3, {"messages": 1}]


def test_json_items_are_numbered_from_one_and_read_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.JSON"
    path.write_text(json.dumps([*GOOD, {"query": 3}, "text"]), encoding="utf-8-sig")
    one, two, three, four = read(path)
    assert [row.row for row in (one, two, three, four)] == [1, 2, 3, 4]
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert (one.reference, two.reference, two.id) == ("a", "b", "identity_2")
    assert isinstance(three, Problem)
    assert isinstance(four, Problem)
    assert "the question is a number" in three.message
    assert "text, not an object" in four.message


def test_a_broken_line_is_a_problem_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(GOOD[0]), "", '{"messages": [', json.dumps(GOOD[1]), ""]), encoding="utf-8")
    one, bad, two = read(path)
    assert isinstance(bad, Problem)
    assert "broken JSON" in bad.message
    assert bad.hint
    assert isinstance(two, Example)
    assert [one.row, bad.row, two.row, two.id] == [1, 3, 4, "identity_3"]


def test_two_formats_in_one_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([GOOD[0] | GOOD[1], {}]))
    both, neither = read(path)
    assert isinstance(both, Problem)
    assert "both 'conversations' and 'messages'" in both.message
    assert isinstance(neither, Problem)
    assert "the columns are none" in neither.message


@given(st.lists(st.sampled_from([*GOOD, *BAD]), max_size=12), st.sampled_from([".json", ".jsonl"]))
def test_no_row_disappears(items: list[Any], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        lines = "\n".join(map(json.dumps, items))
        path.write_text(json.dumps(items) if suffix == ".json" else lines)
        rows = list(read(path))
    assert [isinstance(row, Example) for row in rows] == [item in GOOD for item in items]


def test_rows_are_limited(make_csv: Callable[..., Path]) -> None:
    path = make_csv([("a.jpg", ""), ("b.jpg", "b"), ("c.jpg", "c")])
    assert [row.row for row in read(path, max_rows=2)] == [2, 3]
    assert len(list(read(path, max_rows=9))) == 3


def test_a_fair_sample_keeps_the_order(make_csv: Callable[..., Path]) -> None:
    path = make_csv([(f"{i}.jpg", f"{i}" if i % 2 else "") for i in range(200)])

    def draw(**arguments: int) -> list[int]:
        return [row.row for row in read(path, **arguments)]  # type: ignore[arg-type]

    assert len(draw(sample=20)) == 20
    assert draw(sample=20) == sorted(draw(sample=20)) == draw(sample=20, seed=0) != draw(sample=20, seed=1)
    assert max(draw(sample=20)) > 100
    assert max(draw(sample=5, max_rows=10)) <= 11  # of the first ten
    assert draw(sample=500) == draw()


def test_a_long_file_is_not_read_ahead(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write((json.dumps(GOOD[0]) + "\n").encode() * 5000)
        file.write(b"\xff\n")
    assert len(list(islice(read(path), 4000))) == 4000
    with pytest.raises(LorgnetteError, match="line 5001"):
        list(read(path))


def test_the_prompt_of_a_csv(make_csv: Callable[..., Path]) -> None:
    path = make_csv([("a.jpg", "x")])
    for prompt in ("COCO Yes:", "Beschreibe:"):
        (row,) = read(path, prompt=prompt)
        assert isinstance(row, Example)
        assert row.turns[0].text == prompt


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gone.csv", LorgnetteError, "does not exist"),
        ("folder", UsageError, "a folder"),
        ("a.docx", UsageError, "'.docx'"),
        ("noending", UsageError, "'(none)'"),
        ("nul\0", LorgnetteError, "cannot be reached"),
    ],
)
def test_a_path_that_is_no_data_set_is_refused_at_once(
    tmp_path: Path, name: str, error: type[LorgnetteError], message: str
) -> None:
    (tmp_path / "folder").mkdir()
    for file in ("a.docx", "noending"):
        (tmp_path / file).touch()
    with pytest.raises(error) as raised:
        read(tmp_path / name)
    assert message in raised.value.message
    assert raised.value.hint


def test_zero_rows_are_refused(make_csv: Callable[..., Path]) -> None:
    for arguments in ({"max_rows": 0}, {"sample": 0}):
        with pytest.raises(UsageError, match="is 0"):
            read(make_csv([]), **arguments)  # type: ignore[arg-type]


def test_a_relative_source_gives_absolute_image_paths(
    make_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_csv([("a.jpg", "x")])
    monkeypatch.chdir(path.parent)
    (row,) = read(Path("captions.csv"))
    assert isinstance(row, Example)
    assert row.images[0].path == path.parent / "a.jpg"


def test_the_images_of_a_folder_become_prompts(make_image: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "b/deeper/3.png"):
        make_image(name)
    for name, content in (("notes.txt", "x"), (".hidden.jpg", "x"), ("0.heic", "x"), ("4.jpg", "")):
        (tmp_path / "b" / name).write_text(content)
    rows = list(read_images(tmp_path / "b", prompt="what?"))
    assert [row.row for row in rows] == [1, 2, 3, 4]
    bad, one, two, empty = rows
    assert isinstance(bad, Problem)
    assert isinstance(empty, Problem)
    assert "4.jpg" in empty.message
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert (one.id, two.id) == ("1.png", "2.JPG")
    assert [turn.role for turn in one.turns] == ["user"]
    assert one.turns[0].text == "what?"
    assert one.without_answer().turns == one.turns


def test_a_data_set_is_told_from_bare_images(make_image: Callable[..., Path], tmp_path: Path) -> None:
    image = make_image("a.png")
    assert not is_dataset(image)
    assert not is_dataset(image.parent)
    (image.parent / "b.txt").write_text("of another image")
    assert not is_dataset(image.parent)
    (image.parent / "a.txt").write_text("a")
    assert is_dataset(image.parent)
    for name in ("metadata.csv", "metadata.jsonl", "shard.tar", "shard.parquet"):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
        assert is_dataset(folder)
        assert is_dataset(folder / name)
    with pytest.raises(LorgnetteError, match="does not exist"):
        is_dataset(tmp_path / "gone")


def test_a_prompt_with_an_images_marker_is_refused(make_image: Callable[..., Path]) -> None:
    (row,) = read_images(make_image("a.jpg"), prompt="<image>what?")
    assert isinstance(row, Problem)
    assert "turn 1 contains <image>, which stands for no image" in row.message


def test_one_image_becomes_a_prompt(make_image: Callable[..., Path]) -> None:
    (row,) = read_images(make_image("a.jpg"), prompt="")
    assert isinstance(row, Example)
    assert row.id == "a.jpg"
    assert len(row.turns[0].parts) == 1


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(LorgnetteError, match="no image in this folder"):
        read_images(tmp_path)
    with pytest.raises(LorgnetteError, match="does not exist"):
        read_images(tmp_path / "gone")


def test_only_predictions_take_rows_without_an_answer(make_image: Callable[..., Path], tmp_path: Path) -> None:
    """bugs/predict-unanswered"""
    make_image("a.png")
    (tmp_path / "images.csv").write_text("image_path\na.png\n")
    [example] = load_usable(read(tmp_path / "images.csv"), on_bad_row="error", needs_answer=False).examples
    assert (example.reference, example.turns[0].text) == ("", "Describe this image.")
    with pytest.raises(LorgnetteError, match="there is no caption column"):
        load_usable(read(tmp_path / "images.csv"), on_bad_row="error")


def test_blanks_around_captions_can_be_kept(make_csv: Callable[..., Path]) -> None:
    path = make_csv([("a.jpg", " a cat ")])
    rows = [row for trim in (True, False) for row in read(path, trim=trim) if isinstance(row, Example)]
    assert [(row.reference, row.is_trimmed) for row in rows] == [("a cat", True), (" a cat ", False)]


def test_real_inputs(shared: Path) -> None:
    for name, count in (("coco/captions.csv", 400), ("latex/formulas.csv", 200)):
        rows = list(read(shared / name))
        assert len(rows) == count
        assert all(isinstance(row, Example) for row in rows)


def write_captions(folder: Path, name: str, *captions: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in ("image_path,caption", *(f"{c}.png,{c}" for c in captions))))
    return path


def test_a_list_of_sources_is_read_one_after_the_other(tmp_path: Path) -> None:
    first, second = write_captions(tmp_path, "x/a.csv", "1", "2"), write_captions(tmp_path, "y/b.csv", "3")
    both = Path(f"{first}, {second}")
    rows = [row for row in read(both) if isinstance(row, Example)]
    assert [(row.source, row.row, row.reference) for row in rows] == [
        (first, 2, "1"),
        (first, 3, "2"),
        (second, 2, "3"),
    ]
    assert [image.path for row in rows for image in row.images] == [
        first.with_name("1.png"),
        first.with_name("2.png"),
        second.with_name("3.png"),
    ]
    assert [row.row for row in read(both, max_rows=2)] == [2, 3]
    assert len(list(read(both, sample=2))) == 2
    assert is_dataset(both)
    with pytest.raises(LorgnetteError, match=r"does not exist · .*/z\.csv"):
        read(Path(f"{first},{tmp_path / 'z.csv'}"))
    (tmp_path / "c.docx").touch()
    with pytest.raises(UsageError, match="cannot be read"):
        read(Path(f"{first},{tmp_path / 'c.docx'}"))


def test_images_may_be_a_list(make_image: Callable[..., Path]) -> None:
    paths = [make_image(name) for name in ("a.png", "b.png")]
    assert not is_dataset(Path(",".join(map(str, paths))))
    assert [row.source for row in read_images(Path(",".join(map(str, paths))))] == paths


def test_a_wrong_name_names_the_nearest_file(tmp_path: Path) -> None:
    path = write_captions(tmp_path, "captions.csv", "1")
    for name in ("caption.csv", "Captions.CSV"):
        with pytest.raises(LorgnetteError, match="does not exist") as caught:
            read(tmp_path / name)
        assert caught.value.hint == f"did you mean {path}?"


@pytest.mark.parametrize(
    ("name", "kind"), [("adapter_config.json", "an adapter"), ("config.json", "a model"), ("config.yaml", "a run")]
)
def test_a_folder_of_something_else_is_called_what_it_is(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / "manifest.json").touch()
    for read_folder in (read, read_images):
        with pytest.raises(UsageError, match=f"{kind}, not data · {tmp_path}"):
            read_folder(tmp_path)
    write_captions(tmp_path, "metadata.csv", "1")
    (tmp_path / "metadata.csv").write_text("file_name,text\n1.png,1\n")
    assert len(list(read(tmp_path))) == 1


@pytest.mark.parametrize("value", [GOOD[0], GOOD])
def test_json_printed_for_people_is_one_error_of_a_jsonl(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n" + json.dumps(value, indent=2))
    with pytest.raises(LorgnetteError, match=r"over several lines.*a\.jsonl, line 2 · .*\.json"):
        list(read(path))
    path.write_text(json.dumps(GOOD[0]) + "\n{\n")
    assert [isinstance(row, Problem) for row in read(path)] == [False, True], "a broken line further down is its row's"


def test_columns_are_refused_where_there_are_none(make_image: Callable[..., Path], tmp_path: Path) -> None:
    """They were ignored without a word."""
    make_image("pairs/a.jpg")
    (tmp_path / "pairs" / "a.txt").write_text("a cat")
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    make_image("classes/cats/1.jpg")
    make_image("classes/dogs/1.jpg")
    for name in ("pairs", "coco.json", "classes"):
        assert len(list(read(tmp_path / name))) >= 1
        with pytest.raises(UsageError, match="image_column and caption_column are for tables"):
            list(read(tmp_path / name, columns=ColumnChoice(caption="text")))
