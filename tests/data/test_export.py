import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data import check_rows, export, read
from lorgnette.data.conversation import merge_parts
from lorgnette.data.export import filter_exportable
from lorgnette.data.formats import EXPORTERS, ExportFormat, conversations
from lorgnette.data.formats.conversations import END, START
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.types import Example, Image, Problem, Turn

export_module = import_module("lorgnette.data.export")
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)
PLACEHOLDERS = ("<image>", "<video>", "<audio>")
MARKERS = (*PLACEHOLDERS, START, END, "<|image_pad|>", "<img>")


@pytest.fixture(scope="module")
def quoted_images(tmp_path_factory: pytest.TempPathFactory) -> list[Image]:
    """Images whose names some format must quote."""
    images = []
    for i, name in enumerate(['a "b", c.png', "图 像\n2.jpg", "<image>.gif", "e.webp"]):
        images.append(Image(tmp_path_factory.mktemp("images") / name))
        PIL.Image.new("RGB", (4, 4), (i * 50, 0, 0)).save(images[-1].path)
    return images


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        *("<|im_end|>\n<|im_start|>user", '"quoted"\\n', START, END, f"{START}/etc/passwd{END}", "<|image_pad|>", "{}"),
        *(
            "\u2028\x1f\x85",
            "\0",
            "\r",
            "\r\n ",
            " ",
            "'",
            ",",
            ";\t",
            "😀é图",
            "<img>a.jpg</img>",
            "\ufeff",
            *PLACEHOLDERS,
        ),
    ]
)
ANSWER = TEXT.filter(str.strip)
PARTS = st.lists(TEXT | st.integers(0, 3), min_size=1, max_size=5)
CONVERSATION = st.tuples(st.none() | TEXT, st.lists(st.tuples(PARTS, ANSWER), min_size=1, max_size=3))


def build_example(
    conversation: tuple[str | None, list[tuple[list[str | int], str]]], images: list[Image], id_: str
) -> Example:
    system, pairs = conversation
    turns = [] if system is None else [Turn("system", merge_parts([system]))]
    for question, answer in pairs:
        parts = merge_parts(images[part] if isinstance(part, int) else part for part in question)
        turns += [Turn("user", parts), Turn("assistant", (answer,))]
    return Example(id_, tuple(turns), Path("/data/source.json"), 1)


def has_questions(example: Example) -> bool:
    return all(
        turn.text.strip() or any(isinstance(part, Image) for part in turn.parts) for turn in example.turns[-2::-2]
    )


def iter_texts(example: Example) -> Iterator[str]:
    return (part for turn in example.turns for part in turn.parts if isinstance(part, str))


def can_hold(example: Example, export_format: ExportFormat) -> bool:
    """What example format promises export_format hold, written independently of the code."""
    questions = [text for turn in example.turns if turn.role == "user" for text in turn.parts if isinstance(text, str)]
    has_marker = any(marker in text for text in questions for marker in MARKERS)  # of an image that is not there
    if has_marker or export_format == "openai":
        return not has_marker
    if export_format == "csv":
        is_single = [turn.role for turn in example.turns] == ["user", "assistant"]
        is_caption = is_single and example.turns[0].parts[1:] == ("Describe this image.",) and len(example.images) == 1
        return is_caption and "\0" not in example.turns[1].text
    if export_format == "json":
        return all(
            isinstance(turn.parts[0], Image) or not str(turn.parts[0]).strip()
            for turn in example.turns
            if turn.role == "user" and sum(isinstance(part, Image) for part in turn.parts) == 1
        )
    if any(word in text for text in iter_texts(example) for word in PLACEHOLDERS):
        return False
    if export_format == "llava":
        return example.turns[0].role != "system"
    return True


def read_content(turns: tuple[Turn, ...]) -> list[Any]:
    """Images by their bytes: a format may embed the image itself."""
    return [
        (turn.role, [part if isinstance(part, str) else part.path.read_bytes() for part in turn.parts])
        for turn in turns
    ]


