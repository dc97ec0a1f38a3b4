"""The estimate is near what was measured on four GPUs; without its parts it is not."""

import re
from dataclasses import replace

import pytest

from lorgnette.config import TARGET_MODULES
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.registry import FAMILIES, parse_sizes
from lorgnette.planning import data_parallel
from lorgnette.planning.data_parallel import estimate_parallel
from lorgnette.planning.gpus import GPUS, Gpu
from lorgnette.planning.memory import Workload

MEASURED = [
    ("2B", 16, 2, 1.61), ("2B", 64, 2, 1.91), ("7B", 64, 2, 1.95),
    ("2B", 16, 4, 1.79), ("2B", 64, 4, 3.66), ("2B", 256, 4, 3.76), ("7B", 16, 4, 2.70), ("7B", 64, 4, 3.87),
]  # fmt: skip
"""Model, samples a step of 140 tokens each, GPUs, and how much faster they were than one: two H200, four H100."""
TOKENS = 140


def build_workload(name: str) -> Workload:
    size = next(size for size in FAMILIES["qwen2_vl"].sizes if f"-{name}" in size.names[0])
    text, vision = parse_sizes(size.config)
    return Workload("fast", AdapterShape(text, TARGET_MODULES, 64, 1.0), vision, has_dropout=True, tokens=1, labels=1)


@pytest.mark.parametrize(("name", "samples", "num_gpus", "speedup"), MEASURED)
def test_several_gpus_are_as_fast_as_measured(name: str, samples: int, num_gpus: int, speedup: float) -> None:
    estimate = estimate_parallel(build_workload(name), GPUS["H100"], TOKENS * samples, num_gpus)
    assert estimate.speedup == pytest.approx(speedup, rel=0.08)
    assert estimate.tokens == TOKENS * samples // num_gpus


@pytest.mark.parametrize(("constant", "row"), [("_LAYER_SECONDS", 3), ("_STEP_TOKENS", 6)])
def test_few_tokens_fill_a_gpu_badly(monkeypatch: pytest.MonkeyPatch, constant: str, row: int) -> None:
    """Negative control: without either part of a step's time, a measurement is missed by far."""
    name, samples, num_gpus, speedup = MEASURED[row]
    monkeypatch.setattr(data_parallel, constant, 0)
    assert estimate_parallel(build_workload(name), GPUS["H100"], TOKENS * samples, num_gpus).speedup > 1.2 * speedup


@pytest.mark.parametrize(
    ("name", "num_gpus", "ms"), [("2B", 2, 0.99), ("7B", 2, 2.03), ("2B", 4, 1.32), ("7B", 4, 2.79)]
)
def test_the_all_reduce_takes_as_long_as_measured(name: str, num_gpus: int, ms: float) -> None:
    """Of 73.9 M and 161.5 M numbers in fp32."""
    estimate = estimate_parallel(build_workload(name), GPUS["H100"], 1000, num_gpus)
    assert 1000 * estimate.all_reduce_s == pytest.approx(ms, rel=0.09)


def test_pcie_is_slower_than_nvlink() -> None:
    by_pcie = estimate_parallel(build_workload("2B"), GPUS["RTX 4090"], 1000, 2)
    assert by_pcie.all_reduce_s > 10 * estimate_parallel(build_workload("2B"), GPUS["H100"], 1000, 2).all_reduce_s


def test_from_how_many_tokens_on_it_pays() -> None:
    workload, gpu = build_workload("2B"), GPUS["H100"]
    paying = estimate_parallel(workload, gpu, 1, 4).paying_tokens
    assert paying is not None
    enough, too_few = (estimate_parallel(workload, gpu, 4 * tokens, 4) for tokens in (paying, paying - 1))
    assert enough.speedup >= 3.2 > too_few.speedup
    assert enough.pays
    assert not estimate_parallel(workload, gpu, 4 * paying * 9 // 10, 4).pays
    assert estimate_parallel(build_workload("7B"), gpu, 1, 4).paying_tokens < paying, "a large model pays earlier"
    slow = replace(gpu, capability=(8, 9), tflops=1e6)
    assert not estimate_parallel(workload, slow, 10**6, 4).pays, "the exchange alone takes longer"
    with pytest.raises(ValueError, match="is not known"):
        estimate_parallel(workload, Gpu("some GPU", 80.0, None), 1000, 2)


def test_the_gain_in_words() -> None:
    workload, gpu = build_workload("2B"), GPUS["H100"]
    [line] = estimate_parallel(workload, gpu, TOKENS * 256, 4).describe(100.0, 256)
    with_gain = (
        "4 GPUs with 8960 tokens each in a step are 3.9 times as fast as one, which saves 74.2 s in all (estimated)"
    )
    assert line == with_gain
    _, advice = estimate_parallel(workload, gpu, TOKENS * 16, 4).describe(2.0, 16)
    assert re.search(
        r"used well from about 1\d00 tokens each on: train.batch_size=(\d\d), which is another training", advice
    )
    _, advice = estimate_parallel(workload, gpu, TOKENS, 4).describe(0.1, 1)
    assert advice == "this model is too small to use them well"
    _, advice = estimate_parallel(workload, replace(gpu, capability=(8, 9), tflops=1e6), 4000, 4).describe(2.0, 16)
    assert advice == "the link between these GPUs is too slow for more"
