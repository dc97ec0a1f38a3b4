"""What is begun early harms nobody, with a device and without, with Triton and without."""

import sys
import threading
from types import SimpleNamespace

import pytest

from lorgnette import startup


def test_no_driver_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        assert name == "libcuda.so.1"
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(startup.ctypes, "CDLL", none)
    startup._init_context()


@pytest.mark.parametrize("status", [0, 100])
def test_a_context_is_asked_for_where_there_is_a_device(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    asked: list[str] = []

    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802  the driver's own name
            asked.append("init")
            return status

        def cuDevicePrimaryCtxRetain(self, context: object, device: int) -> int:  # noqa: N802
            asked.append(f"device {device}")
            return 0

    monkeypatch.setattr(startup.ctypes, "CDLL", lambda name: Driver())
    startup.start_cuda_init()
    for thread in threading.enumerate():
        if thread.name == "driver":
            thread.join()
    assert asked == (["init", "device 0"] if status == 0 else ["init"])


def test_triton_is_asked_for_what_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", SimpleNamespace(triton_key=lambda: asked.append("key")))
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    startup._hash_triton()
    assert asked == ["key"]
    monkeypatch.setitem(sys.modules, "triton.runtime.cache", None)  # as where there is none, or it is elsewhere
    startup._hash_triton()
    assert asked == ["key"]
