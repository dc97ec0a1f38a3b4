"""The command line: its commands and options, what each imports, and how quickly it answers."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import PIL.Image
import pytest
from typer.core import TyperGroup
from typer.main import get_command

import lorgnette
from lorgnette import cli as cli_module
from lorgnette import config
from lorgnette.metrics.registry import METRIC_GROUPS

COMMANDS = {
    "demo": "--out --images --gpus WORDS",
    "prepare": "SOURCE --out --prompt --holdout --split --rows --sample --seed --to --name --images-from"
    " --image-column --caption-column --on-bad-row --text-boxes",
    "check": "WORDS --recipe --prompt --rows --name --images-from --image-column --caption-column"
    " --look-alikes/--no-look-alikes --out --gpus --json",
    "preview": "WORDS --rows --out",
    "plan": "WORDS --memory --gpu --gpus --json",
    "setup": "WORDS",
    "train": "WORDS --resume --gpus",
    "teach": "WORDS --prompt --captions --run --labels --every --blind --order --review --host --port --allow-host",
    "predict": "SOURCE --adapter --model --prompt --both --images-from --image-column --caption-column --image-size"
    " --out --max-new-tokens --batch-size --temperature --top-p --seed --device",
    "serve": "NAMED_MODELS --model --host --port --api-key --allow-host --cors --max-new-tokens --image-size --device",
    "evaluate": "MODEL_OR_RUN SOURCE --metrics --out --model --prompt --rows --images-from --image-column"
    " --caption-column --image-size --max-new-tokens --batch-size --device",
    "compare": "MODELS_AND_DATA --out --metrics --model --prompt --rows --images-from --image-column --caption-column"
    " --image-size --max-new-tokens --batch-size --device",
    "verify": "ADAPTER --model --data --rows --device --json",
    "merge": "ADAPTER OUT --model --base --dtype --force --device",
    "export-adapter": "ADAPTER OUT --transformers",
    "watch": "FOLDER --port",
    "settings": "WORD",
    "recipe list": "",
    "recipe show": "NAME",
    "recipe copy": "NAME TO",
    "model list": "--json",
    "cache clear": "WHAT --older-than --yes",
}
"""The whole command line: command → its arguments (upper case) and options, in order."""
HEAVY = ("torch", "transformers", "peft")
UNNEEDED = (
    *("huggingface_hub", "httpx2", "filelock", "lorgnette.hub.datasets", "lorgnette.hub.models"),  # for hubs
    *("swanlab", "wandb", "tensorboard", "pyarrow", "lorgnette.demo.scenes", "rich.progress", "PIL.PdfImagePlugin"),
)
"""Modules that training on local files, without a tracker and without a terminal, must not import."""
CHECK_IMPORTS = f"""
import sys
from lorgnette.cli import main
try:
    main()
except SystemExit as exit_:
    assert not exit_.code, exit_.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""


def run_python(*words: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    for i in range(3):
        PIL.Image.new("RGB", (40, 40), (i * 80, 0, 0)).save(tmp_path / f"{i}.png")
    path = tmp_path / "captions.csv"
    path.write_text("image_path,caption\n0.png,black\n1.png,dark red\n2.png,red\n")
    return path


def test_commands_and_options_are_frozen() -> None:
    """A renamed one breaks scripts of users."""

    def list_commands(group: TyperGroup, prefix: str = "") -> dict[str, str]:
        result: dict[str, str] = {}
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                result |= list_commands(command, f"{name} ")
            else:
                params = ("/".join([*p.opts, *p.secondary_opts]) for p in command.params)
                result[prefix + name] = " ".join(param if "--" in param else param.upper() for param in params)
        return result

    group = get_command(cli_module.app)
    assert isinstance(group, TyperGroup)
    assert list_commands(group) == COMMANDS
    assert list(list_commands(group)) == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, cli) -> None:
    done = cli(*command.split(), "--help")
    assert done.status == 0
    assert done.out.startswith(f"Usage: lorgnette {command} ")
    assert cli(*command.split(), "-h").out == done.out


