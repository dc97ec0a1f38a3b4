"""The handful that is asked on the way: what it leaves, and that it leaves the training alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Asked
from lorgnette.metrics.eval_prompts import examples_of
from lorgnette.report import run_log
from lorgnette.report.predictions import PredictionRow
from lorgnette.training import eval_samples, run
from lorgnette.training.eval_samples import Filmstrip, curve, strips
from lorgnette.training.job import Job

ROWS = [PredictionRow(str(i), (Path(f"{i}.png"),), "p", ("a dog",), "before", "a dog") for i in range(6)]


def frame(step: int, *answers: str) -> dict[str, Any]:
    return {"kind": "frame", "step": step, "answers": list(answers)}


def test_at_most_four_short_answers(captions: Path, tiny: Path, terminal) -> None:
    with captions.open("a") as file:
        file.write("red.png,once more\n")
    opened = Asked.of(str(tiny), None, terminal).opened("cpu")
    film = Filmstrip(opened, examples_of(captions, "p"), "ROUGE-L", Sampling(500, 7))
    assert film._sampling == Sampling(32, 4)
    before = torch.get_rng_state()
    made = film.frame()
    assert torch.equal(torch.get_rng_state(), before)
    assert [row.pictures[0].stem for row in made.rows] == ["red", "green", "blue", "yellow"]
    assert made.rows[0].references == ("it is red", "once more")
    assert list(made.scores) == ["ROUGE-L"]
    assert made.record == {"kind": "frame", "answers": [row.tuned for row in made.rows]}


def test_a_judge_asks_all_that_is_held_out_in_full(captions: Path, tiny: Path, terminal) -> None:
    opened = Asked.of(str(tiny), None, terminal).opened("cpu")
    whole, examples = Sampling(40, 3), examples_of(captions, "p")
    film = Filmstrip(opened, examples, "CIDEr-D", whole, judges=True)
    assert film._sampling == whole
    assert len(film._asked) == len(examples) > eval_samples.PICTURES
    assert len(film.frame().rows) == eval_samples.PICTURES


def test_the_best_by_a_metric_is_kept_where_the_loss_would_keep_another(
    job: Callable[..., Job], monkeypatch, said
) -> None:
    """The loss of this training falls to its end; a metric that is said to be best after step 1 keeps that one."""
    words = ("lora.dropout=0", "train.eval_steps=1", "train.epochs=2", "data.holdout=2")
    steps: list[float] = []

    def frame(self: Filmstrip) -> eval_samples.Frame:
        steps.append(len(steps))
        return eval_samples.Frame((), {"ROUGE-L": {0: 0.1, 1: 0.9}.get(len(steps) - 1, 0.5)})

    monkeypatch.setattr(Filmstrip, "frame", frame)
    by_metric = job(*words, "train.best=ROUGE-L")
    run.tune(by_metric)
    assert (by_metric.folder.best / "adapter_model.safetensors").exists()
    assert "step 1 was best: 0.9 (0.1 before tuning); its adapter is kept in" in " ".join(said.getvalue().split())
    shutil.rmtree(by_metric.folder.path)
    by_loss = job(*words)
    run.tune(by_loss)
    assert not by_loss.folder.best.exists()  # the last is the best


def test_nothing_is_measured_where_that_is_asked_for(captions: Path, tiny: Path, terminal) -> None:
    opened = Asked.of(str(tiny), None, terminal).opened("cpu")
    assert Filmstrip(opened, examples_of(captions, "p"), None, Sampling(1, 1)).frame().scores == {}


def test_the_training_is_the_same(job: Callable[..., Job], monkeypatch) -> None:
    """Dropout draws the same numbers, whether the pictures were asked in between or not."""
    words = ("lora.dropout=0.5", "train.eval_steps=1", "train.epochs=2")

    def adapter() -> dict[str, torch.Tensor]:
        started = job(*words)
        run.tune(started)
        frames = [record for record in run_log.read(started.folder.log) if record["kind"] == "frame"]
        assert [record["step"] for record in frames] == [0, 1, 2, 3]
        weights = load_file(started.folder.adapter / "adapter_model.safetensors")
        shutil.rmtree(started.folder.path)
        return weights

    asked = adapter()
    monkeypatch.setattr(Filmstrip, "frame", lambda self: eval_samples.Frame((), {}))
    alone = adapter()
    assert all(torch.equal(asked[name], alone[name]) for name in asked)
    monkeypatch.setattr(Filmstrip, "frame", lambda self: (torch.rand(1), eval_samples.Frame((), {}))[1])
    drawn = adapter()  # the control: one number drawn is another training
    assert not all(torch.equal(asked[name], drawn[name]) for name in asked)


def test_the_last_column_is_the_final_answer() -> None:
    records = [
        frame(0, "the", "image"), frame(10, "a", "b"), frame(10, "a cat", "b"), {"kind": "train", "step": 30},
        frame(30, "dropped", "dropped"), {"kind": "event", "text": "x"},
    ]  # fmt: skip
    first, second = strips(records, ROWS)
    assert first.frames == ((0, "the"), (10, "a cat"), (30, "a dog"))
    assert second.row is ROWS[1]
    assert strips([{"kind": "train", "step": 30}], ROWS) == []


def test_the_metric_beside_the_eval_loss_ends_with_the_final_answers() -> None:
    records = [{"kind": "eval", "step": 0, "ROUGE-L": 0.1}, {"kind": "eval", "step": 20, "eval_loss": 1.0}]
    [drawn] = curve(records, ROWS, "ROUGE-L")
    assert drawn.name == "ROUGE-L of 4 held-out pictures"
    assert drawn.points == [(0.0, 0.1), (20.0, pytest.approx(1.0))]
    assert curve(records, ROWS, None) == []