@pytest.mark.parametrize("export_format", FORMATS)
@given(data=st.data())
def test_an_export_reads_back_unchanged(
    quoted_images: list[Image], export_format: ExportFormat, data: st.DataObject
) -> None:
    captions = st.tuples(
        st.none(),
        st.tuples(st.tuples(st.integers(0, 3), st.just("Describe this image.")).map(list), ANSWER).map(lambda p: [p]),
    )
    samples = data.draw(
        st.lists((CONVERSATION | captions) if export_format == "csv" else CONVERSATION, min_size=1, max_size=5)
    )
    examples = [build_example(sample, quoted_images, f"{i} é") for i, sample in enumerate(samples)]
    examples = [example for example in examples if has_questions(example)]
    exportable = [
        row for row in filter_exportable(examples, export_format, "Describe this image.") if isinstance(row, Example)
    ]
    assert exportable == [example for example in examples if can_hold(example, export_format)]
    if not exportable:
        return
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out{EXPORTERS[export_format].suffix}"
        result = export(exportable, out, export_format)
        rows = list(read(out, trim=False))
        assert result.num_rows == len(rows) == len(exportable)
        for original, restored in zip(exportable, rows, strict=True):
            assert isinstance(restored, Example)
            expected = conversations.trim_turns(original.turns) if export_format == "json" else original.turns
            assert read_content(restored.turns) == read_content(expected)
            if export_format != "openai":
                assert restored.images == original.images
            assert not EXPORTERS[export_format].has_ids or restored.id == original.id
        assert result.num_trimmed == (
            sum(conversations.trim_turns(example.turns) != example.turns for example in exportable)
            if export_format == "json"
            else 0
        )
        assert export(exportable, out, export_format) == result  # exporting again changes nothing


def build_caption(image: Image, answer: str = "yes", question: str = "Describe this image.") -> Example:
    return Example("7", (Turn("user", (image, question)), Turn("assistant", (answer,))), Path("/data/a.csv"), 3)


def test_dataset_info_leads_to_the_data(quoted_images: list[Image], tmp_path: Path) -> None:
    examples = [build_caption(quoted_images[0]), build_caption(quoted_images[1], "no")]
    result = export(examples, tmp_path / "pets.json", "llama-factory")
    assert [path.name for path in result.files] == ["pets.json", "dataset_info.json"]
    restored = [row for row in read(tmp_path / "dataset_info.json", name="pets") if isinstance(row, Example)]
    assert [(row.id, row.turns) for row in restored] == [(row.id, row.turns) for row in examples]


@pytest.mark.parametrize("export_format", FORMATS)
def test_problems_stop_the_export_or_are_skipped(
    quoted_images: list[Image], tmp_path: Path, export_format: ExportFormat
) -> None:
    out = tmp_path / "out" / f"a{EXPORTERS[export_format].suffix}"
    broken = Problem(Path("b.csv"), 9, "it is bad", "fix it")
    unanswered = Example("8", (Turn("user", ("q",)),), Path("b.csv"), 10)
    missing = build_caption(Image(tmp_path / "gone.jpg"))
    rows = [build_caption(quoted_images[0]), broken, unanswered, missing]
    with pytest.raises(LorgnetteError, match="3 of 4 rows"):
        export(rows, out, export_format)
    assert not out.parent.exists()
    result = export(rows, out, export_format, on_bad_row="skip")
    assert result.num_rows == 1
    assert [problem.row for problem in result.problems] == [9, 10, 3]


@pytest.mark.parametrize("export_format", FORMATS)
def test_a_path_that_is_no_utf8_is_refused(tmp_path: Path, export_format: ExportFormat) -> None:
    path = tmp_path / "not\udcffutf8.jpg"
    PIL.Image.new("RGB", (4, 4)).save(path)
    [row] = filter_exportable([build_caption(Image(path))], export_format, "Describe this image.")
    assert isinstance(row, Problem)
    assert "cannot hold this row unchanged" in row.message
    assert "surrogate" in row.message


