import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import PIL.Image
import pytest

from lorgnette.data import read
from lorgnette.data.checks import near_duplicates
from lorgnette.data.checks.scan import (
    _BLOCK_SIZE,
    _TASK_SIZE,
    ScanResult,
    _RowScanner,
    _ScannedRows,
    compute_full_signatures,
    scan,
    scan_rows,
)
from lorgnette.data.images import load_image
from lorgnette.data.row_location import PendingRow, read_pending
from lorgnette.errors import LorgnetteError
from lorgnette.types import Example, Image, Problem, Turn


def build_row(number: int, *paths: Path) -> Example:
    turns = (Turn("user", (*map(Image, paths), "q")), Turn("assistant", ("a",)))
    return Example("x", turns, Path("a.json"), number)


def test_rows_keep_their_order_and_images_appear_once(make_image: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_image("one.png"), make_image("other.jpg", size=(50, 40))
    result = scan(
        [
            build_row(1, first),
            Problem(Path("a"), 2, "w", "r"),
            build_row(3, second, first),
            build_row(4, tmp_path / "gone.png"),
        ]
    )
    assert [example.row for example in result.examples] == [1, 3]
    assert [problem.row for problem in result.problems] == [2, 4]
    assert [(path.name, info.size, info.signature) for path, info in result.image_infos.items()] == [
        ("one.png", (32, 24), None),
        ("other.jpg", (50, 40), None),
    ]


def test_signatures_are_computed_on_request(make_image: Callable[..., Path]) -> None:
    path = make_image("one.png", (200, 30, 30))
    [(_, infos)] = scan_rows([build_row(1, path)], with_signatures=True)
    assert infos[path].signature == bytes((200, 30, 30)) * 256


def test_a_file_is_opened_once_for_size_end_and_signature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_photograph(tmp_path / "one.jpg", 1, 2)
    opened: list[Path] = []
    real = Path.open

    def record_open(self: Path, *args: str) -> Any:
        opened.append(self)
        return real(self, *args)

    monkeypatch.setattr(Path, "open", record_open)
    result = scan([build_row(1, path), build_row(2, path)], with_signatures=True)
    assert result.image_infos[path].signature
    assert opened == [path]


def test_the_next_block_is_scanned_while_rows_are_handled(make_image: Callable[..., Path]) -> None:
    paths = [make_image(f"{number}.png", (number, 0, 0)) for number in range(5)]
    pairs = [(paths[number * 5 // (3 * _BLOCK_SIZE)], paths[0]) for number in range(3 * _BLOCK_SIZE)]
    read: list[int] = []

    def rows() -> Iterator[Example]:
        for number, pair in enumerate(pairs):
            read.append(number)
            yield build_row(number, *pair)

    scanned = scan_rows(rows(), with_signatures=True)
    assert next(scanned)[0] == build_row(0, paths[0], paths[0])
    assert len(read) == 2 * _BLOCK_SIZE
    assert [tuple(infos) for _, infos in scanned] == [tuple(dict.fromkeys(pair)) for pair in pairs[1:]]


def test_damage_in_the_middle_is_found_with_signatures(make_image: Callable[..., Path]) -> None:
    """Its header and its end are intact."""
    path = make_image("torn.png", size=(300, 300))
    content = path.read_bytes()
    middle = content.index(b"IDAT") + 8
    path.write_bytes(content[:middle] + bytes(20) + content[middle + 20 :])
    assert scan([build_row(1, path)]).examples
    [problem] = scan([build_row(1, path)], with_signatures=True).problems
    assert (problem.row, str(path) in problem.message) == (1, True)


def save_photograph(path: Path, upper: int, lower: int, **options: Any) -> Path:
    halves = (np.random.default_rng(seed).integers(0, 255, (20, 40, 3), dtype=np.uint8) for seed in (upper, lower))
    PIL.Image.fromarray(np.concatenate(list(halves))).resize((640, 480), PIL.Image.Resampling.BICUBIC).save(
        path, **options
    )
    return path


def test_jpegs_are_decoded_whole_only_if_their_upper_quarters_agree(tmp_path: Path) -> None:
    sky, resaved = save_photograph(tmp_path / "sky.jpg", 1, 2), save_photograph(tmp_path / "anew.jpg", 1, 2, quality=60)
    land, second = save_photograph(tmp_path / "land.jpg", 1, 3), save_photograph(tmp_path / "other.jpg", 4, 2)
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(sky.read_bytes())
    png = save_photograph(tmp_path / "a.png", 4, 2)
    infos = scan([build_row(1, sky, resaved, land, copy)], with_signatures=True).image_infos
    assert {len(info.signature or b"") for info in infos.values()} == {near_duplicates.UPPER_BYTES}
    same = {path: path for path in infos} | {copy: sky}
    signatures = compute_full_signatures(infos, same)
    assert list(signatures) == [sky, resaved, land]
    assert {len(signature) for signature in signatures.values()} == {768}
    assert near_duplicates.near_duplicate_groups(list(signatures.values())) == [[0, 1]]
    assert list(
        compute_full_signatures(
            scan([build_row(1, sky, second, png)], with_signatures=True).image_infos, {second: second, png: png}
        )
    ) == [
        second,
        png,
    ]
    assert (
        compute_full_signatures(
            scan([build_row(1, sky, second)], with_signatures=True).image_infos, {sky: sky, second: second}
        )
        == {}
    )
    assert compute_full_signatures(scan([build_row(1, sky, resaved)]).image_infos, {sky: sky, resaved: resaved}) == {}


def test_damage_below_the_upper_part_of_a_jpeg_is_found_as_by_a_whole_decode(tmp_path: Path) -> None:
    content = save_photograph(tmp_path / "whole.jpg", 1, 2, quality=95).read_bytes()
    damaged, at = tmp_path / "torn.jpg", len(content) * 3 // 4
    for seed in range(20):
        damaged.write_bytes(content[:at] + Random(seed).randbytes(4096) + content[at + 4096 :])
        try:
            load_image(damaged)
            is_refused = False
        except LorgnetteError:
            is_refused = True
        assert bool(scan([build_row(1, damaged)], with_signatures=True).problems) == is_refused
    damaged.write_bytes(content[:at] + b"\xff\xc4" + content[at + 2 :])  # the marker of a table that is missing
    with pytest.raises(LorgnetteError):
        load_image(damaged)
    assert scan([build_row(1, damaged)], with_signatures=True).problems


def test_prefetching_a_pipe_does_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    rows = [
        build_row(1, pipe),
        build_row(2, tmp_path / "gone.png"),
        build_row(3, Path("a\0b.png")),
        build_row(4, tmp_path),
    ]
    assert [problem.row for problem in scan(rows, with_signatures=True).problems] == [1, 2, 3, 4]


@pytest.mark.parametrize("max_wait", [-1.0, 1e9])
def test_slow_images_are_scanned_in_threads_with_the_same_result(
    make_image: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_wait: float
) -> None:
    paths = [make_image(f"{i}.png", size=(10 + i, 20)) for i in range(150)]
    paths[70] = tmp_path / "gone.png"
    threads: list[str] = []
    scan_image = scan_rows.__globals__["_scan_image"]

    def record_thread(path: Path, *, with_signatures: bool) -> object:
        threads.append(threading.current_thread().name)
        return scan_image(path, with_signatures=with_signatures)

    monkeypatch.setitem(scan_rows.__globals__, "_scan_image", record_thread)
    monkeypatch.setitem(scan_rows.__globals__, "_MAX_WAIT", max_wait)
    result = scan(build_row(number, path) for number, path in enumerate(paths))
    assert [info.size for info in result.image_infos.values()] == [(10 + i, 20) for i in range(150) if i != 70]
    assert [(problem.row, problem.message) for problem in result.problems] == [(70, f"image is missing ({paths[70]})")]
    assert len(threads) == 150
    assert any(name.startswith("images") for name in threads) == (max_wait < 0)


def test_two_scan_results_are_merged(make_image: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (
        scan([build_row(1, make_image("a.png"))]),
        scan([build_row(2, make_image("b.png")), build_row(3, tmp_path / "gone.png")]),
    )
    merged = first.merge(second)
    assert [example.row for example in merged.examples] == [1, 2]
    assert [problem.row for problem in merged.problems] == [3]
    assert len(merged.image_infos) == 2


@pytest.mark.parametrize("with_signatures", [True, False])
def test_no_rows_are_an_empty_result(with_signatures: bool) -> None:
    assert scan([], with_signatures=with_signatures).image_infos == {}


def test_each_of_many_images_has_its_own_info(make_image: Callable[..., Path]) -> None:
    """Also if a thread takes several at a time, and fewer at the end."""
    paths = [make_image(f"{number}.png", (number, 0, 0), (20 + number, 20)) for number in range(2 * _TASK_SIZE + 5)]
    result = scan((build_row(number, path) for number, path in enumerate(paths)), with_signatures=True)
    assert [(info.size[0], info.signature and info.signature[0]) for info in result.image_infos.values()] == [
        (20 + number, number) for number in range(len(paths))
    ]


def scan_contrast(path: Path) -> int | None:
    return scan([build_row(1, path)], with_signatures=True).image_infos[path].contrast


def test_the_contrast_is_measured_on_request(tmp_path: Path) -> None:
    narrow = np.random.default_rng(0).integers(0, 2000, (40, 60)).astype(np.uint16)
    for name, values in {"narrow": narrow, "black": narrow // 20, "wide": narrow * 32}.items():
        PIL.Image.fromarray(values).save(tmp_path / f"{name}.png")
    assert scan_contrast(tmp_path / "narrow.png") == 8
    assert scan_contrast(tmp_path / "black.png") == 0
    assert (scan_contrast(tmp_path / "wide.png") or 0) > 200
    assert scan([build_row(1, tmp_path / "wide.png")]).image_infos[tmp_path / "wide.png"].contrast is None


def test_an_image_of_one_color_is_meant_to_be_one(make_image: Callable[..., Path]) -> None:
    assert scan_contrast(make_image("a.png")) is scan_contrast(make_image("a.jpg")) is None


def test_a_plain_upper_part_does_not_decide(tmp_path: Path) -> None:
    """A photograph under a white sky."""
    image = PIL.Image.open(save_photograph(tmp_path / "a.jpg", 1, 2, quality=90)).convert("RGB")
    image.paste((250, 250, 250), (0, 0, 640, 240))
    image.save(tmp_path / "sky.jpg", quality=90)
    assert (scan_contrast(tmp_path / "sky.jpg") or 0) > 100


def test_two_images_that_are_one_file_by_name_alone_break_both_rows(make_image: Callable[..., Path]) -> None:
    flat, other = make_image("0.png"), make_image("1.png")
    turns = [(Turn("user", (Image(path, written), "q")), Turn("assistant", ("a",))) for path, written in (
        (flat, "A/0.png"), (other, "A/1.png"), (flat, "B/0.png"), (flat, "A/0.png"),
    )]  # fmt: skip
    result = scan(Example("x", own, Path("a.json"), row) for row, own in enumerate(turns, start=1))
    assert [row.row for row in result.examples] == [2]
    assert [problem.row for problem in result.problems] == [1, 3, 4]
    assert {problem.fact for problem in result.problems} == {"two images are one file, found by its name alone"}
    assert list(result.image_infos) == [other]


@pytest.mark.parametrize("size", [(2010, 10), (10, 2010)])
def test_only_images_that_keep_their_shape_can_be_too_narrow(
    make_image: Callable[..., Path], size: tuple[int, int]
) -> None:
    row = build_row(1, make_image("a.png", size=size))
    assert scan([row]).examples
    [problem] = scan([row], keeps_shape=True).problems
    assert "too narrow" in problem.fact
    assert problem.where == str(row.images[0].path)


def test_remarks_of_two_parts_are_all_there() -> None:
    row = Example("x", (Turn("user", ("q",)), Turn("assistant", (" a",))), Path("a"), 1, unread_keys=("url",))
    assert [finding.kind for finding in scan([row]).merge(scan([row])).remarks] == ["unread-key", "blanks"] * 2


def test_a_table_without_captions_lacks_a_column(captions: Path) -> None:
    table = captions.with_name("only.csv")
    table.write_text("image\nred.png\n")
    [problem] = scan(read(table)).problems
    assert problem.message == "there is no caption column"


def write_many(folder: Path, name: str) -> Path:
    """A source of 60 rows in one format; every block of four has rows that cannot be used, for various reasons."""
    (folder / "images").mkdir(exist_ok=True)
    for number in range(8):
        PIL.Image.new("RGB", (4 + number, 5)).save(folder / "images" / f"{number}.png")
    (folder / "images" / "broken.png").write_bytes(b"no image")
    images = [*(f"images/{number % 8}.png" for number in range(10)), "images/gone.png", "images/broken.png"]
    path, rows = folder / name, list[str]()
    for number in range(60):
        image, caption = images[number * 5 % 12], f"  caption {number}" if number % 7 == 0 else f"caption {number}"
        if path.suffix in (".csv", ".tsv"):
            caption = {1: '"a\nb"', 3: "", 5: 'a"b"' if number % 2 else '"a" b'}.get(number % 11, caption)
            rows.append((";" if path.suffix == ".csv" else "\t").join([image, caption, f"{number}"]))
        elif name.startswith("captions"):
            keys = ("photo", "text") if number in (21, 33, 34) else ("image", "caption")
            record = {keys[0]: image, keys[1]: caption, **({"score": 1} if number % 5 == 0 else {})}
            if number in (22, 40):  # which columns are read is known from the rows before it
                record = {"photo": image, "alpha": caption, "beta": caption}
            broken = "{broken" if path.suffix == ".jsonl" else "7"
            rows.append(json.dumps(record) if number % 9 else broken)
        else:
            turns = [{"from": "user", "value": f"What? <|vision_start|>{image}<|vision_end|>"}]
            turns += [{"from": "assistant", "value": caption}] if number % 10 else []
            rows.append(json.dumps({"id": f"r{number}", "conversations": turns, **({"x": 1} if number > 30 else {})}))
    head = {".csv": "image;caption;score\n", ".tsv": "image\tcaption\tscore\n", ".json": "["}.get(path.suffix, "")
    end = "]" if path.suffix == ".json" else "\n"
    path.write_text(head + (",\n" if path.suffix == ".json" else "\n").join(rows) + end)
    return path


def describe_scan(result: ScanResult, said: list[str]) -> list[str]:
    examples = [(row, row.sheet_row, row.is_trimmed, row.unread_keys) for row in result.examples]
    return list(map(repr, [*examples, *result.problems, *result.image_infos.items(), *result.remarks, *said]))


def share_rows(monkeypatch: pytest.MonkeyPatch, num_processes: int) -> None:
    for name, value in (("count_processes", lambda: num_processes), ("MIN_SHARED_ROWS", 5), ("_SHARED_BLOCK_SIZE", 4)):
        monkeypatch.setitem(scan.__globals__, name, value)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "captions.jsonl", "captions.json", "a.jsonl", "a.json"])
def test_processes_find_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path, last = write_many(tmp_path, name), write_many(tmp_path, "b.jsonl")
    results = dict[tuple[int, int | None], list[str]]()
    for num_processes in (1, 2):
        share_rows(monkeypatch, num_processes)
        for max_rows in (None, 3, 30):
            said = list[str]()
            rows = read(Path(f"{path},{last}"), max_rows=max_rows, on_columns=said.append)
            results[num_processes, max_rows] = describe_scan(scan(rows), said)
    assert len(results[1, None]) > 100
    for max_rows in (None, 3, 30):
        assert results[2, max_rows] == results[1, max_rows]


def test_rows_whose_columns_depend_on_earlier_ones_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each process chose the columns of its own rows, the test above would fail."""
    path = write_many(tmp_path, "captions.jsonl")
    share_rows(monkeypatch, 1)
    expected = describe_scan(scan(read(path)), [])
    share_rows(monkeypatch, 2)
    assert describe_scan(scan(read(path)), []) == expected
    monkeypatch.setattr(_RowScanner, "scan_block", scan_with_own_choices)
    assert describe_scan(scan(read(path)), []) != expected


def scan_with_own_choices(scanner: _RowScanner, last: PendingRow, block: list[tuple[int, int, int, str]]) -> object:
    read_line = copy.deepcopy(last.read)  # as if the rows of earlier blocks were with another process
    rows = [
        PendingRow(last.location._replace(row=row, number=number, sheet_row=sheet_row), line, read_line)
        for row, number, sheet_row, line in block
    ]
    return _ScannedRows.from_rows(scanner.scan_rows(read_pending(rows)))


def test_an_image_that_stands_for_two_is_found_across_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(30):
        PIL.Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    rows = [f"A/{number}.png,x" for number in range(30)] + ["B/3.png,x", "B/7.png,x"]
    (tmp_path / "a.csv").write_text("\n".join(["image_path,caption", *rows]))
    results = []
    for num_processes in (1, 2):
        share_rows(monkeypatch, num_processes)
        result = scan(read(tmp_path / "a.csv", images_from=tmp_path / "images"))
        results.append(describe_scan(result, []))
        assert [problem.row for problem in result.problems] == [5, 9, 32, 33]
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["a.jsonl", "captions.jsonl"])
def test_an_error_of_the_file_comes_behind_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """In the second file, it is met before processes are started anew for rows with other columns."""
    path = write_many(tmp_path, name)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:25], b"\xff\n", *lines[25:]]))
    messages = []
    for num_processes in (1, 2):
        share_rows(monkeypatch, num_processes)
        with pytest.raises(LorgnetteError) as caught:
            scan(read(path))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "line 26" in messages[0]


def test_rows_are_the_same_where_no_process_can_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_many(tmp_path, "captions.jsonl")
    share_rows(monkeypatch, 1)
    expected = describe_scan(scan(read(path)), [])

    def fail() -> int:
        raise BlockingIOError("no more processes")

    share_rows(monkeypatch, 2)
    monkeypatch.setattr(os, "fork", fail)
    assert describe_scan(scan(read(path)), []) == expected
    assert describe_scan(scan(read(path)), []) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="processes read rows on Linux only")
@pytest.mark.parametrize("send", [os.killpg, os.kill])
def test_ctrl_c_ends_the_command_and_its_processes(tmp_path: Path, send: Callable[[int, int], None]) -> None:
    """As a terminal sends it, to the whole group, and as a scheduler does, to the command alone."""
    table = tmp_path / "rows.csv"
    table.write_text("image,caption\n" + "a.jpg,a dog\n" * 4000)
    script = f"""
        import sys, time
        from lorgnette.__main__ import main
        from lorgnette.data.checks import scan

        def check_slowly(*arguments, check=scan._check_example):
            time.sleep(0.1)
            return check(*arguments)

        scan.MIN_SHARED_ROWS, scan._SHARED_BLOCK_SIZE = 2, 500
        scan._check_example, scan.count_processes = check_slowly, lambda: 2
        sys.argv = ["lorgnette", "check", {str(table)!r}, "--no-look-alikes"]
        main()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as parent:
        deadline = time.monotonic() + 30
        while len(workers := _list_children(parent.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(workers) == 2
        send(parent.pid, signal.SIGINT)
        _, said = parent.communicate(timeout=30)  # a block takes 50 seconds
    assert (parent.returncode, said) == (130, "stopped\n")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def _list_children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
