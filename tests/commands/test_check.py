"""`check` finds every planted fault at its row, and nothing else."""

import html
import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from lorgnette import config
from lorgnette.commands.check import check
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.planning.gpus import GPUS
from lorgnette.report.check_report import CheckReport
from lorgnette.resolve import BUILT_IN_MODEL

OVERRIDES = ["model=demo", "image_size=56", "max_length=260", "predict.max_new_tokens=60"]


def load(*overrides: str) -> config.Settings:
    return config.load_settings(None, overrides)


@pytest.fixture
def console(terminal_output: io.StringIO) -> Console:
    return Console(file=terminal_output)


def test_printed_lines(captions: Path, terminal_output: io.StringIO, console: Console) -> None:
    with captions.open("a") as file:
        file.write("gone.png,nothing\n")
    report = check(captions, console=console)
    assert (report.data_report.num_rows, report.data_report.num_usable, report.is_blocking) == (7, 6, True)
    lines = terminal_output.getvalue().splitlines()
    assert lines[0].startswith(f"{captions}, row 8: ")
    assert (
        "judged by  model Qwen/Qwen2-VL-2B-Instruct; images 280×280 pixels; "
        f"prompt {config.Settings().data.prompt!r} (the default); settings defaults"
    ) in lines
    assert "rows       7, 6 usable, 1 broken" in lines
    assert lines[-1].startswith("result     Training would not start: 1 of 7 rows cannot be used")
    assert lines[-1].endswith("; mend these rows, or leave them out: data.on_bad_row=skip.")


