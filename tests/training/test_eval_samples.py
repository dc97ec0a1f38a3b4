"""The handful that is asked on the way: what it leaves, and that it leaves the training alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import ModelSpec
from lorgnette.metrics.eval_prompts import read_examples
from lorgnette.report import run_log
from lorgnette.report.predictions import PredictionRow
from lorgnette.training import eval_samples, run
from lorgnette.training.eval_samples import SampleLogger, build_metric_curve, samples_over_time
from lorgnette.training.job import Job

ROWS = [PredictionRow(str(i), (Path(f"{i}.png"),), "p", ("a dog",), "before", "a dog") for i in range(6)]


def frame(step: int, *answers: str) -> dict[str, Any]:
    return {"kind": "frame", "step": step, "answers": list(answers)}


def test_at_most_four_short_answers(captions: Path, tiny: Path, terminal) -> None:
    with captions.open("a") as file:
        file.write("red.png,once more\n")
    opened = ModelSpec.from_names(str(tiny), None, terminal).load("cpu")
    film = SampleLogger(opened, read_examples(captions, "p"), "ROUGE-L", SamplingParams(500, 7))
    assert film._sampling == SamplingParams(32, 4)
    before = torch.get_rng_state()
    made = film.generate()
    assert torch.equal(torch.get_rng_state(), before)
    assert [row.images[0].stem for row in made.rows] == ["red", "green", "blue", "yellow"]
    assert made.rows[0].references == ("it is red", "once more")
    assert list(made.scores) == ["ROUGE-L"]
    assert made.record == {"kind": "frame", "answers": [row.tuned for row in made.rows]}


def test_a_judge_asks_all_that_is_held_out_in_full(captions: Path, tiny: Path, terminal) -> None:
    opened = ModelSpec.from_names(str(tiny), None, terminal).load("cpu")
    whole, examples = SamplingParams(40, 3), read_examples(captions, "p")
    film = SampleLogger(opened, examples, "CIDEr-D", whole, selects_best=True)
    assert film._sampling == whole
    assert len(film._asked) == len(examples) > eval_samples.NUM_SAMPLES
    assert len(film.generate().rows) == eval_samples.NUM_SAMPLES


def test_the_best_by_a_metric_is_kept_where_the_loss_would_keep_another(
    job: Callable[..., Job], monkeypatch, said
) -> None:
    """The loss of this training falls to its end; a metric that is said to be best after step 1 keeps that one."""
    words = ("lora.dropout=0", "train.eval_steps=1", "train.epochs=2", "data.holdout=2")
    steps: list[float] = []

    def frame(self: SampleLogger) -> eval_samples.Samples:
        steps.append(len(steps))
        return eval_samples.Samples((), {"ROUGE-L": {0: 0.1, 1: 0.9}.get(len(steps) - 1, 0.5)})

    monkeypatch.setattr(SampleLogger, "frame", frame)
    by_metric = job(*words, "train.metric_for_best_model=ROUGE-L")
    run.run_training(by_metric)
    assert (by_metric.folder.best / "adapter_model.safetensors").exists()
    assert "step 1 was best: 0.9 (0.1 before tuning); its adapter is kept in" in " ".join(said.getvalue().split())
    shutil.rmtree(by_metric.folder.path)
    by_loss = job(*words)
    run.run_training(by_loss)
    assert not by_loss.folder.best.exists()  # the last is the best


def test_nothing_is_measured_where_that_is_asked_for(captions: Path, tiny: Path, terminal) -> None:
    opened = ModelSpec.from_names(str(tiny), None, terminal).load("cpu")
    assert SampleLogger(opened, read_examples(captions, "p"), None, SamplingParams(1, 1)).generate().scores == {}


def test_the_training_is_the_same(job: Callable[..., Job], monkeypatch) -> None:
    """Dropout draws the same numbers, whether the pictures were asked in between or not."""
    words = ("lora.dropout=0.5", "train.eval_steps=1", "train.epochs=2")

    def adapter() -> dict[str, torch.Tensor]:
        started = job(*words)
        run.run_training(started)
        frames = [record for record in run_log.read_log(started.folder.log) if record["kind"] == "frame"]
        assert [record["step"] for record in frames] == [0, 1, 2, 3]
        weights = load_file(started.folder.adapter / "adapter_model.safetensors")
        shutil.rmtree(started.folder.path)
        return weights

    asked = adapter()
    monkeypatch.setattr(SampleLogger, "frame", lambda self: eval_samples.Samples((), {}))
    alone = adapter()
    assert all(torch.equal(asked[name], alone[name]) for name in asked)
    monkeypatch.setattr(SampleLogger, "frame", lambda self: (torch.rand(1), eval_samples.Samples((), {}))[1])
    drawn = adapter()  # the control: one number drawn is another training
    assert not all(torch.equal(asked[name], drawn[name]) for name in asked)


def test_the_last_column_is_the_final_answer() -> None:
    records = [
        frame(0, "the", "image"), frame(10, "a", "b"), frame(10, "a cat", "b"), {"kind": "train", "step": 30},
        frame(30, "dropped", "dropped"), {"kind": "event", "text": "x"},
    ]  # fmt: skip
    first, second = samples_over_time(records, ROWS)
    assert first.answers == ((0, "the"), (10, "a cat"), (30, "a dog"))
    assert second.row is ROWS[1]
    assert samples_over_time([{"kind": "train", "step": 30}], ROWS) == []


def test_the_metric_beside_the_eval_loss_ends_with_the_final_answers() -> None:
    records = [{"kind": "eval", "step": 0, "ROUGE-L": 0.1}, {"kind": "eval", "step": 20, "eval_loss": 1.0}]
    [drawn] = build_metric_curve(records, ROWS, "ROUGE-L")
    assert drawn.name == "ROUGE-L of 4 held-out pictures"
    assert drawn.points == [(0.0, 0.1), (20.0, pytest.approx(1.0))]
    assert build_metric_curve(records, ROWS, None) == []
