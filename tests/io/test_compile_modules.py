"""Modules that are compiled ahead: which, as what, and the end of the processes that do it."""

import os
import py_compile
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path

import pytest

import lorgnette
from lorgnette.io import compile_modules
from lorgnette.io.compile_modules import ModuleSearch, can_keep_bytecode, is_compiled, list_imports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python compiles alone")
TREE = {
    "torch/__init__.py": "import typing\nif typing.TYPE_CHECKING:\n    import checked\nfrom . import tensor, value\n",
    "torch/tensor.py": "from .functions.linear import f\ntry:\n    import other\nexcept SyntaxError:\n    pass\n",
    "torch/value.py": "",
    "torch/functions/__init__.py": "def later():\n    from torch import unused\n",
    "torch/functions/linear.py": "from .. import *\nf = 1\n",
    "torch/unused.py": "", "checked.py": "",
    "other.py": "try:\n    import missing.part\nexcept ImportError:\n    import wrong, sys\n",
    "wrong.py": "if:\n",
}  # fmt: skip
FOUND = [
    "other.py", "torch/__init__.py", "torch/functions/__init__.py", "torch/functions/linear.py", "torch/tensor.py",
    "torch/value.py",
]  # fmt: skip
STARTS = """
import sys, time
from lorgnette.io import compile_modules
compile_modules.count_cores = lambda: {cores}
{change}
compile_modules.start_compiling_modules(["torch"])
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def start(code: str, tree: Path, kept: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    source = str(Path(lorgnette.__file__).parents[1])
    environment |= {"PYTHONPATH": f"{tree}:{source}", "PYTHONPYCACHEPREFIX": str(tree / kept)} | variables
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def list_kept(tree: Path, kept: str) -> dict[str, bytes]:
    """Of the tree's own modules, by source."""
    root = tree / kept / tree.relative_to("/")
    files = sorted(root.rglob("*.pyc"))
    return {str(p.relative_to(root).with_name(p.name.partition(".")[0] + ".py")): p.read_bytes() for p in files}


def is_alive(group: int) -> bool:
    """Whether a process of the group runs. One that has ended is in it until the system's first process sees that."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_module_imports_is_compiled_as_python_does_it(tree: Path) -> None:
    """Two first commands at once, too. They do not wait for it, and it writes nothing on their terminal."""
    code = STARTS.format(cores=4, change="") + "print('goes on')"
    processes = [start(code + "; time.sleep(0.5)", tree, "kept") for _ in range(2)]
    for process in processes:
        assert process.communicate() == ("goes on\n", "")
    wait_until(lambda: not any(is_alive(process.pid) for process in processes))
    assert start("import torch", tree, "plain").communicate() == ("", "")
    kept, plain = list_kept(tree, "kept"), list_kept(tree, "plain")
    assert list(kept) == FOUND
    assert kept == plain
    (tree / "torch/value.py").write_text("a = 1\n")
    assert start("import torch", tree, "plain").communicate() == ("", "")
    changed = list_kept(tree, "plain")
    assert [name for name in FOUND if changed[name] != kept[name]] == ["torch/value.py"]


@pytest.mark.parametrize(
    ("cores", "change", "variables"),
    [
        (2, "", {}),  # both are busy
        (4, "sys.dont_write_bytecode = True", {}),
        (4, "sys.platform = 'darwin'", {}),
        (4, "", {"LOCAL_RANK": "1"}),
        (4, "import torch; del sys.modules['torch']", {}),  # it is compiled now
        (4, "sys.modules['torch'] = sys", {}),
        (4, "sys.path = []", {}),  # torch is not there
        (4, "import os; os.fork = lambda: open('/nowhere')", {}),  # an OSError
        (4, "import os; os.access = lambda *_: False", {}),  # a folder of another user, a disk that cannot be written
        (4, "compile_modules._MIN_FREE_BYTES = 1 << 60", {}),  # a full disk
        (4, "sys.pycache_prefix = compile_modules.__file__", {}),  # no folder
    ],
)
def test_nothing_is_started_where_it_does_not_help(
    cores: int, change: str, variables: dict[str, str], tree: Path
) -> None:
    no_fork = "import os; os.fork = lambda: sys.exit('a process is started')\n"
    code = STARTS.format(cores=cores, change=no_fork + change)
    assert start(code, tree, "kept", **variables).communicate() == ("", "")
    if not change and not variables:
        fails = start(STARTS.format(cores=3, change=no_fork), tree, "kept")
        assert fails.communicate() == ("", "a process is started\n"), "with one core more it is"


SLOW = """
many = [f"module_{n}" for n in range(500)]
def sleep(*_):
    time.sleep(0.1)
    return many
