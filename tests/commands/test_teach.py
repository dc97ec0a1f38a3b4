"""`teach`: its words, what is wrong before the page opens, what it prints, and how it goes on; without a model."""

import io
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from rich.console import Console
from taught_browser import Browser
from taught_run import FakeLearner, write_images

import lorgnette
from lorgnette import config
from lorgnette.commands import teach as teach_module
from lorgnette.commands.demo import SEED
from lorgnette.commands.teach import TeachHandle, name_source
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.run_dir import RunDir
from lorgnette.teaching.journal import read_events
from lorgnette.teaching.learner import Learner


class PlainLearner(FakeLearner):
    """Has the real one's checks, and no model."""

    def __init__(self, settings: Any, images: Any, terminal: Any) -> None:
        super().__init__(len(images))
        self.title = Learner(settings, images, terminal).title


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: photos with 12 images, captions of two of them, runs of nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teach_module, "Learner", PlainLearner)
    write_images(tmp_path / "photos", 12)
    (tmp_path / "old.csv").write_text("image_path,caption\nimage-1.png,one\nimage-2.png,two\n")
    return tmp_path


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def open_page(output: io.StringIO) -> Iterator[Callable[..., tuple[TeachHandle, Browser]]]:
    """Begin `teach` of the built-in model, and open its page. All are stopped at the end."""
    handles: list[TeachHandle] = []

    def begin(*images: Any, **options: Any) -> tuple[TeachHandle, Browser]:
        options = {"model": "demo", "port": 0, "console": Console(file=output, width=300), **options}
        handle = lorgnette.teach(*images, block=False, **options)
        assert handle is not None
        handles.append(handle)
        return handle, Browser(handle.url)

    yield begin
    for handle in handles:
        handle.stop()


def list_printed(output: io.StringIO) -> dict[str, str]:
    lines = [line.partition(" ") for line in output.getvalue().splitlines()]
    return {name: text.strip() for name, _, text in lines}


def test_what_is_printed_and_written(open_page: Any, output: io.StringIO, here: Path) -> None:
    handle, browser = open_page("photos", prompt="What is it?")
    printed = list_printed(output)
    assert list(printed) == ["note", "images", "model", "prompt", "run", "page", "ready"]
    assert printed["note"].startswith("The built-in model (model=demo) knows drawn scenes only")
    assert printed["images"] == f"12 in {here}/photos"
    assert (printed["prompt"], printed["run"], printed["page"]) == ("'What is it?'", "runs/teach-photos", handle.url)
    assert re.fullmatch(r"in \d+\.\d s, until `stop` is called; the model is read meanwhile", printed["ready"])
    assert browser.get_state()["prompt"] == "What is it?"
    names = [browser.answer(f"answer {number}") for number in range(3)]
    handle.stop()
    handle.stop()  # does nothing
    printed = list_printed(output)
    assert printed["saved"] == "3 answers, runs/teach-photos/captions.csv"
    assert output.getvalue().endswith("to go on   lorgnette teach photos\n")
    run = RunDir(here / "runs" / "teach-photos")
    captions = run.captions.read_text()
    assert all(f"{name},answer {number}\n" in captions for number, name in enumerate(names))
    assert run.report.is_file()
    assert not run.lock_file.exists()
    assert len(json.loads(run.manifest.read_text())["images"]) == 3
    assert "stopped" in repr(handle)
    assert handle.run.path == Path("runs/teach-photos")


def test_the_same_call_goes_on(open_page: Any, output: io.StringIO, here: Path) -> None:
    handle, browser = open_page("photos", prompt="What is it?", labels="cat,dog")
    browser.answer("Cat.")
    handle.stop()
    _, browser = open_page(here / "photos")
    state = browser.get_state()
    assert (state["counts"]["answered"], state["prompt"], state["labels"]) == (1, "What is it?", ["cat", "dog"])
    assert not (here / "runs/teach-photos/manifest.json").exists()  # it would not know the answers that come
    assert list_printed(output)["run"] == "runs/teach-photos, 1 answer so far"


def test_a_run_goes_on_by_its_name_where_its_images_are(open_page: Any, output: io.StringIO, here: Path) -> None:
    handle, browser = open_page("photos", run="mine", every=4)
    browser.answer("one")
    handle.stop()
    assert output.getvalue().endswith("to go on   lorgnette teach photos --run mine --every 4\n")
    handle, browser = open_page(run="mine")
    assert browser.get_state()["counts"]["answered"] == 1
    handle.stop()
    assert output.getvalue().endswith("to go on   lorgnette teach --run mine\n")
    (here / "photos").rename(here / "moved")
    with pytest.raises(UsageError, match=r"the images of this run are gone .* lorgnette teach IMAGES --run mine"):
        lorgnette.teach(run="mine", port=0)
    handle, browser = open_page("moved", run="mine")
    assert browser.get_state()["counts"]["answered"] == 1
    handle.stop()
    assert config.read_recipe(here / "mine" / "config.yaml")["data"]["images_from"] == str(here / "moved")


