"""Early initialization does no harm with or without a device and Triton; the collector pauses and comes back."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import lorgnette
from lorgnette import startup
from lorgnette.startup import freeze_gc, hide_widget_warning, let_threads_sleep

WINDOWS = """
import sys, signal
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGKILL", "SIGQUIT"):
    delattr(signal, name)
import lorgnette.cli
sys.platform = "win32"  # after the standard library's own imports
sys.argv = ["lorgnette", "train", "captions.csv"]
"""
"""What Python lacks on Windows."""


@pytest.mark.parametrize("use", ["lorgnette.cli.main()", "lorgnette.train"])
def test_native_windows_is_named_with_the_remedy(use: str) -> None:
    result = subprocess.run([sys.executable, "-c", WINDOWS + use], capture_output=True, text=True, check=False)
    message = result.stderr.strip().splitlines()[-1]
    assert "lorgnette does not run on native Windows · this system · use WSL2" in message
    assert result.returncode != 0
    assert ("Traceback" in result.stderr) is ("main" not in use)


def test_a_command_knows_when_its_process_was_started() -> None:
    code = (
        "import time; time.sleep(0.3); from lorgnette import startup; assert startup.get_command_start() is None;"
        "startup.note_command_start(); print(time.perf_counter() - startup.get_command_start())"
    )
    start = time.monotonic()
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    expected = 0.3 if sys.platform == "linux" else 0.0
    assert expected <= float(output) <= time.monotonic() - start + 0.02  # the system counts hundredths


def test_without_proc_a_command_starts_when_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(startup.Path, "read_text", fail)
    monkeypatch.setattr(startup, "_command_start", None)
    before = time.perf_counter()
    startup.note_command_start()
    assert before <= (startup.get_command_start() or 0.0) <= time.perf_counter()


def test_other_systems_are_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linux", "darwin"):
        monkeypatch.setattr(sys, "platform", name)
        startup.check_system()


IMPORTS_TORCH = """
import os, sys
from importlib.machinery import SourceFileLoader
compiled, compile_source = [], SourceFileLoader.source_to_code
def record(self, data, path, **options):
    compiled.append(self.name)
    return compile_source(self, data, path, **options)
