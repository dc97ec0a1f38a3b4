"""What is said before the first step."""

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import lorgnette
from lorgnette.config import Settings
from lorgnette.demo.captions import write_caption
from lorgnette.demo.scenes import sample_scene
from lorgnette.planning.gpus import GPUS
from lorgnette.report.curve_summary import summarize_loss
from lorgnette.training.start_warnings import (
    DRAWN_SCENES_ONLY,
    explain_built_in_model,
    explain_idle_gpus,
    explain_missing_device,
    explain_single_shard,
    explain_slow_dtype,
    list_start_warnings,
)


def test_the_built_in_model_is_for_the_captions_of_the_demo() -> None:
    rng = random.Random(1)
    drawn = [write_caption(sample_scene(rng)) for _ in range(200)]
    assert explain_built_in_model("demo", drawn) == ""


def test_a_device_that_this_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "lorgnette.training.start_warnings"
    for gpu, platform in ((None, "linux"), (GPUS["T4"], "darwin")):
        monkeypatch.setattr(f"{module}.find_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(f"{module}.sys.platform", platform)
        warned = {device for device in ("auto", "cpu", "cuda", "mps") if explain_missing_device(device)}
        assert warned == (set() if gpu else {"cuda", "mps"})


def test_gpus_that_are_idle_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorgnette.training.start_warnings.find_gpus", lambda: [GPUS["T4"]] * 2)
    assert "this machine has 2 GPUs: `train` uses one" in explain_idle_gpus("auto")
    assert "would not start here with gpus=3" in explain_idle_gpus("cuda", 3)
    assert explain_idle_gpus("auto", 2) == explain_idle_gpus("cpu") == explain_idle_gpus("cpu", 3) == ""
    monkeypatch.setattr("lorgnette.training.start_warnings.find_gpus", lambda: [])
    assert explain_idle_gpus("auto", 4) == "", "the plan may be for another machine"


def test_one_gpu_has_nobody_to_share_with() -> None:
    cases = itertools.product((True, False, "auto"), (1, 2))
    texts = {case: explain_single_shard(fully_shard=case[0], num_ranks=case[1]) for case in cases}
    assert {key for key, text in texts.items() if text} == {(True, 1)}
    assert "does nothing on one GPU" in texts[True, 1]


def test_half_precision_is_slow_on_a_cpu() -> None:
    assert explain_slow_dtype("float16") == "float16 is slow on a CPU; leave dtype=auto"
    assert explain_slow_dtype("float32") == explain_slow_dtype("auto") == ""


@pytest.mark.parametrize(
    "answer", ["A dog on a bench.", "A small red car.", "A big man above a small red car on a road."]
)
def test_the_built_in_model_is_not_for_other_answers(answer: str) -> None:
    assert explain_built_in_model("demo", [answer]) == DRAWN_SCENES_ONLY


def test_nothing_is_said_of_other_models_or_without_answers() -> None:
    assert explain_built_in_model("Qwen/Qwen2-VL-2B-Instruct", ["A dog."]) == ""
    assert explain_built_in_model("demo", [None, ""]) == ""


@pytest.mark.parametrize(("rate", "is_told"), [("5", True), ("2e-3", False), ("1e-4", False)])
def test_an_absurd_learning_rate_is_told(rate: str, is_told: bool, make_settings: Callable[..., Settings]) -> None:
    warnings = list_start_warnings(make_settings(f"train.learning_rate={rate}"), [])
    assert any("usual are 1e-5 to 1e-3" in text for text in warnings) is is_told


def test_every_command_says_it_before_it_starts(
    captions: Path, terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorgnette.training.start_warnings.find_gpus", lambda: [GPUS["T4"]] * 2)
    console = Console(file=terminal_output, width=500)
    lorgnette.check(captions, model="demo", console=console)
    lorgnette.plan(captions, model="demo", console=console, image_size=28)
    lorgnette.evaluate("base", captions, model="demo", image_size="28", max_new_tokens=1, console=console)
    assert terminal_output.getvalue().count(DRAWN_SCENES_ONLY) == 3
    assert terminal_output.getvalue().count("this machine has 2 GPUs") == 2, "of check and plan"


def test_more_steps_are_no_advice_for_it() -> None:
    evals = [(0.0, 4.0), (1.0, 3.0)]
    assert any("more steps" in line for line in summarize_loss([], evals, [], None))
    assert not any("more steps" in line for line in summarize_loss([], evals, [], None, can_learn=False))
