"""Device and dtype are selected by name; memory is measured."""

import pytest
import torch

from lorgnette.device import measure_peak_gib, measure_reserved_gib, select_device, select_dtype
from lorgnette.errors import LorgnetteError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_selects_cuda_if_available(monkeypatch: pytest.MonkeyPatch) -> None:
    for available in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert select_device("auto") == (CUDA if available else CPU)
        assert select_device("cpu") == CPU


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LorgnetteError, match=r"no CUDA device found · device=cuda · use device="):
        select_device("cuda")


def test_dtype_depends_on_the_device_unless_given() -> None:
    assert select_dtype("auto", CUDA) == select_dtype("bfloat16", CPU) == torch.bfloat16
    assert select_dtype("auto", CPU) == select_dtype("float32", CUDA) == torch.float32


def test_peak_memory_of_a_process() -> None:
    assert 0.01 < measure_peak_gib(CPU) < 10_000


def test_only_a_gpu_has_reserved_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_reserved_gib(CPU) is None
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    assert measure_reserved_gib(CUDA) == 3
