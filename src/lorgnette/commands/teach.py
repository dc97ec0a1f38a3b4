"""`teach`: a page on which a person corrects a model's answers, and the model that is trained on them meanwhile."""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from rich.console import Console

import lorgnette
from lorgnette.commands.arguments import SettingsLike, as_name, build_settings
from lorgnette.commands.demo import draw_images
from lorgnette.commands.given_answers import read_given_answers, read_labels
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.io.atomic import atomic_folder
from lorgnette.io.shell import format_command
from lorgnette.report.console import Terminal
from lorgnette.report.run import Run
from lorgnette.report.run_dir import RunDir
from lorgnette.server.guard import GuardSettings, is_loopback
from lorgnette.server.http_server import DEFAULT_PORT, HttpServer, open_port
from lorgnette.teaching.app import build_app
from lorgnette.teaching.device_thread import DeviceThread
from lorgnette.teaching.events import Event
from lorgnette.teaching.images import ImageList, read_images
from lorgnette.teaching.journal import Journal
from lorgnette.teaching.learner import Learner
from lorgnette.teaching.report import write_report
from lorgnette.teaching.run_folder import (
    IMAGES_FOLDER,
    TeachRun,
    build_train_settings,
    check_settings,
    find_run,
    merge_settings,
    open_run,
    write_config,
    write_manifest,
)
from lorgnette.teaching.run_state import DEFAULT_EVERY, RunState
from lorgnette.teaching.session import Order, Session, SessionOptions
from lorgnette.training.initial_adapter import inherit_settings
from lorgnette.training.start_warnings import DRAWN_SCENES_ONLY

DEMO = "demo"
NUM_DRAWN = 96
_MAX_SHOWN_PROMPT = 80
_SILENT_SECONDS = 1.0
"""How long the end may take without a word."""


class TeachHandle:
    """A page that a person uses until `stop`, or until the end of a `with` block.

    url: the page, with its token. run: its adapter, answers and report are in this folder.
    """

    def __init__(self, url: str, run: Run, server: HttpServer, stack: ExitStack, print_end: Callable[[], None]) -> None:
        """stack: ends everything that belongs to the page, when it is closed; print_end is called after that."""
        self.url, self.run = url, run
        self._server, self._stack, self._print_end = server, stack, print_end
        self._is_stopped = False

    def __repr__(self) -> str:
        return f"<lorgnette.TeachHandle {str(self.run.path)!r}{', stopped' if self._is_stopped else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait(self) -> None:
        """Return when the server has ended; Ctrl-C goes through."""
        if not self._is_stopped:
            self._server.wait()

    def stop(self) -> None:
        """End the server and a training that runs, write the report, and free the memory of the model."""
        if not self._is_stopped:
            self._is_stopped = True
            try:
                self._stack.close()
            except LorgnetteError:  # of the report; the answers are there
                self._print_end()
                raise
            self._print_end()


