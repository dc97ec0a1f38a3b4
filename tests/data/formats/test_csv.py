import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorgnette.data.formats.csv import format_row, read_csv, to_record
from lorgnette.data.row_location import ColumnChoice, ReadOptions
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Problem, Turn

CELLS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    [
        'a "red" car, parked',
        "two\nlines",
        "<|im_end|>",
        "<|vision_start|>x<|vision_end|>",
        "图像 😀",
        "\r",
        "'",
        ",",
        "\0",
    ]
)


def read(path: Path, content: str | bytes) -> list[Example | Problem]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_csv(path, ReadOptions()))


def test_a_row_is_image_prompt_and_caption(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    assert read(path, 'image_path,caption\nimages/../a.jpg,"a cat, asleep "\n/x/b.jpg,two\n') == [
        Example(
            "identity_1",
            (Turn("user", (Image(tmp_path / "a.jpg"), "Describe this image.")), Turn("assistant", ("a cat, asleep",))),
            path,
            2,
        ),
        Example(
            "identity_2",
            (Turn("user", (Image(Path("/x/b.jpg")), "Describe this image.")), Turn("assistant", ("two",))),
            path,
            3,
        ),
    ]


def test_without_a_prompt_the_image_stands_alone(make_csv: Callable[..., Path]) -> None:
    (row,) = read_csv(make_csv([("a.jpg", "x")]), ReadOptions(prompt=""))
    assert isinstance(row, Example)
    assert len(row.turns[0].parts) == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_boms_more_columns_and_their_order(tmp_path: Path, newline: str, bom: bytes) -> None:
    content = newline.join([" caption ,split,image_path", "é,train,a.jpg", "", "b,test,b.jpg"])
    rows = read(tmp_path / "c.csv", bom + content.encode())
    assert [(row.row, row.reference, row.id) for row in rows if isinstance(row, Example)] == [
        (2, "é", "identity_1"),
        (4, "b", "identity_2"),
    ]


def test_rows_are_counted_in_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "c.csv", 'image_path,caption\na.jpg,"one\ntwo\nthree"\n\nb.jpg,four\nc.jpg\n')
    assert [row.row for row in rows] == [2, 6, 7]
    assert isinstance(rows[0], Example)
    assert rows[0].reference == "one\ntwo\nthree"


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("a.jpg", "no cell for 'caption'", "add"),
        ("a.jpg,", "caption is empty", "write"),
        ("a.jpg,  ", "caption is empty", "write"),
        (",x", "'image_path' is empty", "path"),
        ("a.jpg,a cat, asleep", "3 cells, but the first line names 2", "double quotes"),
        ('a.jpg,"a "red" car"', "text follows a closing quote", "double the quotes"),
        ("a.jpg,nul \0 here", "NUL", "remove"),
        ("https://x/a.jpg,b", "is a URL", "download"),
    ],
)
def test_a_bad_row_costs_that_row_only(tmp_path: Path, line: str, message: str, hint: str) -> None:
    first, bad, last = read(tmp_path / "c.csv", f"image_path,caption\nb.jpg,x\n{line}\nb.jpg,y\n")
    assert isinstance(bad, Problem)
    assert bad.row == 3
    assert message in bad.message
    assert hint in bad.hint
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert (last.id, last.row) == ("identity_3", 4)


def test_a_misquoted_row_names_the_lines_it_took_in(tmp_path: Path) -> None:
    bad, good = read(tmp_path / "c.csv", 'image_path,caption\na.jpg,"open\nb.jpg,"closed"\nc.jpg,fine\n')
    assert isinstance(bad, Problem)
    assert "lines 2–3" in bad.message
    assert isinstance(good, Example)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "empty", "image_path,caption"),
        ("\n\n", "empty", "image_path,caption"),
        (
            "image,width\na.jpg,3\n",
            "holds the captions; the columns are image (path), width (number)",
            "--caption-column",
        ),
        ("image_path,caption,captions\na.jpg,b,c\n", "not clear which column holds the captions", "--caption-column"),
        ("file_name,image_path,text\na.jpg,a.jpg,b\n", "not clear which column holds the images", "--image-column"),
        ("a.jpg,b.jpg\n", "the first line names no columns: it has an image, 'a.jpg'", "image_path,caption"),
        ("a.jpg,a cat,train\n", "names no columns: it has an image", "image_path,caption"),
        ("image_path,caption,caption\n", "two columns 'caption'", "rename"),
        ("i\0m,a\0\n", "NUL", "UTF-8"),
        ('"image_path,caption\na,b\n', "cannot be read as column names", "first line"),
        ('image_path,caption\nb.jpg,x\na.jpg,"open\nb.jpg,closed\n', "starts at line 3 is never closed", "close it"),
        ('image_path,caption\na.jpg,"' + "x\n" * 70_000, "starts at line 2 is never closed", "close it"),
        ("image_path,caption\na.jpg," + "x " * 70_000 + "\n", "a cell has more than 131,072 characters", "shorten it"),
        (b"image_path,caption\na.jpg,m\xe8re\n", "byte 0xe8 at byte 8 of line 2", "UTF-8"),
        ("image_path,caption\na.jpg,é\n".encode("utf-16")[:-1], "no whole UTF-16", "UTF-8"),
    ],
)
def test_a_bad_file(tmp_path: Path, content: str | bytes, message: str, hint: str) -> None:
    with pytest.raises(LorgnetteError) as raised:
        read(tmp_path / "c.csv", content)
    assert message in raised.value.message
    assert "c.csv" in (raised.value.where or "")
    assert hint in (raised.value.hint or "")