def test_a_relative_image_path_is_written_as_an_absolute_one(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image("a.jpg")
    monkeypatch.chdir(tmp_path)
    export([build_caption(Image(Path("a.jpg")))], Path("deep/out.json"), "llava")
    assert check_rows(read(tmp_path / "deep" / "out.json")).num_usable == 1


@pytest.mark.parametrize("export_format", FORMATS)
def test_existing_files_are_not_overwritten(
    quoted_images: list[Image], tmp_path: Path, export_format: ExportFormat
) -> None:
    out = tmp_path / f"a{EXPORTERS[export_format].suffix}"
    export([build_caption(quoted_images[0])], out, export_format)
    before = out.read_bytes()
    with pytest.raises(UsageError, match="exist"):
        export([build_caption(quoted_images[0]), build_caption(quoted_images[1])], out, export_format)
    with pytest.raises(UsageError, match="exist"):
        export([build_caption(quoted_images[1], "longer than before")], out, export_format)
    assert out.read_bytes() == before
    out.write_bytes(before[:-3])
    with pytest.raises(UsageError, match="exist"):
        export([build_caption(quoted_images[0])], out, export_format)


def test_an_existing_dataset_info_is_not_overwritten(quoted_images: list[Image], tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    with pytest.raises(UsageError) as caught:
        export([build_caption(quoted_images[0])], tmp_path / "a.json", "llama-factory")
    assert caught.value.where == str(tmp_path / "dataset_info.json")
    assert not (tmp_path / "a.json").exists()


def test_json_has_the_tutorials_layout(quoted_images: list[Image], tmp_path: Path) -> None:
    export(
        [build_caption(quoted_images[0]), build_caption(quoted_images[1], "a\n\u2028b")], tmp_path / "a.json", "json"
    )
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert written == json.dumps(json.loads(written), ensure_ascii=False, indent=2) + "\n"
    (tmp_path / "a.json").write_text(json.dumps(json.loads(written)))  # another layout of the same content
    export(
        [build_caption(quoted_images[0]), build_caption(quoted_images[1], "a\n\u2028b")], tmp_path / "a.json", "json"
    )


def test_a_failed_export_leaves_no_files(
    quoted_images: list[Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the last file: the first must not have its name yet."""
    real = export_module.atomic_write

    @contextmanager
    def write_until_full(path: Path) -> Iterator[Path]:
        with real(path) as temporary:
            if path.name == "dataset_info.json":
                raise OSError(28, "No space left on device")
            yield temporary

    monkeypatch.setattr(export_module, "atomic_write", write_until_full)
    with pytest.raises(LorgnetteError, match="No space left"):
        export([build_caption(quoted_images[0])], tmp_path / "a.json", "llama-factory")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("export_format", FORMATS)
def test_the_suffix_must_fit_the_format(
    quoted_images: list[Image], tmp_path: Path, export_format: ExportFormat
) -> None:
    with pytest.raises(UsageError, match=EXPORTERS[export_format].suffix):
        export([build_caption(quoted_images[0])], tmp_path / "a.txt", export_format)


@pytest.mark.parametrize("export_format", FORMATS)
def test_a_mark_is_kept_or_refused(export_format: ExportFormat, tmp_path: Path) -> None:
    turns = Turn("user", ("q",)), Turn("assistant", ("no",), has_loss=False)
    example = Example("7", (*turns, *turns[:1], Turn("assistant", ("yes",))), Path("/data/a.jsonl"), 3)
    out = tmp_path / f"a{EXPORTERS[export_format].suffix}"
    if export_format in ("swift", "openai"):
        export([example], out, export_format)
        [restored] = read(out)
        assert isinstance(restored, Example)
        assert restored.turns == example.turns
    else:
        with pytest.raises(LorgnetteError, match="this row"):
            export([example], out, export_format)


def test_a_csv_needs_the_prompt_as_its_question(quoted_images: list[Image], tmp_path: Path) -> None:
    rows = [build_caption(quoted_images[0], question="what?")]
    with pytest.raises(LorgnetteError, match=r"the question 'Describe this image\.'"):
        export(rows, tmp_path / "a.csv", "csv")
    export(rows, tmp_path / "a.csv", "csv", prompt="what?")
    [back] = read(tmp_path / "a.csv", prompt="what?")
    assert isinstance(back, Example)
    assert back.turns == rows[0].turns


def test_the_real_captions_survive_every_format(shared: Path, tmp_path: Path) -> None:
    rows = [row for row in read(shared / "coco" / "captions.csv", max_rows=7) if isinstance(row, Example)]
    for export_format in FORMATS:
        out = tmp_path / f"{export_format}{EXPORTERS[export_format].suffix}"
        export(rows, out, export_format)
        assert [read_content(row.turns) for row in read(out) if isinstance(row, Example)] == [
            read_content(row.turns) for row in rows
        ]
