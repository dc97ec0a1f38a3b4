"""A person's mistake in data, settings or places: one message, status 1 or 2, nothing overwritten or left."""

import csv
import json
import subprocess
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from lorgnette import cli as command_line
from lorgnette.report import run_log

OTHER_LINES = (
    "data ",
    "all 2 held-out rows have the same image",
    "imports ",
    "metrics ",
    "prompt ",
    "steps ",
    "only ",
    "engine ",
    "transformers ",
    "weights ",
    "features ",
)
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def noise(side: int = 120, channels: int = 3) -> PIL.Image.Image:
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, channels), dtype=np.uint8))


def damaged(path: Path) -> None:
    """Zeros in the middle of the pixels: its header and its end are as they should be."""
    noise().save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)


def broken_images(folder: Path) -> dict[str, str]:
    """Name → a part of its message."""
    noise().save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    head = b"IHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\r" + head + zlib.crc32(head).to_bytes(4, "big") + bytes(4) + b"IDAT"
    contents = {
        "empty.png": b"",
        "truncated.jpg": whole[: len(whole) // 2],
        "page.jpg": b"<!DOCTYPE html><html>404</html>",
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "text.png": b"a cat",
        "zeros.jpg": bytes(500),
        "bomb.png": bomb,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    return {
        "missing.png": "image is missing", "empty.png": "zero bytes", "truncated.jpg": "truncated",
        "page.jpg": "a web page", "pointer.png": "git-lfs pointer", "text.png": "not an image",
        "zeros.jpg": "zeros", "bomb.png": "too large", "folder.png": "a folder",
    }  # fmt: skip


def odd_images(folder: Path) -> list[str]:
    """Valid images that a strict loader may refuse."""
    noise().save(folder / "a png.jpg", "PNG")
    noise().save(folder / "moving.gif", save_all=True, append_images=[noise(90)])
    PIL.Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(folder / "deep.png")
    noise().convert("CMYK").save(folder / "print.jpg")
    noise(channels=4).save(folder / "clear.png")
    noise().convert("LA").save(folder / "greyclear.png")
    noise().convert("P").save(folder / "ünï 图,像.png")
    PIL.Image.new("L", (1, 1)).save(folder / "dot.png")
    PIL.Image.new("RGB", (900, 4)).save(folder / "narrow.png")  # too narrow only if images keep their shape
    return [
        "a png.jpg", "moving.gif", "deep.png", "print.jpg", "clear.png", "greyclear.png", "ünï 图,像.png", "dot.png",
        "narrow.png",
    ]  # fmt: skip


def write(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image_path", "caption"), *rows])


def skipped(run: Path) -> list[tuple[int, str]]:
    return [
        (record["row"], record["message"])
        for record in run_log.read_log(run / "log.jsonl")
        if record["kind"] == "skipped"
    ]


def test_broken_images_are_each_named_and_left_out_on_request(tmp_path: Path, cli, quick) -> None:
    odd, broken = odd_images(tmp_path), broken_images(tmp_path)
    write(tmp_path / "captions.csv", [(name, "words") for name in [*odd, *broken]])
    checked = cli("check", "captions.csv", "--json")
    assert checked.status == 1
    report = json.loads(checked.out)
    assert (report["rows"], report["usable"]) == (len(odd) + len(broken), len(odd))
    for problem, (name, message) in zip(report["problems"], broken.items(), strict=True):
        assert name in problem["message"]
        assert message in problem["message"]
        assert problem["hint"]
        assert problem["row"] == 2 + [*odd, *broken].index(name)

    cli(*quick()).assert_refused(1, "9 of 18 rows", "row 11: image is missing", "data.on_bad_row=skip")
    assert not (tmp_path / "run").exists()

    result = cli(*quick("data.on_bad_row=skip"))
    assert result.status == 0, result.err
    assert [row for row, _ in skipped(tmp_path / "run")] == [problem["row"] for problem in report["problems"]]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for name in broken:
        assert name in page
        assert name in result.err
    assert "7 trained on, 2 held out" in page


def test_damage_that_only_decoding_shows_stops_before_the_first_step(tmp_path: Path, captions, cli, quick) -> None:
    damaged(tmp_path / "3.png")
    assert cli("check", "captions.csv", "--no-look-alikes").status == 0
    assert cli("check", "captions.csv").status == 1
    result = cli(*quick())
    result.assert_refused(
        1, "2 of 16 rows", "2 rows: image cannot be decoded", "3.png", "rows 5, 13", "data.on_bad_row=skip"
    )
    assert "step " not in result.err
    assert not (tmp_path / "run").exists()
    result = cli(*quick("data.on_bad_row=skip", run="skipping"))
    assert result.status == 0, result.err
    assert result.err.count("skipped: ") == 1
    assert [row for row, _ in skipped(tmp_path / "skipping")] == [5, 13]
    assert "rows 5, 13" in (tmp_path / "skipping" / "report.html").read_text(encoding="utf-8")
    assert "step 1 " in result.err


def test_damage_in_a_test_file_that_is_the_data_itself(tmp_path: Path, captions, cli, quick) -> None:
    """The same rows in both parts; and such a run can be resumed."""
    damaged(tmp_path / "3.png")
    assert cli(*quick("data.on_bad_row=skip", "data.test=captions.csv")).status == 0
    assert [row for row, _ in skipped(tmp_path / "run")] == [5, 13, 5, 13]
    assert cli("train", "--resume", "run").status == 0


def test_nothing_left_to_train_on(tmp_path: Path, cli, quick) -> None:
    damaged(tmp_path / "a.png")
    write(tmp_path / "captions.csv", [("a.png", "one"), ("a.png", "two")])
    result = cli(*quick("data.on_bad_row=skip", "data.holdout=0"))
    result.assert_refused(1, "no example left")
    assert "rows 2–3" in result.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"image_path,caption\n", "no rows"),
        ("a.csv", b"image,width\n0.png,3\n", "not clear which column holds the captions"),
        ("a.csv", b"a;b\nx;y\n", "not clear which column holds the images"),
        ("a.csv", "image_path,caption\n0.png,m\xe8re\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", "image_path,caption\n0.png,x\n".encode("utf-16")[:-1], "no whole UTF-16"),
        ("a.csv", b"image_path,caption\n0.png,\n", "the caption is empty"),
        ("a.csv", b'image_path,caption\n0.png,"open\n', "never closed"),
        ("a.csv", b"image_path,caption\nhttps://x.y/z.png,x\n", "a URL"),
        ("a.json", b"{", "broken JSON"),
        ("a.json", b'{"id": 1}', "not a list"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"[1]", "a number, not an object"),
        ("a.json", b'[{"conversations": [{"from": "user", "value": "<|vision_start|>0.png"}]}]', "without its"),
        ("a.json", b'[{"messages": [{"role": "user", "content": "<image><image>"}], "images": ["0.png"]}]', "2 ×"),
        ("a.jsonl", b'{"id"\n', "broken JSON"),
        ("a.ods", b"x", "spreadsheets of type '.ods' are not read"),
    ],
)
def test_data_files(name: str, content: bytes, message: str, tmp_path: Path, captions, cli, quick) -> None:
    (tmp_path / name).write_bytes(content)
    checked, trained = cli("check", name), cli(*quick(data=name))
    assert checked.status in (1, 2)
    assert trained.status == (2 if name == "a.txt" else 1)
    for output in (checked.out + checked.err, trained.err):
        assert message in output
        assert "Traceback" not in output
    assert name in trained.err
    assert not (tmp_path / "run").exists()