def test_columns_alone_are_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "c.csv", "image_path,caption\n") == []


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8))
@settings(max_examples=150)
def test_no_row_disappears_and_captions_lose_only_the_blanks_around_them(cells: list[tuple[str, str]]) -> None:
    content = io.StringIO()
    csv.writer(content, quoting=csv.QUOTE_ALL).writerows([("image_path", "caption"), *cells])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.csv"
        rows = read(path, content.getvalue())
        text = content.getvalue()
    cells = [pair for pair in cells if any(map(str.strip, pair))]
    assert len(rows) == len(cells)
    assert [row.row for row in rows] == sorted({row.row for row in rows})
    assert all(row.row <= text.count("\n") + text.count("\r") + 1 for row in rows)
    for row, (image, caption) in zip(rows, cells, strict=True):
        usable = image.strip() and caption.strip() and "\0" not in image + caption
        assert isinstance(row, Example) == bool(usable)
        if isinstance(row, Example):
            assert row.reference == caption.strip()
            assert row.is_trimmed == (caption != caption.strip())


@given(st.text(alphabet='ab,"\n\r;', max_size=60))
@settings(max_examples=150)
def test_any_text_is_rows_or_a_named_error(body: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = read(Path(folder) / "c.csv", "image_path,caption\n" + body)
        except LorgnetteError:  # a quote that is never closed
            assert '"' in body
            return
    lines = [line for line in body.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    assert len(rows) <= len(lines)
    assert rows or not set(body) & set("ab;")


def test_metadata_csv_of_an_image_folder(tmp_path: Path) -> None:
    [row] = read(tmp_path / "metadata.csv", "file_name,label,text\nsub/a.jpg,3,a cat\n")
    assert isinstance(row, Example)
    assert (row.images[0].path, row.reference) == (tmp_path / "sub/a.jpg", "a cat")


def test_records_are_written_and_quoted() -> None:
    turns = (Turn("user", (Image(Path("/a,b.jpg")), "q")), Turn("assistant", ('"',)))
    assert to_record(Example("x", turns, Path("a"), 1), "q") == {"image_path": "/a,b.jpg", "caption": '"'}
    assert format_row(["/a,b.jpg", '"']) == '"/a,b.jpg",""""\r\n'
    for text in ("\0", "x" * 200_000):
        with pytest.raises(LorgnetteError, match="a CSV cell"):
            to_record(Example("x", (turns[0], Turn("assistant", (text,))), Path("a"), 1), "q")


def test_a_question_of_its_own_is_asked(tmp_path: Path) -> None:
    """bugs/csv-question-column"""
    [row] = read(tmp_path / "c.csv", "image_path,question,caption,split\na.jpg,which colour?,red,train\n")
    assert isinstance(row, Example)
    assert [turn.text for turn in row.turns] == ["which colour?", "red"]
    assert row.unread_keys == ("split",)
    rows = read(tmp_path / "c.csv", "image_path,answer,question\na.jpg,red\nb.jpg,blue,\n")
    assert [row.message for row in rows if isinstance(row, Problem)] == [
        "no cell for 'question'",
        "'question' is empty",
    ]


def test_images_alone_are_questions_without_an_answer(tmp_path: Path) -> None:
    """bugs/predict-unanswered"""
    for content, question in (
        ("image_path\na.jpg\n", "Describe this image."),
        ("id,question,file_name\n7,what?,a.jpg\n", "what?"),
    ):
        [row] = read(tmp_path / "c.csv", content)
        assert isinstance(row, Example)
        assert [(turn.role, turn.text) for turn in row.turns] == [("user", question)]


def test_the_columns_of_ms_swift_and_llama_factory_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    for names in ("images,query,response", "images,instruction,output"):
        [row] = read(tmp_path / "c.csv", f"{names}\na.jpg,what?,red\n")
        assert isinstance(row, Example)
        assert [turn.text for turn in row.turns] == ["what?", "red"]
        assert row.images == (Image(tmp_path / "a.jpg"),)
    said: list[str] = []
    (tmp_path / "c.csv").write_text("images;query;response\na.jpg;what?;red\n")
    [row] = read_csv(tmp_path / "c.csv", ReadOptions(on_columns=said.append))
    assert isinstance(row, Example)
    assert said == ["c.csv: images, query, response; separator semicolon"]
    [row] = read(tmp_path / "c.csv", "image_path,instruction,caption\na.jpg,what?,red\n")
    assert isinstance(row, Example)
    assert [turn.text for turn in row.turns] == ["what?", "red"]


PLAIN = [("a.jpg", "Ein Hund; groß"), ("b.jpg", 'eine "rote" Tür, zu')]
PLAIN_SAID = "image_path → image, caption → caption"
HEADLESS = "column 1 → image, column 2 → caption"
ONE, TWO = '"Ein Hund; groß"', '"eine ""rote"" Tür, zu"'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "excel-de.csv",
            "\ufeffimage;text\r\na.jpg;{}\r\nb.jpg;{}\r\n",
            "image → image, text → caption; separator semicolon",
        ),
        ("numbers.tsv", "Image\tCaption\na.jpg\t{}\nb.jpg\t{}\n", "Image → image, Caption → caption"),
        ("tabs.csv", "image_path\tcaption\na.jpg\t{}\nb.jpg\t{}\n", f"{PLAIN_SAID}; separator tab"),
        ("bars.csv", "photo|label\na.jpg|{}\nb.jpg|{}\n", "photo → image, label → caption; separator bar"),
        (
            "sep.csv",
            "sep=;\r\nfilename;description;;\r\na.jpg;{};;\r\nb.jpg;{};;\r\n;;;\r\n",
            "filename → image, description → caption; separator semicolon",
        ),
        ("quoted.csv", '"Image","Text"\r"a.jpg",{}\r"b.jpg",{}\r', "Image → image, Text → caption"),
        (
            "german.csv",
            "Bild;Beschreibung\na.jpg;{}\nb.jpg;{}\n",
            "Bild → image, Beschreibung → caption; separator semicolon",
        ),
        ("headless.csv", "a.jpg;{}\nb.jpg;{}\n", f"{HEADLESS}; no line with names, separator semicolon"),
        ("turned.csv", "{},a.jpg\n{},b.jpg\n", "column 2 → image, column 1 → caption; no line with names"),
        ("commas.tsv", "image_path,caption\na.jpg,{}\nb.jpg,{}\n", f"{PLAIN_SAID}; separator comma"),
        ("plain.csv", "image_path,caption\na.jpg,{}\nb.jpg,{}\n,\n", ""),
    ],
)
@pytest.mark.parametrize("codec", ["utf-8", "utf-16", "utf-16-le", "cp1252", "mac_roman"])
def test_spreadsheets_of_every_locale_are_read_and_said_back(
    tmp_path: Path, name: str, content: str, said: str, codec: str
) -> None:
    path, messages = tmp_path / name, list[str]()
    content = content.format(ONE, TWO)
    path.write_bytes((content if codec == "utf-8" else content.removeprefix("\ufeff")).encode(codec))
    rows = list(read_csv(path, ReadOptions(on_columns=messages.append)))
    assert [(r.images[0].path.name, r.reference) for r in rows if isinstance(r, Example)] == PLAIN
    assert len(rows) == len(PLAIN)
    if codec != "utf-8":
        said = said or PLAIN_SAID
        encoding = {"cp1252": "Windows-1252", "mac_roman": "Mac Roman"}.get(codec, "UTF-16")
        said += f", {encoding}" if ";" in said else f"; {encoding}"
    assert messages == ([f"{name}: {said}"] if said else [])