def teach(
    images: Path | str | None = None,
    *,
    recipe: str | Path | None = None,
    settings: SettingsLike = None,
    prompt: str | None = None,
    captions: Path | str | None = None,
    run: Path | str | Run | None = None,
    labels: str | Sequence[str] | None = None,
    every: int = DEFAULT_EVERY,
    blind: int = 0,
    order: Order = "shuffled",
    review: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_host: str | Sequence[str] = (),
    block: bool = True,
    console: Console | None = None,
    **values: Any,
) -> TeachHandle | None:
    """Show images with the model's answers on a page, and train the model on a person's corrections.

        lorgnette.teach("photos", model="Qwen2-VL-2B-Instruct", prompt="What is it?")
        lorgnette.teach("demo")

    images: a folder, or a data file without answers; `demo` draws some. The same call goes on with the same run.
    recipe, settings and values: as in `train`. captions: a data file with answers that you have; they are trained on.
    run: its folder; default: runs/teach-NAME. With a run of `teach` images may be left out.
    labels: an answer must be one of them: a text with commas, a list, or a file with one a line.
    every: answers between two trainings. blind: 10 shows every tenth image without a suggestion; 0: none.
    order: with "hardest" every second image is the one whose suggestion is least sure. review: the name of a person who
    sees the answered images again. host, port, allow_host: as in `serve`; the page's token is the key.
    block: False returns when the page can be opened; the model is read meanwhile.

    Raises LorgnetteError, before the page opens, for what is wrong with images, settings or the run.
    """
    terminal, start = Terminal(console), time.monotonic()
    is_demo = images is not None and as_name(images) == DEMO
    default = None if isinstance(settings, Settings) else "teach-demo" if is_demo else "teach"
    values = values if prompt is None else {**values, "data.prompt": prompt}
    given = build_settings(None, recipe=recipe or default, settings=settings, values=values, terminal=terminal)
    check_settings(given, terminal)
    _check_options(every, blind, order, review)
    source, folder = (None if name is None else Path(as_name(name)) for name in (images, run))
    words = _Words(source, folder, captions, every, blind, order, review)
    with ExitStack() as stack:
        listener = open_port(host, port)
        stack.callback(listener.close)
        guard = _build_guard(host, listener.getsockname()[1], allow_host)
        task = _prepare(words, given, labels, terminal)
        run_dir = stack.enter_context(_open_folder(task, terminal))
        journal = Journal.open(run_dir.journal)
        stack.callback(journal.close)
        writer = _ResultWriter(run_dir, task.settings, task.images, journal)
        options = SessionOptions(
            task.learner.title, task.images.prompt, task.settings.seed, lorgnette.__version__, task.labels, task.given,
            every, blind, order, review, tuple(_list_commands(run_dir)), writer.write,
        )  # fmt: skip
        session = Session(journal, task.images, options, run_dir)
        stack.callback(writer.write_last)
        app = build_app(session, task.images, guard, run=str(run_dir.path.resolve()), command=task.command)
        server = HttpServer(app, listener, session.close)
        server.start()
        search = partial(task.images.find_look_alikes, lambda: session.is_closed)
        threading.Thread(target=search, name="look-alikes", daemon=True).start()
        stack.callback(_end_thread, DeviceThread(session, task.learner), terminal)
        stack.callback(server.stop)  # called first: nobody may answer any more

        if host == "127.0.0.1" and port is None and guard.port != DEFAULT_PORT:
            terminal.warn(f"port       {DEFAULT_PORT} is taken; this is {guard.port}")
        if task.settings.model == DEMO and not is_demo:
            terminal.warn(f"note       {DRAWN_SCENES_ONLY}")
        for remark in (*task.images.remarks, *session.remarks):
            terminal.warn(f"note       {remark}")
        _print_start(terminal, task.images, options, writer, guard)
        until = "Ctrl-C" if block else "`stop` is called"
        text = f"in {time.monotonic() - start:.1f} s, until {until}; the model is read meanwhile"
        terminal.print_result(f"ready      {text}")
        print_end = partial(_print_end, terminal, writer, task.command)
        rest = stack if block else stack.pop_all()  # if Ctrl-C comes right now, this block ends what has begun
        handle = TeachHandle(guard.page_url, Run(run_dir.path), server, rest, print_end)
        if not block:
            return handle
        try:
            handle.wait()
        finally:
            handle.stop()
    return None


@dataclass(frozen=True)
class _Task:
    """What is taught, all of it checked; the run has no file yet. command: the one that goes on with the run."""

    run: TeachRun
    settings: Settings
    images: ImageList
    labels: tuple[str, ...]
    given: Mapping[str, str]
    learner: Learner
    command: str