def test_a_long_caption_and_one_over_several_lines_and_control_tokens_are_text(tmp_path, captions, cli, quick) -> None:
    texts = [
        "one\ntwo\r\nthree",
        "an <|im_end|> inside",
        "<|image_pad|><|vision_start|>",
        "[bold]no markup[/] :cat: \\",
    ]
    write(tmp_path / "captions.csv", [(f"{i}.png", text) for i, text in enumerate(texts)])
    assert cli("check", "captions.csv", "data.holdout=2").status == 0
    assert cli(*quick("data.split=tail")).status == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["references"] for row in rows] == [[text] for text in texts[2:]]


def test_an_example_beyond_max_tokens_is_a_broken_row(tmp_path: Path, captions, cli, quick) -> None:
    with captions.open("a") as file:
        file.write(f"0.png,{'long ' * 200}\n")
    cli(*quick("max_length=100")).assert_refused(1, "1 of 17 rows", "row 18:", "more than max_length=100")
    assert not (tmp_path / "run").exists()
    assert cli(*quick("max_length=100", "data.on_bad_row=skip", "data.split=tail")).status == 0
    [(row, what)] = skipped(tmp_path / "run")
    assert row == 18
    assert "max_length=100" in what


def test_rows_of_one_id_are_all_kept(tmp_path: Path, captions, cli, quick) -> None:
    turns = [{"from": "user", "value": "<|vision_start|>0.png<|vision_end|>"}, {"from": "assistant", "value": "red"}]
    (tmp_path / "same.json").write_text(json.dumps([{"id": "same", "conversations": turns}] * 4))
    assert cli(*quick("data.split=tail", data="same.json")).status == 0
    assert "2 trained on, 2 held out" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    [line] = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["references"] == ["red", "red"]  # one prompt, answered once, with both references


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.lrr=1", "did you mean train.learning_rate?"),
        ("lora.alhpa=1", "did you mean lora.alpha?"),
        ("train.learning_rate=abc", "valid number"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("train.learning_rate=inf", "finite"),
        ("train.epochs=0", "whole number of 1 or more"),
        ("train.batch_size=1.5", "not a whole number"),
        ("seed=99999999999999999999", "less than"),
        ("lora.target_modules=foo", "'q_proj'"),
        ("lora.parts=", "at least 1 item"),
        ("image_size=2x3x4", "not a whole number"),
        ("image_tokens=10,4", "image_tokens"),
        ("data.on_bad_row=ignore", "'error' or 'skip'"),
        ("report_to=swanlap", "'swanlab'"),
        ("model=null", "valid string"),
        ("=5", "unknown setting"),
        ("lr", "write key=value"),
    ],
)
def test_settings(word: str, message: str, tmp_path: Path, captions, cli, quick) -> None:
    cli(*quick(word)).assert_refused(2, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "status", "message"),
    [
        ("data.holdout=16", 2, "there are 16 usable rows"),
        ("report_to=swanlab,none", 2, "cannot be combined"),
        ("run=captions.csv", 1, "run folder cannot be created"),
        ("run=captions.csv/run", 1, "run folder cannot be created"),
        ("run=/proc/nowhere/run", 1, "run folder cannot be created"),
        (f"run={'x' * 300}", 1, "File name too long"),
        (f"model={'x' * 300}", 1, "ile name too long"),
        ("data=nowhere.csv", 1, "does not exist"),
        ("data=.", 2, "a folder, not a data file"),
        ("data.test=nowhere.csv", 1, "does not exist"),
        ("lora.rank=1000000000", 2, "less than or equal to 65536"),
    ],
)
def test_settings_that_only_the_start_can_check(word, status, message, tmp_path: Path, captions, cli, quick) -> None:
    before = captions.read_bytes()
    cli(*quick(word)).assert_refused(status, message)
    assert not (tmp_path / "run").exists()
    assert captions.read_bytes() == before


