"""A device and its numbers by their names."""

import pytest
import torch

from lorgnette.device import measure_peak_gib, measure_reserved_gib, select_device, select_dtype
from lorgnette.errors import LorgnetteError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert select_device("auto") == (CUDA if there else CPU)
        assert select_device("cpu") == CPU


def test_cuda_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LorgnetteError, match=r"no CUDA device .* · device=cuda · use device="):
        select_device("cuda")


def test_numbers_are_the_devices_or_those_asked_for() -> None:
    assert select_dtype("auto", CUDA) == select_dtype("bfloat16", CPU) == torch.bfloat16
    assert select_dtype("auto", CPU) == select_dtype("float32", CUDA) == torch.float32


def test_a_process_has_used_memory() -> None:
    assert 0.01 < measure_peak_gib(CPU) < 10_000


def test_only_a_gpu_has_memory_that_torch_reserves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_reserved_gib(CPU) is None
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    assert measure_reserved_gib(CUDA) == 3