def test_several_gpus_are_in_the_commands(captions: Path, monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    """Not in that of `preview`, which does not know them. A machine with fewer gets a warning."""
    monkeypatch.setattr("lorgnette.training.start_warnings.find_gpus", lambda: [GPUS["T4"]] * 2)
    report = check(captions, gpus="4", console=console)
    assert "this machine has 2 GPUs: the training would not start here with gpus=4" in report.setting_advice
    assert [command.split()[1] for _, command in report.next_steps if command.endswith(" gpus=4")] == ["plan", "train"]
    assert len(report.next_steps) == 3
    with pytest.raises(UsageError, match="no number of GPUs"):
        check(captions, gpus=0, console=console)


def test_empty_data_is_blocking(tmp_path: Path, terminal_output: io.StringIO, console: Console) -> None:
    (tmp_path / "none.csv").write_text("image_path,caption\n")
    assert check(tmp_path / "none.csv", console=console).is_blocking
    assert "the data has no rows" in terminal_output.getvalue()


def test_missing_model_is_reported_and_not_downloaded(
    captions: Path, terminal_output: io.StringIO, console: Console
) -> None:
    report = check(captions, settings=load("model=nobody/has-this"), look_alikes=False, console=console)
    assert report.token_stats is None
    assert not report.is_blocking
    assert "nobody/has-this is not on this machine" in terminal_output.getvalue()
    assert "; not checked: whether this model is supported, tokens," in report.summary
    assert "look-alikes: switched off" in terminal_output.getvalue()
    with pytest.raises(LorgnetteError, match="nowhere"):
        check(captions, settings=load("model=nowhere"), look_alikes=False)


def test_known_model_that_is_not_on_this_machine(
    captions: Path, terminal_output: io.StringIO, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name, the size of its image tokens and whether the fast engine runs it are known without its files."""
    monkeypatch.setattr("lorgnette.hub.models.find_in_cache", lambda name, **options: None)
    report = check(captions, settings=load("model=qwen3-VL-4b"), console=console)
    assert dict(report.basis)["model"] == "Qwen/Qwen3-VL-4B-Instruct"
    assert dict(report.basis)["images"] == "288×288 pixels"
    remark = "image_size 280×280 becomes 288×288: an image token of this model has 32×32 pixels"
    assert report.setting_advice == [remark]
    assert "not checked: tokens." in report.summary
    for words in (["model=qwen3-vl-30b-a3b", "engine=fast"], ["model=Qwen3.5-4B", "engine=fast"]):
        with pytest.raises(UsageError, match="the fast engine does not run this model"):
            check(captions, settings=load(*words), console=console)


def test_metric_that_training_refuses_is_refused(
    captions: Path, terminal_output: io.StringIO, console: Console
) -> None:
    for override in ("train.metric_for_best_model=foo", "predict.metrics=foo"):
        with pytest.raises(UsageError, match="foo"):
            check(captions, settings=load(override), console=console)
    assert not terminal_output.getvalue()
    with pytest.raises(UsageError, match=r"held.out"):
        check(captions, settings=load("train.metric_for_best_model=CIDEr-D", "data.holdout=1"), console=console)
    assert "result " in terminal_output.getvalue(), "everything else is printed first"
    check(captions, settings=load("train.metric_for_best_model=ROUGE-L", "data.holdout=2"), console=console)


def test_held_out_rows_of_one_image(captions: Path, terminal_output: io.StringIO, console: Console) -> None:
    colors = ("red", "green", "blue")
    rows = [f'{color}.png,"a {color} one, number {n}"' for color in colors for n in range(5)]
    captions.write_text("\n".join(["image_path,caption", *rows]) + "\n")
    report = check(captions, settings=load("data.holdout=4"), console=console)
    assert (report.split.num_held_out, report.split.num_held_out_images) == (5, 1)
    assert "all 5 held-out rows have the same image" in terminal_output.getvalue()
    assert not check(captions, settings=load("data.holdout=10"), console=console).split.advice


def test_tail_split_may_leak(captions: Path, console: Console) -> None:
    captions.write_text("image_path,caption\nred.png,one\nblue.png,two\nred.png,three\n")
    report = check(captions, settings=load("data.split=tail", "data.holdout=1"), console=console)
    assert [(finding.kind, finding.problem.row) for finding in report.findings] == [("leak", 4)]
    assert not check(captions, settings=load("data.holdout=1"), console=console).findings


def test_split_that_leaves_no_training_rows_is_blocking(
    captions: Path, terminal_output: io.StringIO, console: Console
) -> None:
    assert check(captions, settings=load("model=demo", "data.holdout=6"), console=console).is_blocking
    assert "no rows can be held out: holdout is 6, but there are 6 usable rows" in " ".join(
        terminal_output.getvalue().split()
    )
    assert not check(captions, settings=load("model=demo"), console=console).is_blocking


def test_report_overwrites_no_input(captions: Path, tmp_path: Path) -> None:
    test_file = shutil.copy(captions, tmp_path / "test.csv")
    before = captions.read_bytes()
    for out in (captions, test_file, tmp_path):
        with pytest.raises(UsageError, match="--out"):
            check(captions, settings=load(f"data.test={test_file}"), out=out)
    assert captions.read_bytes() == test_file.read_bytes() == before


def test_url_of_images_works_only_for_data_of_a_hub(captions: Path, console: Console) -> None:
    url = "http://127.0.0.1/x.zip"
    with pytest.raises(UsageError, match="download"):
        check(captions, images_from=url, console=console)
    with pytest.raises(UsageError, match="download"):
        check(captions, settings=load(f"data.images_from={url}"), console=console)
    hub_settings = load("data=hf:some/one", f"data.images_from={url}")
    for images_from in (None, url):  # a local file takes the place of the settings' data, as in training
        with pytest.raises(UsageError, match="download"):
            check(captions, settings=hub_settings, images_from=images_from, console=console)


def test_html_report_of_the_first_rows(captions: Path, tmp_path: Path, console: Console) -> None:
    report = check(captions, rows=2, prompt="What?", out=tmp_path / "x.html", console=console)
    assert report.data_report.num_rows == 2
    html = (tmp_path / "x.html").read_text()
    assert "captions.csv" in html
    assert str(captions.parent) not in html.partition('<h2 id="next">')[2].partition("</section>")[2]
    assert f"<span>{captions}</span>" in html, "a command has the path as it was typed"
    assert "&#39;What?&#39; (of data.prompt)" in html


def test_page_shows_the_broken_rows_images(captions: Path, tmp_path: Path, console: Console) -> None:
    """As far as a file goes that is cut off, and whole where only the caption is missing."""
    paint_image(1, (640, 480)).save(captions.with_name("whole.jpg"))
    content = captions.with_name("whole.jpg").read_bytes()
    captions.with_name("cut.jpg").write_bytes(content[: len(content) * 2 // 3])
    captions.write_text("image_path,caption\ncut.jpg,a\nwhole.jpg,\ngone.jpg,b\nred.png,c\nred.png,c\n")
    report = check(captions, settings=load("data.holdout=0"), out=tmp_path / "x.html", console=console)
    broken = [finding.images for finding in report.findings if finding.kind == "unusable"]
    assert broken == [(captions.with_name("cut.jpg"),), (captions.with_name("whole.jpg"),), ()]
    [repeated] = [finding.images for finding in report.findings if finding.kind == "repeated-row"]
    assert repeated == (captions.with_name("red.png"),)
    assert (tmp_path / "x.html").read_text().count("data:image/jpeg") == 3


def test_check_starts_where_training_leaves_broken_rows_out(
    captions: Path, terminal_output: io.StringIO, console: Console
) -> None:
    from lorgnette.report.console import Terminal
    from lorgnette.training.data_module import TrainingData

    with captions.open("a") as file:
        file.write("gone.png,nothing\n")
    settings = load(f"data={captions}", "data.holdout=2", "data.on_bad_row=skip", "image_size=56", "model=demo")
    report = check(captions, settings=settings, console=console)
    assert not report.is_blocking
    assert report.summary.startswith("Ready to train: 1 of 7 rows is broken and left out")
    assert f"steps      {report.steps}\n" in terminal_output.getvalue()
    assert "4 examples" in report.steps
    assert len(TrainingData.load(settings, Terminal(console)).examples) == report.num_trainable
    too_long = settings.model_copy(update={"max_length": 20})
    assert check(captions, settings=too_long, console=console).is_blocking
    with pytest.raises(LorgnetteError, match="no example left"):
        TrainingData.load(too_long, Terminal(console))


# ── planted faults ──────────────────────────────────────────────────────────────────────────────────────────────────

Row = dict[str, Any]
CLEAN = 3
"""Rows at the start without faults, so that others can copy them."""


def paint_image(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A distinct image: a few smooth patches of color."""
    cells = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


SCRIPTS = {"other_language": "Han", "long_answer": "no letters"}
"""Writing systems of the answers that are not in Latin letters."""


class Planted:
    """A data set in two files, with faults in known rows."""

    def __init__(self, folder: Path, train: list[str], test: list[str]) -> None:
        self.folder = folder
        self.expected: list[tuple[str, int, str]] = []
        self.scripts = Counter({"Latin": CLEAN})
        self.train = [self._row(number) for number in range(CLEAN + len(train))]
        self.test = [self._row(100 + number) for number in range(len(test))]
        for name, rows, faults, skip in (("train", self.train, train, CLEAN), ("test", self.test, test, 0)):
            for index, fault in enumerate(faults, start=skip):
                kinds = getattr(self, fault)(rows[index], 1000 * (name == "test") + index, name)
                self.expected += [(f"{name}.jsonl", index + 1, kind) for kind in kinds]
                self.scripts[SCRIPTS.get(fault, "Latin")] += "unusable" not in kinds
        for name, rows in (("train", self.train), ("test", self.test)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def _row(self, number: int) -> Row:
        paint_image(number).save(self.folder / f"{number}.png")
        turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": f"It is {number}."}]
        return {"messages": turns, "images": [f"{number}.png"]}

    def _file(self, row: Row, number: int, suffix: str = "jpg") -> Path:
        row["images"] = [f"fault{number}.{suffix}"]
        return self.folder / f"fault{number}.{suffix}"

    def nothing(self, row: Row, number: int, part: str) -> list[str]:
        return []

    def missing(self, row: Row, number: int, part: str) -> list[str]:
        self._file(row, number)
        return ["unusable"]

    def empty_file(self, row: Row, number: int, part: str) -> list[str]:
        self._file(row, number).touch()
        return ["unusable"]

    def not_an_image(self, row: Row, number: int, part: str) -> list[str]:
        self._file(row, number).write_text("<html>404</html>")
        return ["unusable"]

    def truncated(self, row: Row, number: int, part: str) -> list[str]:
        paint_image(number, (200, 200)).save(path := self._file(row, number))
        path.write_bytes(path.read_bytes()[:-200])
        return ["unusable"]

    def corrupt_png(self, row: Row, number: int, part: str) -> list[str]:
        """Broken in the middle; header and end are intact."""
        paint_image(number, (200, 200)).save(path := self._file(row, number, "png"))
        content = path.read_bytes()
        middle = content.index(b"IDAT") + 8
        path.write_bytes(content[:middle] + bytes(20) + content[middle + 20 :])
        return ["unusable"]

    def corrupt_jpeg(self, row: Row, number: int, part: str) -> list[str]:
        """Broken below the part that is decoded of most JPEGs: a table marker without its table."""
        paint_image(number, (640, 480)).save(path := self._file(row, number), quality=90)
        content = path.read_bytes()
        index = len(content) * 3 // 4
        path.write_bytes(content[:index] + b"\xff\xc4" + content[index + 2 :])
        return ["unusable"]

    def photograph(self, row: Row, number: int, part: str) -> list[str]:
        """An ordinary image; only its upper part is decoded."""
        paint_image(number, (640, 480)).save(self._file(row, number), quality=90)
        return []

    def same_upper_half(self, row: Row, number: int, part: str) -> list[str]:
        """Upper half of a clean image, another lower half: not a look-alike."""
        image = paint_image(number, (640, 480))
        image.paste(paint_image(number % CLEAN, (640, 480)).crop((0, 0, 640, 200)))
        image.save(self._file(row, number), quality=90)
        return []

    def other_language(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][1]["content"] = f"这是第 {number} 张图片。"
        return []

    def narrow(self, row: Row, number: int, part: str) -> list[str]:
        """Beyond 200:1, which only images that keep their shape must not be."""
        paint_image(number, (8100, 40)).save(self._file(row, number))
        return ["odd-shape"]

    def dark_scan(self, row: Row, number: int, part: str) -> list[str]:
        """16 bits, of whose values only 2,000 are used; each image has others, so that none is another's look-alike."""
        values = np.asarray(paint_image(number).convert("L")).astype(np.uint16) * 8 + number * 29 % 251 * 256
        Image.fromarray(values).save(self._file(row, number, "png"))
        return ["low-contrast"]

    def one_color(self, row: Row, number: int, part: str) -> list[str]:
        color = (number * 83 % 256, number * 151 % 256, number * 199 % 256)
        Image.new("RGB", (64, 48), color).save(self._file(row, number, "png"))
        return []

    def no_answer(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][1]["content"] = "  "
        return ["unusable"]

    def no_label(self, row: Row, number: int, part: str) -> list[str]:
        del row["messages"][1]
        return ["unusable"]

    def too_many_markers(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][0]["content"] = "<image><image>What?"
        return ["unusable"]

    def too_many_images(self, row: Row, number: int, part: str) -> list[str]:
        row["images"] = row["images"] * 2
        return ["unusable"]

    def too_many_tokens(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][0]["content"] = "<image>" + "0 " * 260
        return ["over-budget"]

    def long_answer(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][1]["content"] = f"{number} " * 15 + "7" * 60
        return ["overlong-answer"]

    def overlong_and_control(self, row: Row, number: int, part: str) -> list[str]:
        """Two faults in one row are two findings."""
        row["messages"][1]["content"] = f"It is {number} " + "7" * 60 + "<|im_end|>"
        return ["overlong-answer", "control-text"]

    def control_token(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][1]["content"] += "<|im_end|>"
        return ["control-text"]

    def marker_in_answer(self, row: Row, number: int, part: str) -> list[str]:
        row["messages"][1]["content"] += "<image>"
        return ["stray-marker"]

    def long_shape(self, row: Row, number: int, part: str) -> list[str]:
        paint_image(number, (400, 50)).save(self._file(row, number))
        return ["odd-shape"]

    def tiny(self, row: Row, number: int, part: str) -> list[str]:
        paint_image(number, (20, 20)).save(self._file(row, number, "png"))
        return ["tiny"]

    def duplicate_row(self, row: Row, number: int, part: str) -> list[str]:
        row |= json.loads(json.dumps(self.train[number % CLEAN]))
        return ["repeated-row", *(["leak"] if part == "test" else [])]

    def same_image(self, row: Row, number: int, part: str) -> list[str]:
        row["images"] = self.train[number % CLEAN]["images"]
        return ["leak"] if part == "test" else []

    def same_bytes(self, row: Row, number: int, part: str) -> list[str]:
        shutil.copyfile(self.folder / self.train[number % CLEAN]["images"][0], self._file(row, number, "png"))
        return ["leak"] if part == "test" else ["copy"]

    def saved_again(self, row: Row, number: int, part: str) -> list[str]:
        with Image.open(self.folder / self.train[number % CLEAN]["images"][0]) as image:
            size = (128 + number % 1000, 96)
            image.resize(size, Image.Resampling.BICUBIC).save(self._file(row, number), quality=90)
        return ["look-alike-leak"] if part == "test" else ["look-alike"]


HARMLESS = ("nothing", "same_image", "photograph", "same_upper_half", "other_language", "one_color")
FAULTS = [name for name in vars(Planted) if not name.startswith("_")]


def check_folder(folder: Path, *overrides: str) -> CheckReport:
    settings = load(*OVERRIDES, f"data.test={folder / 'test.jsonl'}", *overrides)
    return check(folder / "train.jsonl", settings=settings, console=Console(file=io.StringIO()))


def list_findings(report: CheckReport) -> list[tuple[str, int, str]]:
    return sorted((finding.problem.source.name, finding.problem.row, finding.kind) for finding in report.findings)


@given(st.lists(st.sampled_from(FAULTS), max_size=6), st.lists(st.sampled_from(FAULTS), min_size=1, max_size=4))
@hypothesis_settings(max_examples=20)
def test_planted_faults_are_found_and_nothing_else(train: list[str], test: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        planted = Planted(Path(folder), train, test)
        report = check_folder(planted.folder)
        assert list_findings(report) == sorted(planted.expected)
        assert {name: count for name, (count, _) in report.scripts.items()} == +planted.scripts
        assert report.is_blocking == any(kind in ("unusable", "over-budget") for _, _, kind in planted.expected)
        listed = [(Path(item["source"]).name, item["row"], item["kind"]) for item in report.as_dict()["findings"]]
        assert sorted(listed) == sorted(planted.expected)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str, tmp_path: Path) -> None:
    """The property test may not draw every fault."""
    for part in ("train", "test"):
        folder = tmp_path / part
        folder.mkdir()
        planted = Planted(folder, [fault] * (part == "train"), [fault] if part == "test" else ["nothing"])
        assert list_findings(check_folder(folder)) == sorted(planted.expected)
        assert planted.expected or fault in HARMLESS


def test_faults_are_missed_without_look_alikes(tmp_path: Path) -> None:
    """Negative control of the property test."""
    planted = Planted(tmp_path, ["saved_again", "corrupt_png", "corrupt_jpeg", "same_bytes"], ["saved_again"])
    settings = load(*OVERRIDES, f"data.test={tmp_path / 'test.jsonl'}")
    report = check(tmp_path / "train.jsonl", settings=settings, look_alikes=False, console=Console(file=io.StringIO()))
    assert (
        list_findings(report)
        == [("train.jsonl", CLEAN + 4, "copy")]
        != sorted(planted.expected)
        == list_findings(check_folder(tmp_path))
    )


def test_answers_without_an_end_are_check_folder_every_row(tmp_path: Path) -> None:
    """The cause is the chat template, not the data."""
    model = shutil.copytree(BUILT_IN_MODEL, tmp_path / "model")
    template = model / "chat_template.json"
    template.write_text(template.read_text().replace("<|im_end|>", ""))
    Planted(tmp_path, ["nothing"], ["missing", "nothing"])
    assert list_findings(check_folder(tmp_path, f"model={model}")) == [
        ("test.jsonl", 1, "unusable"),
        ("test.jsonl", 2, "no-end"),
        *(("train.jsonl", row, "no-end") for row in range(1, CLEAN + 2)),
    ]


def test_training_refuses_what_check_calls_blocking(
    make_settings: Callable[..., config.Settings], tmp_path: Path
) -> None:
    """And starts with everything else."""
    from lorgnette.report.console import Terminal
    from lorgnette.training.data_module import TrainingData

    for fault in FAULTS:
        if fault in ("corrupt_png", "corrupt_jpeg"):  # training finds it later, when it decodes images
            continue
        folder = tmp_path / fault
        folder.mkdir()
        Planted(folder, [fault], ["nothing"])
        settings = make_settings(f"data={folder / 'train.jsonl'}", "max_length=260", "image_size=56", "data.holdout=1")
        is_blocking = check(folder / "train.jsonl", settings=settings, console=Console(file=io.StringIO())).is_blocking
        try:
            TrainingData.load(settings, Terminal(Console(file=io.StringIO())))
            is_refused = False
        except LorgnetteError:
            is_refused = True
        assert is_refused == is_blocking, fault


def test_a_narrow_image_stops_only_data_whose_images_keep_their_shape(
    make_settings: Callable[..., config.Settings], tmp_path: Path
) -> None:
    """Also if only the held-out prompts are answered at native size, which is after the training."""
    from lorgnette.report.console import Terminal
    from lorgnette.training.data_module import TrainingData

    Planted(tmp_path, ["narrow"], ["nothing"])
    for overrides in (["image_size=null"], ["image_size=56", "predict.image_size=native"]):
        settings = make_settings(f"data={tmp_path / 'train.jsonl'}", "data.holdout=1", "max_length=900", *overrides)
        report = check(tmp_path / "train.jsonl", settings=settings, console=Console(file=io.StringIO()))
        [problem] = [finding.problem for finding in report.findings if finding.is_blocking]
        assert "too narrow" in problem.fact
        with pytest.raises(LorgnetteError, match="too narrow"):
            TrainingData.load(settings, Terminal(Console(file=io.StringIO())))


def test_check_and_training_name_what_many_rows_have_in_common(
    make_settings: Callable[..., config.Settings], tmp_path: Path, terminal_output: io.StringIO, console: Console
) -> None:
    """Keys that are not read, blanks around answers, answers that are nearly all the same."""
    from lorgnette.report.console import Terminal
    from lorgnette.training.data_module import TrainingData

    paint_image(1).save(tmp_path / "a.png")
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "yes "}]
    row = {"messages": turns, "images": ["a.png"], "license": "CC0"}
    path.write_text("".join(json.dumps({**row, "id": number}) + "\n" for number in range(12)))
    settings = make_settings(f"data={path}", "data.holdout=0")
    TrainingData.load(settings, Terminal(console))
    warnings = [line for line in terminal_output.getvalue().splitlines() if line]
    assert f"{path}, row 1: key 'license' is not read (12 rows);" in warnings[0]
    assert "begins or ends with blanks" in warnings[1]
    assert warnings[2].startswith("12 of 12 answers are the same text ('yes ')")
    terminal_output.truncate(terminal_output.seek(0))
    report = check(path, settings=settings, out=tmp_path / "x.html", console=console)
    assert not report.is_blocking
    assert "No problems" not in report.summary
    for place in (terminal_output.getvalue(), html.unescape((tmp_path / "x.html").read_text())):
        assert "key 'license' is not read (12 rows)" in place
        assert "are the same text ('yes ')" in place
    assert all(line in terminal_output.getvalue() for line in warnings)


BUGS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "bare-base64": (["data.jsonl"], {}),
    "windows-paths": (["data.jsonl"], {"images_from": "p"}),
    "two-files": (["a.csv", "b.csv"], {}),
    "same-name-images-from": (["data.jsonl"], {"images_from": "flat"}),
}


@pytest.mark.parametrize("name", BUGS)
def test_reported_data(name: str, shared: Callable[[str], Path], tmp_path: Path, console: Console) -> None:
    """bugs/NAME"""
    folder = shutil.copytree(shared("bugs") / name, tmp_path / name)
    sources, options = BUGS[name]
    options = {key: str(folder / value) for key, value in options.items()}
    source = ",".join(str(folder / source) for source in sources)
    report = check(source, settings=load("model=demo", "data.holdout=1"), console=console, **options)
    rows = report.data_report
    if name == "same-name-images-from":
        assert (rows.num_rows, rows.num_usable) == (6, 0)
        assert {problem.fact for problem in rows.problems} == {"two images are one file, found by its name alone"}
        return
    assert rows.num_usable == rows.num_rows == rows.num_images == (3 if name == "bare-base64" else 6)
    assert not report.is_blocking
