"""The verbs as they are typed: their names, what they import, and how quickly they answer."""

import subprocess
import sys
import time
from pathlib import Path

import PIL.Image
import pytest

import lorgnette
from lorgnette import config

VERBS = [
    "demo", "prepare", "check", "preview", "plan", "train", "predict", "evaluate", "compare", "verify", "merge",
    "watch", "recipe",
]  # fmt: skip
HEAVY = ("torch", "transformers", "peft")
UNASKED = (
    *("huggingface_hub", "httpx2", "filelock", "lorgnette.hub.sources", "lorgnette.hub.models"),  # no hub is named
    *("swanlab", "wandb", "tensorboard", "pyarrow", "lorgnette.demo.scenes", "rich.progress", "PIL.PdfImagePlugin"),
)
"""What a run of local files, without a tracker and without a terminal, has no use for."""
LOADED = f"""
import sys
from lorgnette.cli import main
try:
    main()
except SystemExit as stopped:
    assert not stopped.code, stopped.code
heavy = [name for name in {HEAVY!r} if name in sys.modules]
assert not heavy, heavy
"""


def python(*words: object, at: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=at, capture_output=True, text=True, errors="replace", timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    for i in range(3):
        PIL.Image.new("RGB", (40, 40), (i * 80, 0, 0)).save(tmp_path / f"{i}.png")
    path = tmp_path / "captions.csv"
    path.write_text("image_path,caption\n0.png,black\n1.png,dark red\n2.png,red\n")
    return path


def test_the_verbs(cli) -> None:
    """Frozen: whoever renames one breaks scripts. In the order of the work."""
    listed = cli("--help").out.partition("Commands:")[2].splitlines()
    assert [line.split()[0] for line in listed if line.strip() and not line.startswith("   ")] == VERBS


def test_every_verb_explains_itself(cli) -> None:
    for verb in VERBS:
        done = cli(verb, "--help")
        assert done.status == 0
        assert done.out.startswith(f"Usage: lorgnette {verb} ")
    assert cli("recipe", "copy", "-h").status == 0


def test_no_word_at_all_is_a_question_for_help(cli) -> None:
    done = cli()
    assert done.status == 2
    assert "Commands:" in done.out + done.err


def test_a_verb_there_is_not(cli) -> None:
    done = cli("trian")
    assert done.status == 2
    assert "Did you mean 'train'?" in done.err


def test_version(cli) -> None:
    assert cli("--version").out == f"lorgnette {lorgnette.__version__}\n"


def test_as_a_module() -> None:
    done = python("-m", "lorgnette", "--version")
    assert (done.returncode, done.stdout) == (0, f"lorgnette {lorgnette.__version__}\n")


def test_help_answers_within_a_second() -> None:
    """The best of a few: other work on this machine must not fail it."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        done = python("-m", "lorgnette", "--help")
        seconds.append(time.perf_counter() - begun)
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
def test_what_needs_no_weights_imports_no_torch(words: list[str], captions: Path) -> None:
    done = python("-c", LOADED, *words, at=captions.parent)
    assert done.returncode == 0, done.stderr


TO_TORCH = f"""
import sys
from lorgnette.cli import main
class Stopped:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            unasked = [name for name in {UNASKED!r} if name in sys.modules]
            sys.exit(f"imported: {{unasked}}" if unasked else 0)
sys.meta_path.insert(0, Stopped())
main()
raise AssertionError("torch was not imported")
"""


def test_a_training_of_local_files_imports_what_it_needs(captions: Path) -> None:
    """Up to torch, when all that is local has been read and encoded."""
    words = ("train", "demo", "data=captions.csv", "data.holdout=1", "device=cpu", "report_to=none")
    done = python("-c", TO_TORCH, *words, at=captions.parent)
    assert done.returncode == 0, done.stderr
    assert "data   " in done.stderr


def test_the_settings() -> None:
    """Frozen: each is named in somebody's recipe."""
    assert config.list_settings() == [
        "model", "engine", "run", "seed", "device", "dtype",
        "data.path", "data.test", "data.holdout", "data.split", "data.prompt", "data.on_bad_row", "data.max_rows",
        "data.images_from", "data.group_by_image",
        "image_size", "image_tokens", "eos_token", "max_length",
        "lora.rank", "lora.alpha", "lora.dropout", "lora.use_rslora", "lora.target_modules", "lora.parts",
        "train.epochs", "train.max_steps", "train.batch_size", "train.accumulation", "train.max_tokens_per_microbatch", "train.learning_rate",
        "train.lr_scheduler_type", "train.warmup_steps", "train.weight_decay", "train.max_grad_norm", "train.logging_steps",
        "train.save_steps", "train.eval_steps", "train.metric_for_best_model", "train.early_stopping_patience",
        "predict.max_new_tokens", "predict.batch_size", "predict.metrics", "predict.image_size",
        "report_to", "project",
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
    cli("recipe", "copy", "coco-caption").refused(2, "file exists", "coco-caption.yaml")
    cli("recipe", "show", "coco-capton").refused(2, "did you mean coco-caption?")


def test_check_says_what_is_there(captions: Path, cli) -> None:
    done, bar = cli("check", "captions.csv", "model=demo"), "█" * 32
    assert done.status == 1
    assert not done.out
    assert done.err.splitlines() == [
        "no row can be held out: holdout is 4, but there are 3 usable rows; hold out fewer rows than there are, so "
        "that some are left to train on",
        "rows       3, 3 usable, 0 broken",
        "pictures   3, used 3 times",
        "sizes      40×40 pixels",
        "answers    3 to 8 characters, 5 on average",
        "scripts    Latin 3",
        "looks      3 pictures compared",
        "tokens     127 to 130 an example, 129 in the middle",
        "in all     386 tokens, 78 % pictures, 3 % trained",
        f"           127  {bar} 1",
        "           128",
        f"           129  {bar} 1",
        f"           130  {bar} 1",
        "verdict    Training would not start: no row can be held out.",
    ]
    done = cli("check", "captions.csv", "model=demo", "data.holdout=1")
    assert (done.status, done.err.splitlines()[-1]) == (0, "verdict    Nothing was found against its rows.")


def test_a_letter_the_terminal_has_not(captions: Path) -> None:
    """A terminal of an older code page gets it written out."""
    captions.rename(captions.with_name("图.csv"))
    code = "import sys; sys.stderr.reconfigure(encoding='latin-1'); from lorgnette.cli import main; main()"
    done = python("-c", code, "check", "图.csv", "data.holdout=1", at=captions.parent)
    assert done.returncode == 0, done.stderr
    done = python("-c", code, "check", "图片.csv", at=captions.parent)
    assert done.returncode == 1
    assert "\\u56fe\\u7247.csv" in done.stderr


def test_ctrl_c_is_answered_in_one_line(captions: Path, cli, monkeypatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorgnette.commands.check.check", stopped)
    done = cli("check", "captions.csv")
    assert (done.status, done.out, done.err) == (130, "", "stopped\n")