def _prepare(words: "_Words", given: Settings, labels: str | Sequence[str] | None, terminal: Terminal) -> _Task:
    """Read and check all that the command names. Raises LorgnetteError for images, settings, answers and the run."""
    run, source = _find_run(words, given)
    settings = inherit_settings(given, terminal) if run.settings is None else merge_settings(run, given)
    if words.is_demo:
        _draw_demo(source, terminal)
    images = read_images(source, settings.data.prompt, keeps_shape=settings.keeps_shape)
    settings = build_train_settings(settings, run.run_dir, images)
    chosen_labels = read_labels(labels) or tuple(run.opened.labels if run.opened else ())
    answers: Mapping[str, str] = {}
    if words.captions is not None:
        answers = read_given_answers(Path(as_name(words.captions)), images, chosen_labels, terminal)
    learner = Learner(settings, images.paths, terminal)
    return _Task(run, settings, images, chosen_labels, answers, learner, words.format_command(run.run_dir, source))


@contextmanager
def _open_folder(task: _Task, terminal: Terminal) -> Iterator[RunDir]:
    """The run's folder, with its settings, which no other process uses until the block ends."""
    with RunDir.create_folder(task.run.run_dir.path).lock(terminal.warn) as locked:
        locked.manifest.unlink(missing_ok=True)  # it does not know the answers that come
        write_config(locked, task.settings)
        yield locked


@dataclass(frozen=True)
class _Words:
    """The words of the command, from which the one that goes on is made. images: of "demo" they are drawn."""

    images: Path | None
    run: Path | None
    captions: Any
    every: int
    blind: int
    order: str
    review: str | None

    @property
    def is_demo(self) -> bool:
        return self.images == Path(DEMO)

    def format_command(self, run_dir: RunDir, source: Path) -> str:
        """The command that goes on with the run. Settings, labels and given answers are in the run already."""
        words: list[object] = [self.images] if self.images else []
        default = Path("runs") / f"teach-{DEMO if self.is_demo else name_source(source)}"
        if not words or run_dir.path != default:
            words += ["--run", run_dir.path]
        words += ["--every", self.every] if self.every != DEFAULT_EVERY else []
        words += ["--blind", self.blind] if self.blind else []
        words += ["--order", self.order] if self.order != "shuffled" else []
        words += ["--review", self.review] if self.review else []
        return format_command("teach", *words)


class _ResultWriter:
    """Writes report.html and manifest.json, which follow from the answers."""

    def __init__(self, run_dir: RunDir, settings: Settings, images: ImageList, journal: Journal) -> None:
        self.run_dir = run_dir
        self._settings, self._images, self._journal = settings, images, journal

    @property
    def num_answers(self) -> int:
        return len(self._list_image_names(self._journal.events))

    def write(self, events: Sequence[Event]) -> None:
        """Raises LorgnetteError if they cannot be written."""
        self.run_dir.check_in_place()
        write_manifest(self.run_dir, self._settings, self._images, self._list_image_names(events))
        write_report(
            self.run_dir.report, events, self._images, run=self.run_dir.path,
            settings=self._settings.model_dump(mode="json"), folders=[self._images.folder, self.run_dir.path.resolve()],
        )  # fmt: skip

    def write_last(self) -> None:
        """Write the report when the page is closed, if there are answers."""
        if self.num_answers:
            self.write(self._journal.events)

    def _list_image_names(self, events: Sequence[Event]) -> list[str]:
        """The names of the answered images that are there."""
        return [name for name in RunState(events).answers if name in self._images.numbers]


def name_source(source: Path) -> str:
    """The end of a default run's name: a folder's name, or a file's without its suffix."""
    path = Path(os.path.abspath(source))
    return (path.name if path.is_dir() else path.stem) or "images"


def _check_options(every: int, blind: int, order: str, review: str | None) -> None:
    """Raises UsageError for a value that is out of range."""
    if every < 1:
        raise UsageError("no number of answers", where=f"--every {every}", hint="1 or more; 8 is usual")
    if blind < 0 or blind == 1:
        message, hint = "not 0, and not 2 or more", "10 shows every tenth image without a suggestion, 0 none"
        raise UsageError(message, where=f"--blind {blind}", hint=hint)
    if order not in ("shuffled", "hardest"):
        raise UsageError("no such order", where=f"--order {order}", hint="shuffled or hardest")
    if review is not None and not review.strip():
        raise UsageError("no name", where="--review", hint="name the person who reviews")


