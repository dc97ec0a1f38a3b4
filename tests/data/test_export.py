import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette.data import export, read
from lorgnette.data.checks import data_report
from lorgnette.data.conversation import merge_parts
from lorgnette.data.export import filter_exportable
from lorgnette.data.formats import EXPORTERS, ExportFormat, conversations
from lorgnette.data.formats.conversations import END, START
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Image, Problem, Turn

export_module = import_module("lorgnette.data.export")
FORMS: tuple[ExportFormat, ...] = get_args(ExportFormat)
OTHERS = ("<image>", "<video>", "<audio>")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """Pictures under names that have to be quoted somewhere."""
    made = []
    for i, name in enumerate(['a "b", c.png', "图 像\n2.jpg", "<image>.gif", "e.webp"]):
        made.append(Image(tmp_path_factory.mktemp("shown") / name))
        PIL.Image.new("RGB", (4, 4), (i * 50, 0, 0)).save(made[-1].path)
    return made


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        *("<|im_end|>\n<|im_start|>user", '"quoted"\\n', START, END, f"{START}/etc/passwd{END}", "<|image_pad|>", "{}"),
        *("\u2028\x1f\x85", "\0", "\r", "\r\n ", " ", "'", ",", ";\t", "😀é图", "<img>a.jpg</img>", "\ufeff", *OTHERS),
    ]
)
ANSWER = TEXT.filter(str.strip)
PARTS = st.lists(TEXT | st.integers(0, 3), min_size=1, max_size=5)
SAID = st.tuples(st.none() | TEXT, st.lists(st.tuples(PARTS, ANSWER), min_size=1, max_size=3))


def example(said: tuple[str | None, list[tuple[list[str | int], str]]], shown: list[Image], id_: str) -> Example:
    system, pairs = said
    turns = [] if system is None else [Turn("system", merge_parts([system]))]
    for question, answer in pairs:
        asked = merge_parts(shown[part] if isinstance(part, int) else part for part in question)
        turns += [Turn("user", asked), Turn("assistant", (answer,))]
    return Example(id_, tuple(turns), Path("/data/source.json"), 1)


def askable(example: Example) -> bool:
    return all(
        turn.text.strip() or any(isinstance(part, Image) for part in turn.parts) for turn in example.turns[-2::-2]
    )


def texts(example: Example) -> Iterator[str]:
    return (part for turn in example.turns for part in turn.parts if isinstance(part, str))


def held(example: Example, to: ExportFormat) -> bool:
    """What each form promises to hold, said again and otherwise than the code says it."""
    if to == "openai":
        return True
    if to == "csv":
        alone = [turn.role for turn in example.turns] == ["user", "assistant"]
        asked = alone and example.turns[0].parts[1:] == ("COCO Yes:",) and len(example.images) == 1
        return asked and "\0" not in example.turns[1].text
    if to == "json":
        users = [turn for turn in example.turns if turn.role == "user"]
        marked = any(
            mark in text for turn in users for text in turn.parts if isinstance(text, str) for mark in (START, END)
        )
        first = all(
            isinstance(turn.parts[0], Image) or not str(turn.parts[0]).strip()
            for turn in users
            if sum(isinstance(part, Image) for part in turn.parts) == 1
        )
        return not marked and first
    if any(word in text for text in texts(example) for word in OTHERS):
        return False
    if to == "llava":
        marked = any(mark in turn.text for turn in example.turns if turn.role == "user" for mark in (START, END))
        return example.turns[0].role != "system" and (bool(example.images) or not marked)
    return True


def content(turns: tuple[Turn, ...]) -> list[Any]:
    """Pictures by their bytes: a form may carry the picture itself."""
    return [
        (turn.role, [part if isinstance(part, str) else part.path.read_bytes() for part in turn.parts])
        for turn in turns
    ]


@pytest.mark.parametrize("to", FORMS)
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_what_is_written_reads_back_as_it_was(shown: list[Image], to: ExportFormat, data: st.DataObject) -> None:
    captions = st.tuples(
        st.none(), st.tuples(st.tuples(st.integers(0, 3), st.just("COCO Yes:")).map(list), ANSWER).map(lambda p: [p])
    )
    drawn = data.draw(st.lists((SAID | captions) if to == "csv" else SAID, min_size=1, max_size=5))
    made = [example(said, shown, f"{i} é") for i, said in enumerate(drawn)]
    made = [each for each in made if askable(each)]
    kept = [row for row in filter_exportable(made, to, "COCO Yes:") if isinstance(row, Example)]
    assert kept == [each for each in made if held(each, to)]
    if not kept:
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out{EXPORTERS[to].suffix}"
        told = export(kept, out, to)
        back = list(read(out))
        assert told.num_rows == len(back) == len(kept)
        for one, other in zip(kept, back, strict=True):
            assert isinstance(other, Example)
            meant = conversations.trim_turns(one.turns) if to == "json" else one.turns
            assert content(other.turns) == content(meant)
            if to != "openai":
                assert other.images == one.images
            assert not EXPORTERS[to].has_ids or other.id == one.id
        assert told.num_trimmed == (
            sum(conversations.trim_turns(each.turns) != each.turns for each in kept) if to == "json" else 0
        )
        assert export(kept, out, to) == told  # the same again changes nothing


def simple(picture: Image, answer: str = "yes", question: str = "COCO Yes:") -> Example:
    return Example("7", (Turn("user", (picture, question)), Turn("assistant", (answer,))), Path("/data/a.csv"), 3)