SourceFileLoader.source_to_code = record
from lorgnette import startup
{keep}
import torch
print("torch" in compiled, sys.pycache_prefix, os.environ.get("PYTHONPYCACHEPREFIX"))
"""


def import_torch(folder: Path, keep: str = "startup.keep_bytecode()", **variables: str) -> tuple[bool, str, str]:
    """Whether a process compiles the package `torch` of this folder; its prefix, and that of processes it starts."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {
        "PYTHONPATH": f"{folder}:{Path(lorgnette.__file__).parents[1]}", "XDG_CACHE_HOME": str(folder / "cache"),
    } | variables  # fmt: skip
    command = [sys.executable, "-c", IMPORTS_TORCH.format(keep=keep)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    is_compiled, prefix, of_children = done.stdout.split()
    return is_compiled == "True", prefix, of_children


@pytest.fixture
def folder_of_torch(tmp_path: Path) -> Path:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("value = 1")
    return tmp_path


def test_torch_is_compiled_once_where_python_may_not_write_beside_it(folder_of_torch: Path) -> None:
    folder, refuses = folder_of_torch, {"PYTHONDONTWRITEBYTECODE": "1"}
    assert import_torch(folder, "", **refuses) == import_torch(folder, "", **refuses) == (True, "None", "None")
    kept = str(folder / "cache/lorgnette/bytecode")
    assert import_torch(folder, **refuses) == (True, kept, kept)
    assert import_torch(folder, **refuses) == (False, kept, kept)
    (folder / "torch/__init__.py").write_text("value = 12")
    assert import_torch(folder, **refuses)[0], "a changed source is compiled again"
    locked = "import os; os.access = lambda *_: False; startup.keep_bytecode()"
    assert import_torch(folder, locked) == (False, kept, kept)


def test_bytecode_stays_where_python_keeps_it(folder_of_torch: Path) -> None:
    """Beside the source if it can be written there, or is; where the user says; nowhere that others can write to."""
    folder, refuses = folder_of_torch, {"PYTHONDONTWRITEBYTECODE": "1"}
    own = folder / "cache/lorgnette/bytecode"
    own.mkdir(parents=True)
    own.chmod(0o777)
    assert import_torch(folder, **refuses) == (True, "None", "None")
    own.chmod(0o700)
    other = str(folder / "other")
    assert import_torch(folder, **refuses, PYTHONPYCACHEPREFIX=other) == (True, other, other)
    assert import_torch(folder) == (True, "None", "None")
    assert import_torch(folder, **refuses) == (False, "None", "None")
    assert not any(own.iterdir())


def test_a_user_without_a_home_keeps_no_bytecode(folder_of_torch: Path) -> None:
    homeless = "import os; os.environ.clear(); os.path.expanduser = lambda path: path; startup.keep_bytecode()"
    assert import_torch(folder_of_torch, homeless, PYTHONDONTWRITEBYTECODE="1") == (True, "None", "None")


LOADS_EARLY = """
import os, sys
from lorgnette import startup
def list_libraries():
    return {line.rpartition("/")[2].strip() for line in open("/proc/self/maps") if "/torch/lib/" in line}
assert not list_libraries()
startup.start_loading_torch()
child = os.fork()
assert "libtorch_cpu.so" in list_libraries(), "a fork waits until all is loaded"
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert "torch" not in sys.modules
    startup.start_loading_torch()
    import torch
    assert torch.ones(2).sum() == 2
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_torch_finds_its_libraries_loaded() -> None:
    done = subprocess.run([sys.executable, "-c", LOADS_EARLY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


LOADS_SLOWLY = """
import threading, time
from lorgnette import startup
from lorgnette.io.processes import count_processes
alone = count_processes()
startup._load_libraries = lambda folder: time.sleep(0.3)
startup.start_loading_torch()
assert threading.active_count() == 2
assert (count_processes(), threading.active_count()) == (alone, 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux loads early")
def test_processes_read_rows_also_where_libraries_load() -> None:
    """A thread forbids them; this one is waited for."""
    done = subprocess.run([sys.executable, "-c", LOADS_SLOWLY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("broken", "count"), [("", 4), ("libc10.so", 2)])
def test_libraries_load_as_torch_loads_them(
    broken: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In its order; what a build without a GPU lacks is left out; after an error torch has its turn."""
    libraries = ["libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so", "libtorch_cuda.so"]
    loaded: list[tuple[str, int]] = []

    def dlopen(path: bytes, flags: int) -> int | None:
        name = Path(os.fsdecode(path)).name
        loaded.append((name, flags))
        return None if name == broken else 1

    monkeypatch.setattr(startup.ctypes, "CDLL", lambda _: SimpleNamespace(dlopen=dlopen))
    for name in libraries:
        (tmp_path / name).touch()
    startup._load_libraries(tmp_path)
    assert loaded == [(n, os.RTLD_NOW | (os.RTLD_GLOBAL if "global" in n else 0)) for n in libraries[:count]]


IMPORTS_LATE = """
import sys
from lorgnette import cli, startup
known = set()
def record():
    startup.import_extension_modules() if {prepares} else None
    known.update(sys.modules)
def end():
    late = [name for name in sys.modules if name not in known]
    print([n for n in late if str(getattr(sys.modules[n], "__file__", "")).endswith(".so")], file=sys.__stdout__)
    sys.exit()
cli.start_loading_torch, startup.start_cuda_init = record, end
sys.argv = ["lorgnette", "train", "captions.csv", "model=demo", "run=run"]
cli.main()
"""


@pytest.mark.parametrize("prepares", [True, False])
def test_no_import_waits_for_torchs_libraries(prepares: bool, tmp_path: Path) -> None:
    """The system loads one library at a time, so what `train` imports while they load has no compiled part."""
    rows = [f"{n}.png,{name}" for n, name in enumerate(["black", "grey", "white", "red", "green"] * 4)]
    (tmp_path / "captions.csv").write_text("\n".join(["image_path,caption", *rows]))
    for n in range(len(rows)):
        Image.new("RGB", (28, 28), (n, 0, 0)).save(tmp_path / f"{n}.png")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_LATE.format(prepares=prepares)], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout == "[]\n") is prepares, done.stdout


def test_a_missing_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        assert name == "libcuda.so.1"
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(startup.ctypes, "CDLL", fail)
    startup._init_context()


@pytest.mark.parametrize("status", [0, 100])
def test_a_context_is_created_only_with_a_device(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    calls: list[str] = []

    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802  the driver's own name
            calls.append("init")
            return status

        def cuDevicePrimaryCtxRetain(self, context: object, device: int) -> int:  # noqa: N802
            calls.append(f"device {device}")
            return 0

    monkeypatch.setattr(startup.ctypes, "CDLL", lambda name: Driver())
    startup.start_cuda_init()
    for thread in threading.enumerate():
        if thread.name == "driver":
            thread.join()
    assert calls == (["init", "device 0"] if status == 0 else ["init"])


def test_triton_hashes_itself_only_if_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", SimpleNamespace(triton_key=lambda: calls.append("key")))
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    startup._hash_triton()
    assert calls == ["key"]
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", None)  # missing, or moved
    startup._hash_triton()
    assert calls == ["key"]


@pytest.fixture
def gc_restored() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


@pytest.mark.parametrize(("home", "entry", "expected"), [(None, False, "/"), (None, True, None), ("/h", False, "/h")])
def test_a_user_without_a_home_folder_gets_one(
    monkeypatch: pytest.MonkeyPatch, home: str | None, entry: bool, expected: str | None
) -> None:
    monkeypatch.delenv("HOME")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr("os.getuid", os.getuid if entry else lambda: 2**31 - 7)
    startup.set_missing_home()
    assert os.environ.get("HOME") == expected


def test_what_a_program_left_open_is_written_at_its_end(tmp_path: Path) -> None:
    script = """
        import sys
        from lorgnette.startup import freeze_gc
        file = open(sys.argv[1], "w")
        file.write("the last line")
        def refer_to_this_module(): ...
        with freeze_gc():
            pass
    """
    out = tmp_path / "out.txt"
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), out], check=True)
    assert out.read_text() == "the last line"


@pytest.mark.usefixtures("gc_restored")
class TestGcPaused:
    def test_nothing_is_collected_inside_and_the_collector_runs_after(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        with freeze_gc():
            assert not gc.isenabled()
            with freeze_gc():  # an imported module imports others
                pass
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count()

    def test_the_collector_runs_after_a_failed_import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        with pytest.raises(ImportError), freeze_gc():
            raise ImportError
        assert gc.isenabled()

    def test_a_process_with_torch_keeps_its_collector(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch", sys)
        frozen = gc.get_freeze_count()
        with freeze_gc():
            assert gc.isenabled()
        assert gc.get_freeze_count() == frozen

    def test_a_disabled_collector_stays_disabled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        gc.disable()
        with freeze_gc():
            pass
        assert not gc.isenabled()


def test_the_warning_about_widgets_is_hidden() -> None:
    text = "IProgress not found. Please update jupyter and ipywidgets."
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        hide_widget_warning()
        warnings.warn(text, stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another"]


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_sleep_unless_the_environment_says_what_they_do(
    monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")  # restored at the end
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == (given or "PASSIVE")


def test_teach_lets_threads_sleep_before_torch_is_imported() -> None:
    code = """
import os, sys
import lorgnette.cli
lorgnette.teach = lambda *words, **options: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
sys.argv = ["lorgnette", "teach", "demo"]
lorgnette.cli.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout == "PASSIVE False\n", result.stderr
