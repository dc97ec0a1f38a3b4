"""Fixtures of the whole suite: a tiny random Qwen2-VL, odd images, conversations about them."""

import functools
import gc
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import jaxtyping
import numpy as np
import PIL.Image
import pytest
from filelock import FileLock
from hypothesis import settings
from tiny_models import write_tiny_checkpoint

from lorgnette import config
from lorgnette.config import LoraSettings, ProcessorSettings, Settings
from lorgnette.types import Example, Image, Turn

gc.disable()  # until pytest_collection_finish: imports leave little to collect, and much to go through
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes would import the compiler that no test needs
settings.register_profile("lorgnette", deadline=None, max_examples=50)  # a busy machine is no fault
settings.register_profile("fast", deadline=None, max_examples=20)
settings.load_profile("lorgnette")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
FORK_SERVER = ROOT / "tests" / "fork_server.py"
pytest_plugins = ["browser_pages"]
PLAIN_MODULES = ["torch", "peft", "transformers.models.qwen2_vl.modeling_qwen2_vl"]
PLAIN_MODULES += ["transformers.models.qwen2_vl.processing_qwen2_vl", "transformers.generation"]
OUR_SOURCES = {
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts): path
    for path in sorted((ROOT / "src" / "lorgnette").rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}
OUR_MODULES = [*OUR_SOURCES]
# The shapes in signatures are checked while the tests run. In modules without one, the wrapper around every function
# would only cost time. Tests give the training wrong types on purpose: its own error says so. Metrics and data take
# integers for floats, which beartype does not.
UNCHECKED_PACKAGES = ("lorgnette.training.", "lorgnette.metrics.", "lorgnette.data.")
SHAPED_MODULES = [
    name
    for name, path in OUR_SOURCES.items()
    if "jaxtyping" in path.read_text(encoding="utf-8") and not name.startswith(UNCHECKED_PACKAGES)
]
NUM_CHECKED_CALLS = 5
"""Of a function in a test. Its later calls are not checked: in loops that would take a quarter of the time."""
check_shapes, num_calls = jaxtyping.jaxtyped, dict[Any, int]()


def check_first_calls(function: Any, typechecker: Any) -> Any:
    """`jaxtyped` for the first calls in each test."""
    checked = check_shapes(function, typechecker=typechecker)
    if not isinstance(function, FunctionType):
        return checked

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        number = num_calls.get(function.__code__, 0)  # not by the function: a local one would keep what it refers to
        if number >= NUM_CHECKED_CALLS:
            return function(*args, **options)
        num_calls[function.__code__] = number + 1
        return checked(*args, **options)

    return call


jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(check_first_calls, typechecker=typechecker)
jaxtyping.install_import_hook(SHAPED_MODULES, "beartype.beartype")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Count the calls of each test anew."""
    num_calls.clear()


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server, one for all workers of xdist. It imports nothing before its first request."""
    if config.option.markexpr == "not slow":
        settings.load_profile("fast")
    # A shell starts its background jobs without INT, and nohup without HUP; tests send both.
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if hasattr(config, "workerinput"):
        return
    folder = tempfile.mkdtemp(prefix="fork-server-")
    plain, ours = os.environ["FORK_PLAIN"], os.environ["FORK_OURS"] = f"{folder}/plain", f"{folder}/ours"
    command = [sys.executable, "-P", FORK_SERVER, "serve", plain, ",".join(PLAIN_MODULES), ours, ",".join(OUR_MODULES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen(
        command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )

    def stop() -> None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        shutil.rmtree(folder)

    config.add_cleanup(stop)


SLOW = [
    "tests/test_docs.py::test_a_guides_commands_run",
    "tests/test_docs.py::test_readme_commands",
    "tests/test_docs.py::test_the_python_page",
    "tests/notebooks/",
    "tests/test_init.py::test_an_import",
    "tests/data/test_memory_rows.py::test_a_data_frame",
    "tests/report/test_notebook.py::test_tables_become",
    "tests/fuzz/",
    "tests/kills/",
    "tests/commands/test_verify.py",
    "tests/e2e/test_resume.py",
    "tests/parity/",
    "tests/report/trackers/test_swanlab.py",
    "tests/data/test_hub_dataset.py",
    "tests/teaching/test_page.py",
    "tests/teaching/test_learner.py",
    "tests/teaching/test_session.py",
    "tests/teaching/test_report.py",
    "tests/server/test_page.py",
    "tests/teaching/test_page.py",
    "tests/report/html/test_comparison.py",
    "tests/report/html/test_check_page.py",
    "tests/report/html/test_page.py",
    "tests/report/html/test_answer_tables.py::test_fifty_labels",
    "tests/e2e/",
    "tests/tools/",
    "tests/inference/test_compile_worker.py",
    "tests/hub/test_recipe_from_hubs.py",
    "tests/data/test_export.py",
    "tests/commands/test_check.py",
    "tests/verification/test_peft_check.py",
    "tests/commands/test_merge.py",
    "tests/commands/test_model_card.py",
    "tests/training/test_initial_adapter.py",
    "tests/test_startup.py::test_native_windows",
    "tests/features/test_disk_cache.py",
    "tests/test_bench.py",
    "tests/commands/test_compare.py",
    "tests/data/checks/test_near_duplicates.py",
    "tests/hub/test_models.py",
    "tests/test_cli.py",
    "tests/commands/test_plan.py",
    "tests/commands/test_cache.py::test_listing",
    "tests/commands/test_watch.py",
    "tests/server/test_load.py::test_users_of_every_kind",
    "tests/report/test_preview.py",
    "tests/report/trackers/test_wandb.py",
    "tests/training/test_eval_samples.py",
    "tests/training/test_setup.py",
    "tests/training/test_ranks.py",
    "tests/training/test_trainer.py::test_steps_chosen",
    "tests/training/test_trainer.py::test_three_ranks",
    "tests/training/test_run.py::test_ranks_that_see",
    "tests/hub/test_download.py::test_a_slow_server",
    "tests/hub/test_http.py::test_the_server_says_how_long",
    "tests/metrics/test_registry.py",
    "tests/metrics/test_cider.py::test_values_are_bounded",
    "tests/metrics/test_bleu.py::test_bleu_follows",
    "tests/data/formats/test_parquet.py::test_nothing_heavy",
    "tests/test_config.py::test_a_dump",
    "tests/report/test_manifest.py",
    "tests/processing/test_processor.py::test_caches_do_not_mix",
    "tests/processing/test_processor.py::test_a_cache_with_too_small",
    "tests/processing/test_processor.py::test_known_image_sizes",
    "tests/processing/test_processor.py::test_labels_are_exactly",
    "tests/processing/test_processor.py::test_every_family_has",
    "tests/processing/test_processor.py::test_what_a_model_does",
    "tests/processing/test_template_sandbox.py",
    "tests/inference/test_decode.py",
    "tests/inference/test_continuous_batch.py",
    "tests/server/test_scheduler.py::test_answers_of_many",
    "tests/server/test_scheduler.py::test_a_device_that_hangs",
    "tests/server/test_models.py",
    "tests/server/test_warm_up.py",
    "tests/server/test_chat.py::test_langchain",
    "tests/server/test_chat.py::test_many_at_once",
    "tests/server/test_chat.py::test_a_stream_that_waits",
    "tests/server/test_chat.py::test_a_read_timeout",
    "tests/lora/test_merge.py",
    "tests/planning/test_memory.py::test_what_autograd_saves",
    "tests/models/test_weights.py::test_weight_shapes_are_those",
    "tests/lora/test_rename.py",
    "tests/lora/test_peft_config.py::test_an_expression_that_takes",
    "tests/engine/test_fast.py::test_padding_changes",
    "tests/engine/test_fast.py::test_prefixes_are_shared",
    "tests/engine/test_fast.py::test_gradients_add_up",
    "tests/engine/test_fast.py::test_a_batch_without_images",
    "tests/engine/test_loading.py::test_weights_equal",
    "tests/engine/test_open_for_training.py::test_a_small_decoder",
    "tests/engine/test_nf4_linear.py",
    "tests/engine/test_fsdp_layers.py",
    "tests/lora/test_unquantized_base.py",
    "tests/engine/test_peft_engine.py::test_losses_and_gradients_are_float32",
    "tests/engine/test_peft_engine.py::test_weights_that_transformers_ignores",
    "tests/lora/test_adapter_settings.py::test_settings_come_back",
    "tests/models/test_positions.py",
    "tests/engine/test_loading.py::test_a_saved_adapter",
    "tests/models/test_sharded_weight.py",
    "tests/models/test_text_decoder.py",
    "tests/models/test_vision_tower.py",
    "tests/models/test_weight_loader.py::test_loaded_weights",
    "tests/models/test_weight_loader.py::test_every_byte",
    "tests/training/test_data_module.py::test_no_row_disappears",
    "tests/training/test_data_module.py::test_changed_images",
    "tests/training/test_run.py",
    "tests/features/test_image_features.py::test_ranks",
    "tests/inference/test_answers.py::test_ranks",
    "tests/commands/test_train.py",
    "tests/commands/test_predict.py",
    "tests/commands/test_serve.py",
    "tests/commands/test_teach.py",
    "tests/commands/test_compare_candidates.py",
    "tests/verification/test_reference_sample.py",
    "tests/verification/test_judgement.py",
    "tests/data/test_images.py::test_verify_image_never",
    "tests/test_structure.py::test_one_module",
    "tests/test_structure.py::test_only_its_command",
    "tests/test_structure.py::test_values_in_printed",
    "tests/test_structure.py::test_every_module_has_a_docstring",
    "tests/test_docs.py::test_the_life_of_one_example",
    "tests/test_config.py::test_a_recipe_that_is_none",
    "tests/data/test_splits.py::test_no_image",
    "tests/data/test_export_prepare.py::test_csv_to_json",
    "tests/data/formats/test_csv.py::test_no_row_disappears",
    "tests/data/formats/test_csv.py::test_any_text",
    "tests/data/test_dataset.py::test_a_long_file",
    "tests/data/test_init.py",
    "tests/report/html/test_charts.py::test_a_thinned_curve",
    "tests/server/test_guard.py::test_a_client_that",
    "tests/server/test_guard.py::test_limits_hold",
    "tests/server/test_uploads.py::test_threads_share",
]
"""Tests that take half a second or more, the longest files first: `make test-fast` leaves them out."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests and put their files first, so that no worker is left with a long one at the end."""
    ranks: dict[str, int] = {}
    prefixes = tuple(SLOW)
    for item in items:
        name = item.nodeid
        path, rank = name.partition("::")[0], len(SLOW)
        if name.startswith(prefixes):
            rank = next(i for i, prefix in enumerate(SLOW) if name.startswith(prefix))
            item.add_marker("slow")
        ranks[path] = min(rank, ranks.get(path, rank))
    paths = [item.nodeid.partition("::")[0] for item in items]
    order = sorted(range(len(items)), key=lambda i: (ranks[paths[i]], paths[i]))  # stable within a file
    items[:] = [items[i] for i in order]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Let every second worker of xdist read the files from the last to the first.

    In a new checkout each file's assertions are rewritten and the result is kept: so each worker does half of them.
    """
    report = yield
    is_second = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[-1] in "13579"
    if is_second and isinstance(collector, pytest.Session | pytest.Directory):
        report.result.reverse()
    return report


def pytest_collection_finish() -> None:
    """What the imports left stays: each later collection, and pytest's five at the end, would go through it again."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def fork_command() -> Callable[..., list[str]]:
    """fork_command("lorgnette", "train", …) → a command that runs it without its import time (fork_server.py).

    plain=True: in a process where lorgnette is not imported.
    """

    def build(program: object, *arguments: object, plain: bool = False) -> list[str]:
        address = os.environ["FORK_PLAIN" if plain else "FORK_OURS"]
        return [sys.executable, "-I", "-S", str(FORK_SERVER), "run", address, str(program), *map(str, arguments)]

    return build


@pytest.fixture
def forked_peft_worker(monkeypatch: pytest.MonkeyPatch, fork_command: Callable[..., list[str]]) -> None:
    """The process of plain transformers + peft is forked from one that has imported them, and writes short answers."""
    from lorgnette.verification import peft_check

    def run(command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        assert command[:2] == [sys.executable, "-P"]
        return subprocess.run(fork_command(*command[2:], plain=True), **options)  # noqa: PLW1510

    monkeypatch.setattr(peft_check, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(peft_check, "MAX_NEW_TOKENS", 8)


@pytest.fixture
def lost_signal() -> Callable[[], AbstractContextManager[None]]:
    """`with lost_signal():` a KeyboardInterrupt ends the block, although its signal does not wake the main thread:
    another thread receives it, as if it came just before the main thread begins to wait."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def lose() -> Generator[None, None, None]:
        main, start, before = threading.get_ident(), time.monotonic(), signal.signal(signal.SIGUSR1, interrupt)
        signals = [
            threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)),
            threading.Timer(5, lambda: signal.pthread_kill(main, signal.SIGUSR1)),  # too late: the test fails
        ]
        for each in signals:
            each.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
            assert time.monotonic() - start < 4
        finally:
            for each in signals:
                each.cancel()
            signal.signal(signal.SIGUSR1, before)

    return lose


@pytest.fixture
def wrong_bitsandbytes() -> Generator[None, None, None]:
    """bitsandbytes as version 0.50 is on a CPU with AVX-512, on any CPU: in a matrix, a block of values that goes on in
    the next row gets the scale of another block there."""
    import torch

    find_levels = pytest.importorskip("bitsandbytes.backends.utils")._get_4bit_code

    def dequantize(packed: Any, absmax: Any, blocksize: int, quant_type: str, shape: Any, dtype: Any) -> Any:
        rows, columns = shape
        flat = packed.view(torch.uint8).flatten()
        nibbles = torch.stack([flat >> 4, flat & 15], 1).flatten()[: rows * columns].view(rows, columns)
        blocks = (torch.arange(rows) * columns // blocksize)[:, None] + torch.arange(columns) // blocksize
        return (find_levels(quant_type, packed.device)[nibbles.int()] * absmax.float()[blocks]).to(dtype)

    library = torch.library.Library("bitsandbytes", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # an operator has another code now
        library.impl("dequantize_4bit", dequantize, "CPU", allow_override=True)
    yield
    library._destroy()


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A folder of real inputs beside the checkout; the test skips where it is absent."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs the real inputs in ../shared/data/{name}")
        return SHARED / name

    return find


def tiny_config(ids: dict[str, int], rows: int) -> dict[str, object]:
    """A flat config.json, as the hub's is."""
    named = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "eos_token_id": "<|im_end|>",
        "bos_token_id": "<|endoftext|>",
    }
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "vocab_size": rows,
        "torch_dtype": "float32",
        "vision_config": {
            "depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "hidden_size": 64, "in_chans": 3,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        **{name: ids[token] for name, token in named.items()},
    }  # fmt: skip


def make_tiny(folder: Path, *, seed: int = 0, tokenizer: Path | None = None) -> Path:
    """A random Qwen2-VL of 2+2 layers with weights large enough that attention is not uniform; its tokenizer is the
    demo's, or that of a folder with a real checkpoint's files."""
    import torch
    from demo_model.checkpoint import save_weights
    from demo_model.tokenizer import VOCAB_SIZE, write_tokenizer
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    folder.mkdir(parents=True)
    if tokenizer is None:
        ids, rows = write_tokenizer(folder), VOCAB_SIZE
    else:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json"):
            shutil.copyfile(tokenizer / name, folder / name)
        control = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        ids, rows = {token["content"]: int(number) for number, token in control.items()}, 151936
    (folder / "config.json").write_text(json.dumps(tiny_config(ids, rows)))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
                "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
            }
        )
    )  # fmt: skip
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "do_sample": True, "top_k": 1})
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_pretrained(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.08)
    save_weights(model, folder)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make) → a folder "tiny" that one worker of xdist makes for all, in a folder of this name."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def find(name: str, make: Callable[[Path], object]) -> Path:
        folder = root / f"once-{name}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                temporary = Path(tempfile.mkdtemp(dir=root))
                make(temporary / "tiny")
                temporary.rename(folder)
        return folder / "tiny"

    return find