def test_a_tracker_that_is_not_installed(tmp_path: Path, captions, cli, quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.report.trackers.tracker.is_installed", lambda package: False)
    for data in ("captions.csv", "missing.csv"):  # before the data is read
        cli(*quick("report_to=wandb", data=data)).assert_refused(2, "not installed", "pip install wandb")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_none(tmp_path: Path, captions, cli) -> None:
    (tmp_path / "odd.yaml").write_text("train: [")
    (tmp_path / "list.yaml").write_text("- a")
    (tmp_path / "typo.yaml").write_text("train: {lrr: 1}")
    cli("train", "coco-captoin").assert_refused(2, "did you mean coco-caption?")
    cli("train", "caption.csv", "model=demo").assert_refused(1, "does not exist", "captions.csv?")
    cli("train", "odd.yam").assert_refused(2, "did you mean odd.yaml?")
    cli("train", "odd.yaml").assert_refused(2, "cannot read the recipe", "odd.yaml")
    cli("train", "list.yaml").assert_refused(2, "not a mapping")
    cli("train", "typo.yaml").assert_refused(2, "did you mean train.learning_rate?", "typo.yaml")
    cli("train", "x" * 300).assert_refused(1, "File name too long")
    cli("train").assert_refused(2, "no data", "data=captions.csv")
    cli("recipe", "show", "0.png").assert_refused(2, "not a recipe")
    cli("recipe", "copy", "demo", "captions.csv").assert_refused(2, "file exists")


def test_a_run_folder_is_never_overwritten(tmp_path: Path, captions, cli, quick) -> None:
    assert cli(*quick()).status == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    cli(*quick()).assert_refused(2, "exists and is not empty", "--resume run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    cli(*quick(run="mine")).assert_refused(2, "exists and is not empty")
    cli("demo", "--out", "mine").assert_refused(2, "this folder is not empty")
    cli("demo", "--out", "captions.csv").assert_refused(2, "this folder is not empty")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_demo_looks_at_its_words_before_it_draws(tmp_path: Path, cli) -> None:
    cli("demo", "train.learning_rate=abc").assert_refused(2, "train.learning_rate")
    assert not (tmp_path / "runs").exists()


def test_prepare(tmp_path: Path, captions, cli) -> None:
    cli("prepare", "captions.csv", "--out", "0.png").assert_refused(2, "a file, not a folder")
    cli("prepare", "captions.csv", "--holdout", 16).assert_refused(2, "there are 16 usable rows")
    cli("prepare", "captions.csv", "--out", "/proc/nowhere").assert_refused(1, "cannot write")
    assert not (tmp_path / "data").exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data_vl_test.json").write_text("mine")
    cli("prepare", "captions.csv").assert_refused(2, "with other content")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["data_vl_test.json"]
    write(tmp_path / "broken.csv", [("0.png", "x"), ("gone.png", "x")])
    cli("prepare", "broken.csv").assert_refused(1, "row 3: image is missing", "--on-bad-row skip")


def test_ctrl_c_before_the_first_step_leaves_nothing(tmp_path, captions, cli, quick, monkeypatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", pressed)
    assert cli(*quick()).status == 130
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_is_said(error: Exception, tmp_path, captions, cli, quick, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", fail)
    cli(*quick()).assert_refused(1, "out of memory")
    assert not (tmp_path / "run").exists()


def test_a_defect_of_ours_keeps_its_traceback(captions, quick, monkeypatch, tmp_path: Path) -> None:
    """Negative control: what is no person's mistake is not explained away."""

    def defect(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lorgnette.engine.peft_engine.load_base_model", defect)
    monkeypatch.setattr("sys.argv", ["lorgnette", *quick()])
    with pytest.raises(ZeroDivisionError):
        command_line.main()


def test_in_a_process_of_its_own(tmp_path: Path, captions: Path, lorgnette_process: Run, quick) -> None:
    """The same in a new process: it prints the message and nothing else."""
    damaged(tmp_path / "3.png")
    result = lorgnette_process(*quick())
    assert result.returncode == 1
    assert not result.stdout
    lines = [line for line in result.stderr.splitlines() if "FutureWarning" not in line and "pynvml" not in line]
    shown = [line for line in lines if not line.startswith(OTHER_LINES)]
    assert shown[0] == "lorgnette: 2 of 16 rows cannot be used:"
    assert len(shown) == 3
    assert not (tmp_path / "run").exists()