def test_answers_from_before_are_there_and_do_not_count(open_page: Any, here: Path) -> None:
    handle, browser = open_page("photos", captions="old.csv")
    state = browser.get_state()
    assert (state["counts"]["answered"], state["score"]["counted"]) == (2, 0)
    handle.stop()
    assert "image-1.png,one\n" in (here / "runs/teach-photos/captions.csv").read_text()
    _, browser = open_page("photos", captions="old.csv")  # once more
    assert browser.get_state()["counts"]["answered"] == 2


def test_the_demo_draws_its_images_once(open_page: Any, output: io.StringIO, here: Path) -> None:
    handle, browser = open_page("demo")
    folder = here / "runs" / "teach-demo"
    assert len(list((folder / "images").iterdir())) == teach_module.NUM_DRAWN == browser.get_state()["counts"]["total"]
    draw_scene(sample_scene(random.Random(SEED))).save(here / "first.png")
    assert (folder / "images" / "0001.png").read_bytes() == (here / "first.png").read_bytes()
    assert browser.get_state()["prompt"] == "COCO Yes:"
    settings = config.load_settings(config.read_recipe(folder / "config.yaml"))
    assert (settings.train.learning_rate, settings.image_size) == (2e-3, (112, 112))
    handle.stop()
    assert output.getvalue().endswith("to go on   lorgnette teach demo\n")
    open_page("demo")
    assert output.getvalue().count("drawn ") == 1


def test_one_process_at_a_time(open_page: Any) -> None:
    open_page("photos")
    with pytest.raises(UsageError, match="in this run folder"):
        lorgnette.teach("photos", model="demo", port=0)


@pytest.mark.parametrize(
    ("images", "options", "parts"),
    [
        (None, {}, ["which images?", "lorgnette teach photos"]),
        ("missing", {}, ["does not exist", "missing"]),
        ("empty", {}, ["No images in empty/"]),
        ("old.csv", {}, ["has an answer already", "--captions"]),
        ("photos", {"model": "no/model/here"}, ["no/model/here"]),
        ("photos", {"epochs": 0}, ["train.epochs = 0"]),
        ("photos", {"nonsense": 1}, ["nonsense"]),
        ("photos", {"holdout": 4}, ["`teach` does not use data.holdout"]),
        ("photos", {"labels": "cat"}, ["2 to 1000 labels are possible, not 1"]),
        ("photos", {"captions": "odd.csv"}, ["gone.png"]),
        ("photos", {"captions": "old.csv", "labels": "cat,dog"}, ["'one' is no label"]),
        ("photos", {"every": 0}, ["--every 0"]),
        ("photos", {"blind": 1}, ["--blind 1"]),
        ("photos", {"order": "alphabetical"}, ["--order alphabetical"]),
        ("photos", {"review": " "}, ["--review"]),
        ("photos", {"run": "other"}, ["not a run, and not empty"]),
        ("photos", {"run": "trained"}, ["a run of `train`", "adapter=trained"]),
        (None, {"run": "new"}, ["a new run needs images"]),
        ("photos", {"host": "192.0.2.1"}, ["no address of this machine"]),
        ("photos", {"host": "0.0.0.0"}, ["other machines need a name"]),
        ("photos", {"port": 70_000}, ["port"]),
        ("photos", {"adapter": "missing"}, ["missing"]),
    ],
)
def test_what_is_wrong_is_said_before_the_run_has_a_file(
    images: str | None, options: dict[str, Any], parts: list[str], here: Path
) -> None:
    for name in ("empty", "other", "trained"):
        (here / name).mkdir()
    for name in ("other/notes.txt", "trained/config.yaml", "trained/log.jsonl"):
        (here / name).touch()
    (here / "odd.csv").write_text("image_path,caption\ngone.png,a\n")
    with pytest.raises(LorgnetteError) as caught:
        lorgnette.teach(images, **{"model": "demo", "port": 0, "block": False, **options})
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert not (here / "runs").exists()
    assert not (here / "new").exists()


