"""The command has one thread, and no helper process, where it forks the ranks: what others hold would stay locked."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import environment

SCRIPT = '''
import json, os, sys, threading
from pathlib import Path

def list_work():
    """Other threads of this process, Python's by name and the system's by theirs, and its child processes."""
    main = Path(f"/proc/{os.getpid()}/task/{os.getpid()}")
    native = [(task / "comm").read_text().strip() for task in main.parent.iterdir() if task != main]
    python = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return {"python": python, "native": native, "children": (main / "children").read_text().split()}

def stop():
    import torch
    print(json.dumps({**list_work(), "cuda": torch.cuda.is_initialized()}), flush=True)
    os._exit(0)

if __name__ == "__main__":
    os.register_at_fork(before=stop)
    from lorgnette.cli import main
    sys.exit(main())
'''
"""Ends where the first rank would be forked."""
STORE_THREAD = "pt_tcpstore_uv"
"""In it the ranks find each other; it is C++ alone, and the ranks do not use the parent's."""


def test_nothing_else_runs_where_ranks_are_forked(
    captions: Path, quick: Callable[..., list[str]], tmp_path: Path
) -> None:
    """In a process that starts from nothing, with a tracker: imports may start threads."""
    (tmp_path / "hook.py").write_text(SCRIPT)
    words = [*quick(data=captions, gpus=2, device="cpu", report_to="tensorboard"), "data.on_bad_row=skip"]
    words.remove("report_to=none")
    done = subprocess.run(
        [sys.executable, "hook.py", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"python": [], "native": [STORE_THREAD], "children": [], "cuda": False}


def test_a_thread_and_a_child_would_be_found() -> None:
    names = {"__name__": "hook"}
    exec(SCRIPT, names)
    before, is_over = names["list_work"](), threading.Event()  # type: ignore[operator]
    thread = threading.Thread(target=is_over.wait, name="pool")
    thread.start()
    child = subprocess.Popen(["sleep", "60"])
    try:
        found = names["list_work"]()  # type: ignore[operator]
    finally:
        is_over.set()
        child.kill()
        child.wait()
        thread.join()
    assert (len(found["native"]), found["python"]) == (len(before["native"]) + 1, [*before["python"], "pool"])
    assert {*found["children"]} == {*before["children"], f"{child.pid}"}