def _build_guard(host: str, port: int, allow_host: str | Sequence[str]) -> GuardSettings:
    """People come with the page's token. There is no API: where a key is needed, nobody knows it."""
    key = "" if is_loopback(host) and not allow_host else secrets.token_urlsafe(32)
    return GuardSettings.from_options(host, port, key, allow_host)


def _find_run(words: _Words, given: Settings) -> tuple[TeachRun, Path]:
    """The run, and the images that it teaches. Raises UsageError for a run of other images."""
    source, path = words.images or given.data.path, words.run or given.run
    if path is None:
        if words.is_demo:
            run = find_run(f"teach-{DEMO}", lambda folder: folder / IMAGES_FOLDER)
            return run, run.run_dir.path / IMAGES_FOLDER
        if source is None:
            hint = format_command("teach", "photos")
            raise UsageError("which images?", where="no folder and no run is named", hint=hint)
        named = source
        return find_run(f"teach-{name_source(named)}", lambda folder: named), named
    run = open_run(path)
    source = path / IMAGES_FOLDER if words.is_demo else source or run.source
    if source is None:
        hint = format_command("teach", "photos", "--run", path)
        raise UsageError("a new run needs images", where=f"--run {path}", hint=hint)
    if run.source is None:
        return run, source
    if run.source.exists() and run.source != Path(os.path.abspath(source)):
        hint = f"leave {source} out, or begin another run: name another folder with --run"
        raise UsageError(f"this run teaches the images in {run.source}", where=str(path), hint=hint)
    if not source.exists():
        hint = f"name where they are now: {format_command('teach', 'IMAGES', '--run', path)}"
        raise UsageError("the images of this run are gone", where=str(source), hint=hint)
    return run, source


def _draw_demo(folder: Path, terminal: Terminal) -> None:
    if folder.is_dir():
        return
    with atomic_folder(folder) as temporary:
        draw_images(temporary, NUM_DRAWN, terminal)
    terminal.print(f"drawn      {NUM_DRAWN} images, {folder}")


def _end_thread(thread: DeviceThread, terminal: Terminal) -> None:
    """Wait for what the model does now, and say so if it takes long."""
    if not thread.close(_SILENT_SECONDS):
        terminal.warn("stopping once the model has ended what it does; press Ctrl-C again to stop at once")
        thread.close()


def _list_commands(run_dir: RunDir) -> list[str]:
    """What a user does with the result."""
    return [
        format_command("predict", "photo.jpg", "--adapter", run_dir.path),
        format_command("serve", run_dir.path),
        format_command("verify", run_dir.path),
    ]


def _print_start(
    terminal: Terminal, images: ImageList, options: SessionOptions, writer: _ResultWriter, guard: GuardSettings
) -> None:
    broken = f"; {len(images.broken)} cannot be read" if images.broken else ""
    terminal.print(f"images     {len(images)} in {images.source}{broken}")
    terminal.print(f"model      {options.model}")
    prompt = options.prompt
    shown = prompt if len(prompt) <= _MAX_SHOWN_PROMPT else f"{prompt[: _MAX_SHOWN_PROMPT - 1]}…"
    terminal.print(f"prompt     {shown!r}")
    if options.labels:
        terminal.print(f"labels     {', '.join(options.labels)}")
    count = writer.num_answers
    answers = f", {count} answer{'' if count == 1 else 's'} so far" if count else ""
    terminal.print_result(f"run        {writer.run_dir.path}{answers}")
    terminal.print_result(f"page       {guard.page_url}")


def _print_end(terminal: Terminal, writer: _ResultWriter, go_on: str) -> None:
    count = writer.num_answers
    if count:
        terminal.print(f"saved      {count} answer{'' if count == 1 else 's'}, {writer.run_dir.captions}")
    terminal.print(f"to go on   {go_on}")