def test_a_port_that_is_taken_is_said_before_the_run_has_a_file(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(LorgnetteError, match="is taken"):
        lorgnette.teach("photos", model="demo", port=taken.getsockname()[1])
    assert not (here / "runs").exists()


def test_a_run_of_other_images_or_settings_is_refused(open_page: Any, here: Path) -> None:
    open_page("photos", run="mine")[0].stop()
    write_images(here / "more", 2)
    with pytest.raises(UsageError, match=r"this run teaches the images in .*/photos"):
        lorgnette.teach("more", run="mine", port=0)
    with pytest.raises(UsageError, match=r"other settings: data\.prompt is Describe this image\., not Who"):
        lorgnette.teach("photos", run="mine", prompt="Who?", port=0)
    events = len(read_events(here / "mine" / "journal.jsonl"))
    open_page("photos", run="mine")[0].stop()
    assert len(read_events(here / "mine" / "journal.jsonl")) > events


def test_a_stop_by_the_keyboard_frees_the_run(monkeypatch: pytest.MonkeyPatch, output: io.StringIO, here: Path) -> None:
    """Ctrl-C while it waits."""

    def interrupt(self: TeachHandle) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TeachHandle, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lorgnette.teach("photos", model="demo", port=0, console=Console(file=output, width=300))
    assert output.getvalue().endswith("to go on   lorgnette teach photos\n")
    assert not RunDir(here / "runs" / "teach-photos").lock_file.exists()


def test_an_end_without_its_report_says_what_is_saved(
    open_page: Any, output: io.StringIO, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answered image that is gone is not in captions.csv, and does not count."""
    handle, page = open_page("photos")
    names = [page.answer("A thing.") for _ in range(3)]
    handle.stop()
    (here / "photos" / names[0]).unlink()
    output.truncate(0)
    handle, page = open_page("photos")

    def fail(*_: object, **__: object) -> None:
        raise LorgnetteError("cannot write: No space left on device")

    monkeypatch.setattr(teach_module, "write_report", fail)
    with pytest.raises(LorgnetteError, match="No space"):
        handle.stop()
    assert list_printed(output)["saved"] == "2 answers, runs/teach-photos/captions.csv"
    assert output.getvalue().endswith("to go on   lorgnette teach photos\n")


def test_the_pages_token_is_the_key_for_other_machines() -> None:
    """There is no API, so nobody gets its key."""
    guards = [teach_module._build_guard("0.0.0.0", 80, "192.168.1.5") for _ in range(2)]
    assert guards[0].api_key != guards[1].api_key != ""
    assert guards[0].page_url == f"http://192.168.1.5:80/?token={guards[0].token}"
    assert teach_module._build_guard("127.0.0.1", 80, ()).api_key == ""


def test_an_end_that_takes_long_says_so(
    monkeypatch: pytest.MonkeyPatch, open_page: Any, output: io.StringIO, here: Path
) -> None:
    """The model is still read."""

    class SlowLearner(PlainLearner):
        def open(self, on_progress: Any) -> Any:
            self.open_gate.clear()
            threading.Timer(0.3, self.open_gate.set).start()
            return super().open(on_progress)

    monkeypatch.setattr(teach_module, "Learner", SlowLearner)
    monkeypatch.setattr(teach_module, "_SILENT_SECONDS", 0.05)
    open_page("photos")[0].stop()
    assert "stopping once the model has ended what it does; press Ctrl-C again" in output.getvalue()
    assert output.getvalue().endswith("to go on   lorgnette teach photos\n")


_BUSY = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {tests!r})
from taught_run import FakeLearner
from lorgnette.__main__ import main
from lorgnette.commands import teach

class Learner(FakeLearner):
    title = "busy"

    def __init__(self, settings, images, terminal):
        super().__init__(len(images))

    def open(self, on_progress):
        ThreadPoolExecutor().submit(time.sleep, 60).result()

teach.Learner = Learner
sys.argv = ["lorgnette", "teach", "photos", "model=demo", "--port", "0"]
main()
"""


def test_a_second_ctrl_c_waits_for_no_thread(here: Path) -> None:
    """Python's own exit would wait for the thread that computes. The fork server's does not: a process of its own."""
    program = here / "busy.py"
    program.write_text(_BUSY.format(tests=str(Path(__file__).parents[1])))
    process = subprocess.Popen([sys.executable, program], stdout=PIPE, stderr=PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any(line.startswith("ready") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert any("press Ctrl-C again to stop at once" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr.read()) == (130, "stopped\n")
    finally:
        process.kill()
        process.communicate()


def test_a_run_is_named_after_its_images(here: Path) -> None:
    assert [name_source(Path(name)) for name in ("photos", "photos/", "./photos", "old.csv", ".")] == [
        "photos", "photos", "photos", "old", here.name,
    ]  # fmt: skip
