import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from lorgnette.data import read
from lorgnette.data.checks.data_report import check_rows
from lorgnette.data.formats import webdataset
from lorgnette.data.image_resolver import CannotExtractError, read_member
from lorgnette.data.row_location import ColumnChoice, ReadOptions
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Problem


def jpeg(color: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_a_sample_is_a_row(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a-000.tar",
        ("./0001.jpg", jpeg(1)),
        ("./0001.txt", "\ufeffone é".encode()),
        ("./0001.json", b'{"caption": "not this one"}'),
        ("sub/0002.cls", b"3"),
        ("sub/0002.json", json.dumps({"captions": ["two", "zwei"], "width": 8}).encode()),
        ("sub/0002.PNG", jpeg(2)),
        ("0003.v1.JPG", jpeg(3)),
    )
    one, two, zwei, bad = read(path, prompt="q")
    assert isinstance(one, Example)
    assert isinstance(two, Example)
    assert isinstance(zwei, Example)
    assert (one.id, one.row, one.reference, one.turns[0].text) == ("0001", 1, "one é", "q")
    assert one.unread_keys == ("caption",)
    assert (two.id, two.row, two.reference, two.unread_keys) == ("sub/0002_1", 2, "two", ("width", ".cls"))
    assert (zwei.id, zwei.reference, zwei.images) == ("sub/0002_2", "zwei", two.images)
    assert one.images[0].path.read_bytes() == jpeg(1)
    assert one.images[0].path.parent == tmp_path / "a-000.tar.images"
    assert isinstance(bad, Problem)
    assert (bad.row, bad.message) == (3, "sample '0003' has no caption")
    assert check_rows(read(path, images_to=tmp_path / "x")).num_usable == 3


def test_images_are_extracted_once_and_no_further_than_needed(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar", *(pair for i in range(5) for pair in ((f"{i}.jpg", jpeg(i * 40)), (f"{i}.txt", b"x")))
    )
    assert len(list(read(path, max_rows=2))) == 2
    extracted = tmp_path / "a.tar.images"
    before = {file: file.stat().st_mtime_ns for file in extracted.iterdir()}
    assert len(before) == 2
    assert len(list(read(path))) == 5
    assert before.items() <= {file: file.stat().st_mtime_ns for file in extracted.iterdir()}.items()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.txt", b"x")], "no image"),
        ([("1.jpg", b"J")], "no caption"),
        ([("1.jpg", b"J"), ("1.png", b"P"), ("1.txt", b"x")], "has jpg, png"),
        ([("1.jpg", b"J"), ("1.jpg", b"P"), ("1.txt", b"x")], "twice"),
        ([("1.jpg", b"J"), ("1.txt", b" \n")], "caption is empty"),
        ([("1.jpg", b"J"), ("1.txt", b"\xff")], "1.txt is not UTF-8"),
        ([("1.jpg", b"J"), ("1.json", b"{")], "broken JSON"),
        ([("1.jpg", b"J"), ("1.json", b"[]")], "1.json holds no object"),
        ([("1.jpg", b"J"), ("1.json", b'{"title": "x"}')], "1.json holds 'title'"),
        ([("1.jpg", b"J"), ("1.json", b'{"captions": "x", "caption": "y"}')], "1.json holds 'captions'"),
        ([("../1.jpg", b"J"), ("../1.txt", b"x")], "leaves its folder"),
        ([("/etc/1.jpg", b"J"), ("/etc/1.txt", b"x")], "leaves its folder"),
        ([("1.jpg", b"J" * 2000), ("1.txt", b"x")], "unpacks to more than 1,000 bytes"),
    ],
)
def test_a_broken_sample_costs_that_sample_only(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_member, "__kwdefaults__", {"max_bytes": 1000})
    path = tar(tmp_path / "a.tar", ("0.jpg", b"J"), ("0.txt", b"x"), *members, ("9.jpg", b"J"), ("9.txt", b"x"))
    first, bad, last = read(path, images_to=tmp_path / "images")
    assert isinstance(first, Example)
    assert isinstance(last, Example)
    assert isinstance(bad, Problem)
    assert message in bad.message
    assert bad.row == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar", "images"]
    assert len(list((tmp_path / "images").iterdir())) == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo("1.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    [bad] = webdataset.read_webdataset(tmp_path / "a.tar", ReadOptions())
    assert isinstance(bad, Problem)
    assert "link" in bad.message


@pytest.mark.parametrize("cut", [700, 1024 + 300, 5])
def test_a_tar_that_was_cut_off(tmp_path: Path, cut: int) -> None:
    path = tar(tmp_path / "a.tar", ("0.jpg", jpeg()), ("0.txt", b"x"), ("1.jpg", jpeg()), ("1.txt", b"y"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(LorgnetteError, match="cannot be read"):
        list(read(path))


def test_a_file_that_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("<html>not found</html>" * 100)
    with pytest.raises(LorgnetteError, match="cannot be read"):
        list(read(tmp_path / "a.tar"))


def test_a_folder_that_cannot_be_written_stops_the_reading(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("0.jpg", b"J"), ("0.txt", b"x"))
    (tmp_path / "file").touch()
    with pytest.raises(CannotExtractError):
        list(read(path, images_to=tmp_path / "file"))


def test_a_member_that_is_no_image_is_named_by_check(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("0.jpg", b"<html>404</html>"), ("0.txt", b"x"))
    assert "a web page" in check_rows(read(path)).problems[0].message


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for i in range(3):
        tar(tmp_path / f"{i}.tar", ("0.jpg", jpeg(i)), ("0.txt", b"%d" % i))
    rows = [row for row in read(tmp_path) if isinstance(row, Example)]
    assert [(row.source.name, row.row, row.reference) for row in rows] == [
        ("0.tar", 1, "0"),
        ("1.tar", 1, "1"),
        ("2.tar", 1, "2"),
    ]


def test_conversations_with_several_images(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<image>and<image>?"}, {"role": "assistant", "content": "yes"}]
    named = {"messages": messages, "images": ["b.png", "1.a.jpg"], "id": "own"}
    path = tar(
        tmp_path / "a.tar",
        ("0.a.jpg", jpeg(1)),
        ("0.b.jpg", jpeg(2)),
        ("0.json", json.dumps({"messages": messages}).encode()),
        ("1.a.jpg", jpeg(3)),
        ("1.b.png", jpeg(4)),
        ("1.json", json.dumps(named).encode()),
    )
    in_order, by_name = read(path)
    assert isinstance(in_order, Example)
    assert isinstance(by_name, Example)
    assert (in_order.id, by_name.id) == ("0", "own")
    assert [image.path.read_bytes() for image in in_order.images] == [jpeg(1), jpeg(2)]
    assert [image.path.read_bytes() for image in by_name.images] == [jpeg(4), jpeg(3)]
    assert in_order.turns[0].text == "and?"


def test_a_conversation_comes_before_a_text_beside_it(tmp_path: Path) -> None:
    """The alternative text of the image was learned, and the conversation was dropped."""
    messages = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "yes"}]
    record = json.dumps({"messages": messages, "text": "alt"}).encode()
    path = tar(tmp_path / "a.tar", ("0.jpg", jpeg(1)), ("0.txt", b"alt"), ("0.json", record))
    [row] = read(path)
    assert isinstance(row, Example)
    assert [turn.text for turn in row.turns] == ["what?", "yes"]
    assert row.unread_keys == ("text", ".txt")


def test_a_question_in_the_json_is_asked(tmp_path: Path) -> None:
    members = (
        ("0.jpg", jpeg(1)),
        ("0.txt", b" red \n"),
        ("0.json", b'{"question": "which?", "key": "0", "caption": "red"}'),
    )
    [with_text] = read(tar(tmp_path / "a.tar", *members))
    [alone] = read(tar(tmp_path / "b.tar", ("0.jpg", jpeg(1)), ("0.json", b'{"question": "which?", "answer": "red"}')))
    for row in (with_text, alone):
        assert isinstance(row, Example)
        assert ([turn.text for turn in row.turns], row.unread_keys) == (["which?", "red"], ())
    assert isinstance(with_text, Example)
    assert with_text.is_trimmed


def test_a_long_name_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header says that the next name has 600 MB, all of which tarfile would read."""
    path = tar(tmp_path / "a.tar", ("0.jpg", jpeg(1)), ("0.txt", b"x"))
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = kind, 600 << 20
        huge = tmp_path / "b.tar"
        with huge.open("wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            file.truncate(512 + header.size)  # takes no space on the disk
            file.seek(0, 2)
            file.write(path.read_bytes())
        with pytest.raises(LorgnetteError, match="a name or header in it takes 629,145,600 bytes"):
            list(read(huge))


def test_a_chain_of_headers_ends_with_an_error(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 4
    (tmp_path / "a.tar").write_bytes((header.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(512, b"\0")) * 3000)
    with pytest.raises(LorgnetteError, match="the tar cannot be read"):
        list(read(tmp_path / "a.tar"))


def test_requested_members_and_positions(tmp_path: Path) -> None:
    members = [
        (f"{i}.{part}", content) for i in range(4) for part, content in (("jpg", jpeg(i)), ("zh.txt", b"%d" % i))
    ]
    path = tar(tmp_path / "a.tar", *members, ("4.jpg", jpeg(4)), ("4.json", b'{"fr": "quatre", "text": "x"}'))
    options = ReadOptions(columns=ColumnChoice("jpg", "zh.txt"))
    whole = list(webdataset.stream_webdataset(path, options))
    assert [rows[0].reference for _, rows in whole[:4] if isinstance(rows[0], Example)] == ["0", "1", "2", "3"]
    for index, (position, _) in enumerate(whole):
        assert list(webdataset.stream_webdataset(path, options, position)) == whole[index + 1 :]
    [(_, [last])] = webdataset.stream_webdataset(path, ReadOptions(columns=ColumnChoice(caption="fr")), whole[3][0])
    assert isinstance(last, Example)
    assert last.reference == "quatre"


def test_a_member_that_was_requested_must_be_there(tmp_path: Path) -> None:
    """Another was read without a word."""
    path = tar(tmp_path / "a.tar", ("1.jpg", b"J"), ("1.txt", b"one"), ("1.json", b'{"title": "two"}'))
    for choice, message in (
        (ColumnChoice(image="png"), "sample '1' has jpg"),
        (ColumnChoice(caption="caption"), "1.json holds 'title'"),
    ):
        [row] = read(path, images_to=tmp_path / "images", columns=choice)
        assert isinstance(row, Problem)
        assert message in row.message
    [row] = read(path, images_to=tmp_path / "images", columns=ColumnChoice("jpg", "title"))
    assert isinstance(row, Example)
    assert row.reference == "two"