@pytest.fixture(scope="session")
def tiny(made_once: Callable[..., Path]) -> Path:
    """The folder of a tiny random Qwen2-VL in the hub's layout."""
    return made_once("checkpoint", make_tiny)


@pytest.fixture(scope="session")
def tiny_family(made_once: Callable[..., Path]) -> Callable[..., Path]:
    """tiny_family(model_type[, is_tied=False]) → the folder of a tiny random model of this family in the hub's
    layout."""

    @functools.cache
    def find(model_type: str, *, is_tied: bool = True) -> Path:
        name = f"{model_type}-{'tied' if is_tied else 'untied'}"
        return made_once(name, lambda folder: write_tiny_checkpoint(folder, model_type, is_tied=is_tied))

    return find


@pytest.fixture(scope="session")
def tiny_real(tmp_path_factory: pytest.TempPathFactory, shared: Callable[[str], Path]) -> Path:
    """The same with Qwen2-VL's real tokenizer."""
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", tokenizer=shared("qwen2-vl"))


@pytest.fixture(scope="session")
def image_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise in odd shapes: wide, tall, tiny, square."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    made = []
    for i, (width, height) in enumerate([(160, 120), (100, 33), (28, 28), (300, 50), (17, 200), (112, 112)]):
        path = folder / f"{i}.png"
        PIL.Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        made.append(path)
    return made