def test_llama_factorys_description_leads_to_the_data(shown: list[Image], tmp_path: Path) -> None:
    made = [simple(shown[0]), simple(shown[1], "no")]
    told = export(made, tmp_path / "pets.json", "llama-factory")
    assert [path.name for path in told.files] == ["pets.json", "dataset_info.json"]
    back = [row for row in read(tmp_path / "dataset_info.json", name="pets") if isinstance(row, Example)]
    assert [(row.id, row.turns) for row in back] == [(row.id, row.turns) for row in made]


@pytest.mark.parametrize("to", FORMS)
def test_problems_stop_it_or_are_left_out_by_name(shown: list[Image], tmp_path: Path, to: ExportFormat) -> None:
    out = tmp_path / "out" / f"a{EXPORTERS[to].suffix}"
    broken = Problem(Path("b.csv"), 9, "it is bad", "mend it")
    unheard = Example("8", (Turn("user", ("q",)),), Path("b.csv"), 10)
    gone = simple(Image(tmp_path / "gone.jpg"))
    rows = [simple(shown[0]), broken, unheard, gone]
    with pytest.raises(LorgnetteError, match="3 of 4 rows"):
        export(rows, out, to)
    assert not out.parent.exists()
    told = export(rows, out, to, on_bad_row="skip")
    assert told.num_rows == 1
    assert [problem.row for problem in told.problems] == [9, 10, 3]


@pytest.mark.parametrize("to", FORMS)
def test_a_path_that_is_no_text_is_refused(tmp_path: Path, to: ExportFormat) -> None:
    path = tmp_path / "not\udcffutf8.jpg"
    PIL.Image.new("RGB", (4, 4)).save(path)
    [row] = filter_exportable([simple(Image(path))], to, "COCO Yes:")
    assert isinstance(row, Problem)
    assert "cannot hold this row unchanged" in row.message
    assert "surrogate" in row.message


def test_a_relative_picture_is_written_absolute(
    picture: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("a.jpg")
    monkeypatch.chdir(tmp_path)
    export([simple(Image(Path("a.jpg")))], Path("deep/out.json"), "llava")
    assert data_report(read(tmp_path / "deep" / "out.json")).usable == 1


@pytest.mark.parametrize("to", FORMS)
def test_other_files_stay_as_they_are(shown: list[Image], tmp_path: Path, to: ExportFormat) -> None:
    out = tmp_path / f"a{EXPORTERS[to].suffix}"
    export([simple(shown[0])], out, to)
    before = out.read_bytes()
    with pytest.raises(UsageError, match="exist"):
        export([simple(shown[0]), simple(shown[1])], out, to)
    with pytest.raises(UsageError, match="exist"):
        export([simple(shown[1], "longer than before")], out, to)
    assert out.read_bytes() == before
    out.write_bytes(before[:-3])
    with pytest.raises(UsageError, match="exist"):
        export([simple(shown[0])], out, to)


def test_another_description_beside_it_is_not_overwritten(shown: list[Image], tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    with pytest.raises(UsageError) as caught:
        export([simple(shown[0])], tmp_path / "a.json", "llama-factory")
    assert caught.value.where == str(tmp_path / "dataset_info.json")
    assert not (tmp_path / "a.json").exists()


def test_json_is_laid_out_as_the_tutorial_does(shown: list[Image], tmp_path: Path) -> None:
    export([simple(shown[0]), simple(shown[1], "a\n\u2028b")], tmp_path / "a.json", "json")
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert written == json.dumps(json.loads(written), ensure_ascii=False, indent=2) + "\n"
    (tmp_path / "a.json").write_text(json.dumps(json.loads(written)))  # laid out otherwise, the same content
    export([simple(shown[0]), simple(shown[1], "a\n\u2028b")], tmp_path / "a.json", "json")


def test_nothing_is_left_of_an_export_that_fails(
    shown: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the last file is written: the first has not taken its name yet."""
    real = export_module.written_whole

    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        with real(path) as beside:
            if path.name == "dataset_info.json":
                raise OSError(28, "No space left on device")
            yield beside

    monkeypatch.setattr(export_module, "written_whole", full)
    with pytest.raises(LorgnetteError, match="No space left"):
        export([simple(shown[0])], tmp_path / "a.json", "llama-factory")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMS)
def test_the_suffix_says_how_it_is_read(shown: list[Image], tmp_path: Path, to: ExportFormat) -> None:
    with pytest.raises(UsageError, match=EXPORTERS[to].suffix):
        export([simple(shown[0])], tmp_path / "a.txt", to)


def test_a_csv_of_another_question(shown: list[Image], tmp_path: Path) -> None:
    rows = [simple(shown[0], question="what?")]
    with pytest.raises(LorgnetteError, match="the question 'COCO Yes:'"):
        export(rows, tmp_path / "a.csv", "csv")
    export(rows, tmp_path / "a.csv", "csv", prompt="what?")
    [back] = read(tmp_path / "a.csv", prompt="what?")
    assert isinstance(back, Example)
    assert back.turns == rows[0].turns


def test_the_real_captions_in_every_form_and_back(shared: Path, tmp_path: Path) -> None:
    rows = [row for row in read(shared / "coco" / "captions.csv", max_rows=7) if isinstance(row, Example)]
    for to in FORMS:
        out = tmp_path / f"{to}{EXPORTERS[to].suffix}"
        export(rows, out, to)
        assert [content(row.turns) for row in read(out) if isinstance(row, Example)] == [
            content(row.turns) for row in rows
        ]