def test_rows_keep_their_numbers_below_a_line_with_the_separator(tmp_path: Path) -> None:
    """Excel shows no row for `sep=;`."""
    rows = read(tmp_path / "c.csv", 'sep=;\n\nimage;text\na.jpg;"two\nlines"\nb.jpg;\n')
    assert [(row.row, row.sheet_row) for row in rows] == [(4, 3), (6, 4)]
    rows = read(tmp_path / "d.csv", "a.jpg;one\nb.jpg;two\n")
    assert [(row.row, row.sheet_row, isinstance(row, Example)) for row in rows] == [(1, 0, True), (2, 0, True)]


def test_empty_columns_and_rows_at_the_end_are_nothing_and_others_are_named(tmp_path: Path) -> None:
    rows = read(tmp_path / "c.csv", "image;text;;\na.jpg;one;;;;\nb.jpg;two;x;\n;;;\nc.jpg;three;;;y\n")
    assert [row.unread_keys for row in rows if isinstance(row, Example)] == [(), ("(no name)",)]
    [problem] = [row for row in rows if isinstance(row, Problem)]
    assert problem.message == "5 cells, but the first line names 4 columns"


def test_a_tsv_and_requested_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("image\ttitle\timage_id\tnote\nb.jpg\tone && two\t7\tx\n")
    options = ReadOptions(columns=ColumnChoice(caption="title"))
    rows = list(read_csv(path, options))
    assert [row.reference for row in rows if isinstance(row, Example)] == ["one", "two"]
    with pytest.raises(LorgnetteError, match=r"there is no column 'Titel'; the columns are image \(path\), title"):
        list(read_csv(path, ReadOptions(columns=ColumnChoice(caption="Titel"))))
    with pytest.raises(LorgnetteError, match="not clear which column holds the captions"):
        list(read_csv(path, ReadOptions()))