def test_the_help_of_metrics_names_every_group() -> None:
    text = cli_module.METRICS_HELP
    assert {name for name in METRIC_GROUPS if name not in text} <= {"demo", "none"}


def test_no_arguments_print_help(cli) -> None:
    done = cli()
    assert done.status == 2
    assert "Commands:" in done.out + done.err


def test_misspelled_command(cli) -> None:
    done = cli("trian")
    assert done.status == 2
    assert "Did you mean 'train'?" in done.err


def test_version(cli) -> None:
    for word in ("--version", "-V", "version"):
        assert cli(word).out == f"lorgnette {lorgnette.__version__}\n"


def test_help_is_a_command_too(cli) -> None:
    assert cli("help").out == cli("--help").out
    assert cli("help", "train").out == cli("train", "--help").out
    assert cli("help", "recipe", "show").out == cli("recipe", "show", "--help").out
    assert "Did you mean 'train'?" in cli("help", "trian").err


def test_train_demo_draws_its_images(tmp_path: Path, captions: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("lorgnette.commands.demo.demo", lambda **options: calls.append(options))
    monkeypatch.setattr("lorgnette.commands.train.train", lambda settings, **options: calls.append(options))
    done = cli("train", "demo", "--epochs", "3")  # captions.csv is there
    assert (done.status, calls) == (0, [{"name": "demo", "gpus": None}])
    captions.unlink()
    assert cli("train", "demo", "--epochs", "3", "gpus=2").status == 0
    assert calls[1:] == [{"overrides": ["epochs=3"], "gpus": "2"}]
    for command in ("plan", "preview", "check"):
        cli(command, "demo").assert_refused(2, "not drawn yet", f"lorgnette {command} demo runs/demo/captions.csv")


def test_words_of_another_trainer_are_said(captions: Path, cli) -> None:
    done = cli("check", "captions.csv", "--model_name_or_path", "demo", "--val_size=1", "--do_train")
    assert done.status == 0
    assert done.err.splitlines()[:3] == [
        "setting    model_name_or_path=demo → model",
        "setting    val_size=1 → data.holdout (rows; 0.1 is auto: a tenth of the images, at least 4 and at most 64)",
        "setting    do_train=true: nothing to set; `lorgnette train` trains",
    ]


def test_a_run_has_the_name_of_its_data(captions: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[object] = []
    monkeypatch.setattr("lorgnette.commands.train.train", lambda settings, *, name, gpus: names.append(name))
    for words in (
        ["captions.csv"],
        ["data=captions.csv"],
        ["coco-caption", "captions.csv"],
        ["--data", "captions.csv"],
    ):
        assert cli("train", *words, "model=demo").status == 0
    assert names == ["captions", "captions", "coco-caption", "captions"]


def test_python_module() -> None:
    done = run_python("-m", "lorgnette", "--version")
    assert (done.returncode, done.stdout) == (0, f"lorgnette {lorgnette.__version__}\n")


def test_help_answers_within_a_second() -> None:
    """The best of five, so that other work on this machine does not fail it."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = run_python("-m", "lorgnette", "--help")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0
        if seconds[-1] < 1:
            break
    assert min(seconds) < 1, seconds


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["recipe", "list"],
        ["check", "captions.csv", "model=demo", "data.holdout=1", "--out", "check.html"],
        ["preview", "data=captions.csv", "model=demo"],
        ["plan", "demo", "data=captions.csv", "data.holdout=1", "--json"],
        ["prepare", "captions.csv", "--holdout", "1"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_commands_without_weights_do_not_import_torch(words: list[str], captions: Path) -> None:
    done = run_python("-c", CHECK_IMPORTS, *words, cwd=captions.parent)
    assert done.returncode == 0, done.stderr


STOP_AT_TORCH = f"""
import sys
from importlib.machinery import ModuleSpec
from lorgnette.cli import main
class Stopped:
    def find_spec(self, name, path=None, target=None):  # also to find its libraries
        return ModuleSpec(name, self) if name == "torch" else None
    def create_module(self, spec):
        unneeded = [name for name in {UNNEEDED!r} if name in sys.modules]
        sys.exit(f"imported: {{unneeded}}" if unneeded else 0)
    exec_module = create_module
sys.meta_path.insert(0, Stopped())
main()
raise AssertionError("torch was not imported")
"""


def test_training_on_local_files_imports_only_what_it_needs(captions: Path) -> None:
    """Stops when torch is imported; by then all local files are read and encoded."""
    words = (
        "train",
        "demo",
        "data=captions.csv",
        "data.holdout=1",
        "device=cpu",
        "report_to=none",
        "predict.metrics=caption",
    )
    done = run_python("-c", STOP_AT_TORCH, *words, cwd=captions.parent)
    assert done.returncode == 0, done.stderr
    assert "data   " in done.stderr


def test_settings_are_frozen() -> None:
    """A renamed one breaks recipes of users."""
    assert config.list_settings() == [
        "model", "adapter", "engine", "run", "seed", "device", "dtype", "quantization", "report_to", "project",
        "image_size", "image_tokens", "eos_token", "max_length",
        "data.path", "data.test", "data.holdout", "data.split", "data.prompt", "data.trim", "data.on_bad_row",
        "data.max_rows", "data.images_from", "data.image_column", "data.caption_column", "data.group_by_image",
        "lora.rank", "lora.alpha", "lora.dropout", "lora.use_rslora", "lora.target_modules", "lora.parts",
        "train.epochs", "train.max_steps", "train.batch_size", "train.max_tokens_per_microbatch",
        "train.fully_shard", "train.learning_rate", "train.lr_scheduler_type", "train.warmup_steps",
        "train.weight_decay", "train.max_grad_norm", "train.logging_steps", "train.save_steps", "train.eval_steps",
        "train.metric_for_best_model", "train.early_stopping_patience",
        "predict.max_new_tokens", "predict.batch_size", "predict.metrics", "predict.image_size",
    ]  # fmt: skip


def test_recipes(tmp_path: Path, cli) -> None:
    listed = cli("recipe", "list")
    assert listed.status == 0
    assert "coco-caption " in listed.out
    shown = cli("recipe", "show", "coco-caption")
    assert shown.out.startswith("# ")
    assert cli("recipe", "copy", "coco-caption").out == "coco-caption.yaml\n"
    assert cli("recipe", "copy", "coco-caption", "mine.yaml").status == 0
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == shown.out
    assert cli("recipe", "show", "mine.yaml").out == shown.out
    cli("recipe", "copy", "coco-caption").assert_refused(2, "file exists", "coco-caption.yaml")
    cli("recipe", "show", "coco-capton").assert_refused(2, "did you mean coco-caption?")


def test_check_prints_facts(captions: Path, cli) -> None:
    done, bar = cli("check", "captions.csv", "model=demo", "data.holdout=4"), "█" * 32
    assert done.status == 1
    assert not done.err
    error, basis, *lines = done.out.splitlines()
    assert error.startswith("no rows can be held out: holdout is 4, but there are 3 usable rows")
    assert basis.startswith("judged by  model demo; images 280×280 pixels; prompt ")
    assert lines == [
        "rows       3, 3 usable, 0 broken",
        "images     3, used 3 times",
        "sizes      40×40 pixels",
        "answers    3 to 8 characters, mean 5",
        "text       writing system: Latin (3)",
        "compared   3 images for look-alikes",
        "tokens     128 to 131 per example, median 130",
        "total      389 tokens: 77% of images, 3% with loss",
        f"           128  {bar} 1",
        "           129",
        f"           130  {bar} 1",
        f"           131  {bar} 1",
        "result     Training would not start: no rows can be held out.",
    ]
    done = cli("check", "captions.csv", "model=demo", "data.holdout=1")
    assert (done.status, done.out.splitlines()[-1]) == (0, "result     Ready to train: 3 rows can be used; 1 warning.")


def test_characters_that_the_terminal_lacks(captions: Path) -> None:
    """A terminal with another encoding gets them escaped."""
    captions.rename(captions.with_name("图.csv"))
    code = "import sys; sys.stderr.reconfigure(encoding='latin-1'); from lorgnette.cli import main; main()"
    done = run_python("-c", code, "check", "图.csv", "data.holdout=1", cwd=captions.parent)
    assert done.returncode == 0, done.stderr
    done = run_python("-c", code, "check", "图片.csv", cwd=captions.parent)
    assert done.returncode == 1
    assert "\\u56fe\\u7247.csv" in done.stderr


def test_ctrl_c_prints_one_line(captions: Path, cli, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorgnette.commands.check.check", interrupt)
    done = cli("check", "captions.csv")
    assert (done.status, done.out, done.err) == (130, "", "stopped\n")


@pytest.mark.parametrize("module", ["json", "typer", "rich.console", "numpy", "lorgnette.cli", "pydantic"])
def test_ctrl_c_while_modules_are_imported_prints_one_line(module: str, tmp_path: Path) -> None:
    """In a real process, just after this module."""
    command = [sys.executable, "-X", "importtime", "-m", "lorgnette", "plan", "model=demo"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any(line.rpartition("| ")[2].strip() == module for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = [line for line in process.stderr.read().splitlines() if not line.startswith("import time:")]
        output = process.stdout.read()
    assert (rest, output) == (["stopped"], "")
    assert process.wait() in (130, -signal.SIGINT)  # Python's own for an interrupt within exec(); shells say 130


_INTERRUPTED = """
import os, signal
import lorgnette.commands.check, lorgnette.cli
def check(*_, **__):
    try:
        if {has_signal}: os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
    raise ValueError({text!r})
lorgnette.commands.check.check = check
lorgnette.cli.main()
"""


@pytest.mark.parametrize(
    ("has_signal", "text", "is_stopped"),
    [
        (True, "a tuple:\n  KeyboardInterrupt: ", True),
        (True, "defect", False),
        (False, "KeyboardInterrupt: ", False),
    ],
)
def test_ctrl_c_that_a_library_puts_into_its_own_error_prints_one_line(
    has_signal: bool, text: str, is_stopped: bool, captions: Path
) -> None:
    """As pydantic does in its functions. A defect keeps its traceback."""
    code = _INTERRUPTED.format(has_signal=has_signal, text=text)
    done = run_python("-c", code, "check", captions.name, cwd=captions.parent)
    assert done.returncode == (130 if is_stopped else 1)
    assert (done.stderr == "stopped\n") is is_stopped
    assert ("ValueError" in done.stderr) is not is_stopped


def test_an_interrupt_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As in a script's background job."""
    code = """
import os, signal
import lorgnette.__main__, lorgnette.cli
signal.signal(signal.SIGINT, signal.SIG_IGN)
lorgnette.cli.main = lambda: os.kill(os.getpid(), signal.SIGINT)
lorgnette.__main__.main()
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_processes_that_compile_start_first(tmp_path: Path) -> None:
    """Those of kernels only for a training, and where their pipes are not taken for standard input or output."""
    code = """
import os, sys
import lorgnette.__main__, lorgnette.cli
from lorgnette.io import compile_modules
from lorgnette.kernels import compile_ahead
compile_modules.start_compiling_modules = lambda: os.write(2, b"modules ")
compile_ahead.start = lambda *settings: os.write(2, b"kernels ")
compile_ahead.stop = lambda: os.write(2, b" ends")
lorgnette.cli.main = lambda: os.write(2, b"runs")
sys.stdin = {stdin}
lorgnette.__main__.main()
"""
    cases = [
        (["train", "demo"], "modules kernels runs ends"), (["check"], "modules runs"), (["train", "--help"], "runs"),
        (["train", "-h"], "runs"), (["--help"], "runs"), ([], "runs"),
    ]  # fmt: skip
    for words, output in cases:
        assert run_python("-c", code.format(stdin="sys.stdin"), *words, cwd=tmp_path).stderr == output
    assert run_python("-c", code.format(stdin="None"), "train", cwd=tmp_path).stderr == "modules runs"


_ENDS = """
import atexit, os, sys, threading, time, types
import lorgnette.__main__
{before}
class Last:
    def __del__(self, write=os.write): write(2, b"teardown")
last = Last()
def run_command():
    atexit.register(print, "tracker")
    if {has_torch}: sys.modules["torch"] = types.ModuleType("torch")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    print("result", end=" ")
    {end}
sys.modules["lorgnette.cli"] = types.SimpleNamespace(main=run_command)
lorgnette.__main__.main()
"""


def write_program(folder: Path, program: str) -> Path:
    """A script with the name of the installed command."""
    (folder / "lorgnette").write_text(program)
    return folder / "lorgnette"


@pytest.mark.parametrize(
    ("end", "has_torch", "environment", "status", "is_torn_down"),
    [
        ("sys.exit(3)", True, {}, 3, False),
        ("sys.exit()", True, {}, 0, False),
        ("pass", True, {}, 0, False),
        ("sys.exit('no')", True, {}, 1, True),
        ("raise RuntimeError('defect')", True, {}, 1, True),
        ("sys.exit(3)", False, {}, 3, True),
        ("sys.exit(3)", True, {"RANK": "0"}, 3, True),
        ("sys.exit(3)", True, {"CUDA_INJECTION64_PATH": "profiler.so"}, 3, True),
    ],
)
def test_the_end_skips_the_teardown_and_nothing_else(
    end: str, has_torch: bool, environment: dict[str, str], status: int, is_torn_down: bool, tmp_path: Path
) -> None:
    """Threads end, exit handlers run, both streams are complete, the status stays."""
    program = write_program(tmp_path, _ENDS.format(before="", end=end, has_torch=has_torch))
    done = subprocess.run(
        [sys.executable, program], env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (status, "result thread\ntracker\n")
    assert ("teardown" in done.stderr) is is_torn_down
    assert ("defect" in done.stderr) is ("defect" in end)


def test_the_end_is_quiet_without_a_standard_output(tmp_path: Path) -> None:
    program = _ENDS.format(before="os.close(1); sys.stdout = None", end="sys.exit(3)", has_torch=True)
    done = run_python(write_program(tmp_path, program), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "")


def test_the_end_is_pythons_own_where_others_wait_for_it(tmp_path: Path) -> None:
    program = _ENDS.format(before="atexit.register(print, 'coverage')", end="sys.exit(3)", has_torch=True)
    done = run_python(write_program(tmp_path, program), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "result thread\ntracker\ncoverage\n", "teardown")


def test_a_program_that_calls_the_command_ends_with_its_own_status(tmp_path: Path) -> None:
    call = "lorgnette.__main__.main()"
    program = _ENDS.format(before="", end="sys.exit(3)", has_torch=True).replace(
        call, f"try: {call}\nexcept SystemExit: sys.exit(4)"
    )
    done = run_python("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (4, "teardown")
    done = run_python(write_program(tmp_path, program), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, ""), "the installed command does nothing after it"


def test_a_full_disk_at_the_end_is_still_reported(tmp_path: Path) -> None:
    program = write_program(tmp_path, _ENDS.format(before="", end="sys.exit(0)", has_torch=True))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, program], env=os.environ | {"PYTHONUNBUFFERED": ""}, cwd=tmp_path, stdout=full,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 120  # Python's own
    assert "No space left" in done.stderr


def test_the_installed_command_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"lorgnette": "lorgnette.__main__:main"}