compile_modules.list_imports = sleep
"""


STOPS = """
import os, signal
signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"stopped\\n"), os._exit(130)))
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "killed", "ends"])
def test_the_processes_end_with_the_command(how: str, tree: Path) -> None:
    """At once with Ctrl-C, which reaches the group; otherwise when the next module is compiled."""
    for n in range(500):
        (tree / f"module_{n}.py").touch()
    handler = (
        "import os, signal; signal.signal(signal.SIGINT, lambda *_: (os.write(2, b'stopped\\n'), os._exit(130)))\n"
    )
    code = handler + STARTS.format(cores=4, change=SLOW)
    wait = "" if how == "ends" else "print('waits', flush=True)\ntime.sleep(1000)"
    with start(code + wait, tree, "kept") as process:
        assert process.stdout
        assert process.stderr
        try:
            if how != "ends":
                assert process.stdout.readline() == "waits\n"
                wait_until(lambda: "module_0.py" in list_kept(tree, "kept"))
            if how == "Ctrl-C":
                os.killpg(process.pid, signal.SIGINT)
            elif how == "killed":
                process.kill()
            assert process.stderr.read() == ("stopped\n" if how == "Ctrl-C" else "")
            process.wait()
            wait_until(lambda: not is_alive(process.pid))
            assert len(list_kept(tree, "kept")) < 500
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_no_folder_to_keep_it_in_is_as_before(tree: Path) -> None:
    (tree / "kept").touch()
    assert start(STARTS.format(cores=4, change="") + "import torch; print(1)", tree, "kept").communicate() == (
        "1\n",
        "",
    )


def test_bytecode_is_kept_in_a_folder_that_does_not_exist_yet(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for prefix in (str(tree / "new" / "kept"), "new", ""):
        monkeypatch.setattr(sys, "pycache_prefix", prefix or None)
        assert can_keep_bytecode(str(tree / "torch/value.py"))
    (tree / "link").symlink_to("nowhere")
    monkeypatch.setattr(sys, "pycache_prefix", str(tree / "link" / "kept"))
    assert not can_keep_bytecode(str(tree / "torch/value.py"))


def test_bytecode_is_that_of_its_source(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tree / "kept"))
    source = tree / "torch/value.py"
    assert not is_compiled(str(source))
    kept = Path(py_compile.compile(str(source)) or "")
    assert kept == Path(cache_from_source(str(source)))
    assert is_compiled(str(source))
    os.utime(source, (1, 1))
    assert not is_compiled(str(source)), "another torch at the same path"
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert is_compiled(str(source))
    kept.write_bytes(b"\0\0" + kept.read_bytes()[2:])
    assert not is_compiled(str(source)), "of another Python"
    kept.write_bytes(b"")
    assert not is_compiled(str(source))


def test_imports_are_listed_in_order() -> None:
    code = compile("import b.c as x, a\nfrom .. import d\nfrom ..e import f, g\nfrom h import *\n", "", "exec")
    assert list(list_imports(code, "p.q.r")) == ["b.c", "a", "p.q", "p.q.d", "p.q.e", "p.q.e.f", "p.q.e.g", "h"]
    with pytest.raises(ImportError):
        list(list_imports(code, "p"))


MODULES_OF_A_TRAINING = """
import importlib, sys
for name in {names}:
    importlib.import_module(name)
print(*(n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).endswith(".py")))
"""


def test_what_a_training_imports_is_found() -> None:
    """All but what is imported by names that are computed; and little else."""
    names = [name for name in compile_modules.MODULES if name.startswith("lorgnette.")]
    code = MODULES_OF_A_TRAINING.format(names=names)
    imported = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    search, found = ModuleSearch(), set[str]()
    waiting = [spec for name in compile_modules.MODULES for spec in search.find_new(name)]
    while waiting:
        spec = waiting.pop()
        found.add(spec.name)
        assert isinstance(spec.loader, SourceFileLoader)
        code = spec.loader.get_code(spec.name)
        assert code
        waiting += [new for name in list_imports(code, spec.parent or "") for new in search.find_new(name)]
    missed = imported - found
    assert len(missed) < 0.03 * len(imported), sorted(missed)
    assert len(found) < 1.25 * len(imported)