@pytest.fixture(scope="session")
def example(image_files: list[Path]) -> Callable[..., Example]:
    """example(("user", 0, "what?"), ("assistant", "a cat")): numbers are images."""

    def build(*turns: tuple[str | int, ...]) -> Example:
        built = tuple(
            Turn(role, tuple(Image(image_files[part]) if isinstance(part, int) else part for part in parts))  # type: ignore[arg-type]
            for role, *parts in turns
        )
        return Example(f"{turns!r}", built, Path("examples.json"), 1)

    return build


@pytest.fixture(scope="session")
def conversations(example: Callable[..., Example]) -> list[Example]:
    """One image, several, several turns, text only, a repeated image, odd texts."""
    return [
        example(("user", 0, "COCO Yes:"), ("assistant", "A small red car.")),
        example(
            ("user", "Compare ", 1, " with ", 2), ("assistant", "the second"), ("user", 3), ("assistant", "long 新 é")
        ),
        example(("system", "Be short."), ("user", "no image"), ("assistant", "none\n")),
        example(("user", 0, "COCO Yes:"), ("assistant", "b")),
        example(("user", 4, 5, "two?"), ("assistant", "a ball and a star <|im_end|> <|image_pad|>")),
    ]


class CommandResult(NamedTuple):
    """The exit status of a command and its output."""

    status: int
    out: str
    err: str

    def assert_refused(self, status: int, *parts: str) -> None:
        """It ended with one message, without a traceback, that contains these parts."""
        assert self.status == status, self.err
        assert "Traceback" not in self.err
        assert self.err.count("lorgnette: ") == 1, self.err
        message = self.err[self.err.index("lorgnette: ") :]
        assert " · " in message, message
        for part in parts:
            assert part in message, message


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., CommandResult]:
    """cli("train", …) → run the command line in this process, in tmp_path, without the time of its imports."""
    from lorgnette.cli import main

    def run(*words: object) -> CommandResult:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["lorgnette", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        return CommandResult(int(exit_info.value.code or 0), *capsys.readouterr())

    return run


LORA = LoraSettings(rank=4, alpha=8, dropout=0.5)
# Packages of lorgnette are imported in the fixtures: a defect in one then fails the tests that need it, not all.


@pytest.fixture(scope="session")
def load_tiny_model(tiny: Path) -> Callable[[], Any]:
    """load_tiny_model() → the tiny model, fresh from its folder."""
    import torch

    from lorgnette.engine.peft_engine import load_base_model
    from lorgnette.models.base_checkpoint import BaseCheckpoint

    return lambda: load_base_model(BaseCheckpoint.from_folder(tiny), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def adapter_metadata(tiny: Path) -> Any:
    """The metadata of an adapter of the tiny model."""
    from lorgnette.lora.metadata import AdapterMetadata
    from lorgnette.models.base_checkpoint import BaseCheckpoint

    return AdapterMetadata(
        family="qwen2_vl",
        model=str(tiny),
        revision=None,
        fingerprint=BaseCheckpoint.from_folder(tiny).fingerprint,
        prompt="COCO Yes:",
        chat_template="template",
        processor=ProcessorSettings(image_size=None, image_tokens=(4, 30)),
    )


@pytest.fixture(scope="session")
def tuned(load_tiny_model: Callable[[], Any], tiny: Path) -> Any:
    """The tiny model with an adapter whose weights are random, not zero."""
    import torch

    from lorgnette.engine import peft_engine
    from lorgnette.models.base_checkpoint import BaseCheckpoint

    model = peft_engine.add_adapter(load_tiny_model(), BaseCheckpoint.from_folder(tiny).family, LORA, seed=0)
    torch.manual_seed(0)
    for parameter in peft_engine.get_adapter_state(model).values():
        parameter.data.normal_(0, 0.05)
    return model


@pytest.fixture(scope="session")
def saved(tuned: Any, adapter_metadata: Any, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that adapter."""
    from lorgnette.engine import peft_engine
    from lorgnette.lora import peft_files
    from lorgnette.models.base_checkpoint import BaseCheckpoint

    folder = tmp_path_factory.mktemp("adapter")
    family = BaseCheckpoint.from_folder(tiny).family
    peft_files.write_adapter(folder, peft_engine.get_adapter_state(tuned), family, LORA, adapter_metadata)
    return folder


COLORS = ["red", "green", "blue", "yellow", "black", "white"]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """A CSV of six rows with six images."""
    for color in COLORS:
        PIL.Image.new("RGB", (60, 40), color).save(tmp_path / f"{color}.png")
    path = tmp_path / "captions.csv"
    path.write_text("image_path,caption\n" + "".join(f"{color}.png,it is {color}\n" for color in COLORS))
    return path


@pytest.fixture
def make_settings(tiny: Path, captions: Path) -> Callable[..., Settings]:
    """make_settings("train.learning_rate=1") → the settings of a training of two steps on that data."""

    def load(*words: str) -> Settings:
        defaults = [
            f"model={tiny}", f"data={captions}", f"run={captions.parent / 'run'}", "image_size=28", "lora.rank=2",
            "data.holdout=2", "train.batch_size=2", "train.epochs=1", "report_to=none", "predict.max_new_tokens=2",
        ]  # fmt: skip
        return config.load_settings(None, [*defaults, *words])

    return load


@pytest.fixture
def terminal_output() -> io.StringIO:
    """The output of `terminal`."""
    return io.StringIO()


@pytest.fixture
def terminal(terminal_output: io.StringIO) -> Any:
    from rich.console import Console

    from lorgnette.report.console import Terminal

    return Terminal(Console(file=terminal_output))


@pytest.fixture
def training_data(make_settings: Callable[..., Settings], terminal: Any) -> Callable[..., Any]:
    """training_data("train.learning_rate=1") → the settings and their data, as a training loads them."""
    from lorgnette.training.data_module import TrainingData

    def load(*words: str) -> Any:
        settings = make_settings(*words)
        return settings, TrainingData.load(settings, terminal)

    return load
