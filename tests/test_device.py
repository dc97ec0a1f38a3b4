"""A device and its numbers by their names."""

import pytest
import torch

from lorgnette.device import device_of, dtype_of, peak_gib, reserved_gib
from lorgnette.errors import LorgnetteError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of("auto") == (CUDA if there else CPU)
        assert device_of("cpu") == CPU


def test_cuda_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LorgnetteError, match=r"no CUDA device .* · device=cuda · use device="):
        device_of("cuda")


def test_numbers_are_the_devices_or_those_asked_for() -> None:
    assert dtype_of("auto", CUDA) == dtype_of("bfloat16", CPU) == torch.bfloat16
    assert dtype_of("auto", CPU) == dtype_of("float32", CUDA) == torch.float32


def test_a_process_has_used_memory() -> None:
    assert 0.01 < peak_gib(CPU) < 10_000


def test_only_a_gpu_has_memory_that_torch_reserves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reserved_gib(CPU) is None
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    assert reserved_gib(CUDA) == 3
