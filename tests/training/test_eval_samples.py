"""Sample answers at every evaluation: what they log, and that they do not change the training."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorgnette.commands.predict import read_examples
from lorgnette.distributed import World
from lorgnette.inference.loading import LoadedModel, ModelSpec
from lorgnette.inference.sampling import SamplingParams
from lorgnette.report import run_log
from lorgnette.training.eval_samples import (
    NUM_SAMPLES,
    SampleLogger,
    Samples,
    build_metric_curve,
    samples_over_time,
)
from lorgnette.types import Example, PredictionRow, Turn
from tests.ranks import run_ranks

PrepareRun = Callable[..., Any]
ROWS = [PredictionRow(str(i), (Path(f"{i}.png"),), "p", ("a dog",), "before", "a dog") for i in range(6)]


def make_record(step: int, *answers: str, cut: tuple[bool, ...] = ()) -> dict[str, Any]:
    cuts = cut or [False] * len(answers)
    return {"kind": "samples", "step": step, "answers": list(answers), "cut": cuts, "max_new_tokens": 32}


@pytest.fixture
def model(captions: Path, tiny: Path, terminal: Any) -> LoadedModel:
    return ModelSpec.from_names(str(tiny), None, terminal).load("cpu")


def test_at_most_four_short_answers(captions: Path, model: LoadedModel) -> None:
    with captions.open("a") as file:
        file.write("red.png,once more\n")
    logger = SampleLogger(model, read_examples(captions, "p"), "ROUGE-L", SamplingParams(500, 7))
    assert logger._sampling == SamplingParams(32, 4)
    before = torch.get_rng_state()
    samples = logger.generate()
    assert torch.equal(torch.get_rng_state(), before)
    assert [row.images[0].stem for row in samples.rows] == ["red", "green", "blue", "yellow"]
    assert samples.rows[0].references == ("it is red", "once more")
    assert list(samples.scores) == ["ROUGE-L"]


@pytest.mark.parametrize(("num_words", "most", "limit"), [(5, 500, 32), (120, 500, None), (120, 40, 40), (120, 8, 8)])
def test_the_limit_follows_the_longest_reference(
    captions: Path, model: LoadedModel, num_words: int, most: int, limit: int | None
) -> None:
    """Of the chosen images: a later one does not count."""
    answer = " ".join(["dog"] * num_words)
    with captions.open("a") as file:
        file.write(f"red.png,{answer}\n")
    examples = read_examples(captions, "p")
    wanted = model.processor.count_answer_tokens(examples[-1]) + 1
    last = replace(examples[0], turns=(*examples[0].turns[:-1], Turn("assistant", ("dog " * 400,))))
    last = replace(last, turns=(Turn("user", (*last.turns[0].parts, " later")), *last.turns[1:]))
    logger = SampleLogger(model, [*examples, last], "ROUGE-L", SamplingParams(most, 7))
    assert logger._sampling.max_new_tokens == (wanted if limit is None else limit)


def test_the_samples_are_the_first_with_short_references(captions: Path, model: LoadedModel) -> None:
    """Each token of the longest answer takes time at every evaluation."""
    examples = read_examples(captions, "p")
    images = [example.images[0].path.stem for example in examples]
    assert len(images) == 6

    def answer(*num_words: int) -> list[Example]:
        texts = (" ".join(["dog"] * count) for count in num_words)
        return [
            replace(example, turns=(*example.turns[:-1], Turn("assistant", (text,))))
            for example, text in zip(examples, texts, strict=True)
        ]

    for num_words, places in (
        ((5, 5, 5, 5, 5, 5), (0, 1, 2, 3)), ((300, 5, 9, 5, 300, 5), (1, 2, 3, 5)),
        ((900, 300, 400, 500, 200, 700), (1, 2, 3, 4)), ((900, 300, 5, 300, 800, 700), (1, 2, 3, 5)),
    ):  # fmt: skip
        logger = SampleLogger(model, held_out := answer(*num_words), "ROUGE-L", SamplingParams(8, 7))
        samples = logger.generate()
        assert samples.places == places
        assert [row.images[0].stem for row in samples.rows] == [images[place] for place in places]
        record = samples.to_record(10)
        rows = [replace(ROWS[i], id=f"prompt {i}") for i in range(6)]
        histories = samples_over_time([record], rows)
        assert [history.row.id for history in histories] == [f"prompt {place}" for place in places]
        longest = max(model.processor.count_answer_tokens(held_out[place]) + 1 for place in places)
        full = SampleLogger(model, held_out, "ROUGE-L", SamplingParams(5000, 7))
        assert full._sampling.max_new_tokens == max(32, longest)


def test_a_metric_that_selects_the_best_step_uses_all_full_answers(captions: Path, model: LoadedModel) -> None:
    sampling, examples = SamplingParams(40, 3), read_examples(captions, "p")
    logger = SampleLogger(model, examples, "CIDEr-D", sampling, selects_best=True)
    assert logger._sampling == sampling
    assert len(logger._prompts) == len(examples) > NUM_SAMPLES
    assert len(logger.generate().rows) == NUM_SAMPLES


class RecordingShards:
    """Layers of all ranks: says whether a rank leads or follows."""

    is_collective = True

    def __init__(self, world: World) -> None:
        self.world, self.calls = world, list[str]()

    @property
    def is_leading(self) -> bool:
        return self.calls[-1:] == ["lead"]

    @is_leading.setter
    def is_leading(self, value: bool) -> None:
        self.calls.append("lead" if value else "end")

    def run_empty_pass(self, *, backward: bool) -> None:
        raise AssertionError

    def follow(self) -> None:
        self.calls.append("follow")
        assert self.world.broadcast_object("nothing yet") is None


def generate_on_rank(world: World, model: LoadedModel, examples: list[Example]) -> list[dict[str, Any]]:
    """Full answers, a few short ones, and full ones of a model whose layers are cut: what this rank does and gets."""
    counts: list[int] = []
    answer = LoadedModel.generate_answers

    def generate(self: LoadedModel, chosen: Any, *arguments: Any, **options: Any) -> Any:
        counts.append(len(chosen))
        return answer(self, chosen, *arguments, **options)

    LoadedModel.generate_answers = generate  # type: ignore[method-assign]
    results = []
    for selects_best, shards in ((True, None), (False, None), (True, RecordingShards(world))):
        options: dict[str, Any] = {"selects_best": selects_best, "world": world, "shards": shards}
        samples = SampleLogger(model, examples, "ROUGE-L", SamplingParams(5, 2), **options).generate()
        result = {"answers": [row.tuned for row in samples.rows], "scores": dict(samples.scores)}
        results.append({**result, "prompts": sum(counts), "calls": shards.calls if shards else []})
        counts.clear()
    LoadedModel.generate_answers = answer  # type: ignore[method-assign]
    return results


def test_ranks_share_what_is_worth_it(captions: Path, model: LoadedModel) -> None:
    """All full answers, if a rank can generate alone, and not a few short ones. The first rank has the score of all."""
    arguments = model, read_examples(captions, "p")[:5]
    alone, (first, second) = generate_on_rank(World(), *arguments), run_ranks(generate_on_rank, 2, *arguments)
    assert [result["prompts"] for result in alone] == [5, 4, 5]
    for expected, result, other in zip(alone, first, second, strict=True):
        assert (result["answers"], result["scores"]) == (expected["answers"], expected["scores"])
        assert (other["answers"], other["scores"]) == ([], {})
    assert [(a["prompts"], b["prompts"]) for a, b in zip(first, second, strict=True)] in (
        [(2, 3), (4, 0), (5, 0)], [(3, 2), (4, 0), (5, 0)],
    )  # fmt: skip
    assert [a["calls"] + b["calls"] for a, b in zip(first, second, strict=True)] == [[], [], ["lead", "end", "follow"]]


def test_a_metric_saves_another_best_step_than_the_loss(
    prepare_run: PrepareRun, monkeypatch: pytest.MonkeyPatch, terminal_output: Any
) -> None:
    """The loss of this training falls to its end; the metric is best after step 1."""
    words = ("lora.dropout=0", "train.eval_steps=1", "train.epochs=2", "data.holdout=2")
    steps: list[int] = []

    def generate(self: SampleLogger) -> Samples:
        steps.append(len(steps))
        return Samples((), {"ROUGE-L": {0: 0.1, 1: 0.9}.get(steps[-1], 0.5)})

    monkeypatch.setattr(SampleLogger, "generate", generate)
    by_metric = prepare_run(*words, "train.metric_for_best_model=ROUGE-L")
    by_metric.train()
    assert (by_metric.run_dir.best / "adapter_model.safetensors").exists()
    output = " ".join(terminal_output.getvalue().split())
    assert "held-out images: 0.9 after step 1 (0.1 before fine-tuning); its adapter is saved in" in output
    shutil.rmtree(by_metric.run_dir.path)
    by_loss = prepare_run(*words)
    by_loss.train()
    assert not by_loss.run_dir.best.exists()  # the last step is the best


def test_without_a_metric_nothing_is_scored(captions: Path, model: LoadedModel) -> None:
    assert SampleLogger(model, read_examples(captions, "p"), None, SamplingParams(1, 1)).generate().scores == {}


def test_samples_do_not_change_the_training(prepare_run: PrepareRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout draws the same numbers with and without samples."""

    def train_adapter() -> dict[str, torch.Tensor]:
        run = prepare_run("lora.dropout=0.5", "train.eval_steps=1", "train.epochs=2")
        run.train()
        records = [record for record in run_log.read_log(run.run_dir.log) if record["kind"] == "samples"]
        assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
        weights = load_file(run.run_dir.adapter / "adapter_model.safetensors")
        shutil.rmtree(run.run_dir.path)
        return weights

    with_samples = train_adapter()
    monkeypatch.setattr(SampleLogger, "generate", lambda self: Samples((), {}))
    without = train_adapter()
    assert all(torch.equal(with_samples[name], without[name]) for name in with_samples)
    # Negative control: one random number drawn in between changes the adapter.
    monkeypatch.setattr(SampleLogger, "generate", lambda self: (torch.rand(1), Samples((), {}))[1])
    changed = train_adapter()
    assert not all(torch.equal(with_samples[name], changed[name]) for name in with_samples)


def test_a_history_has_one_token_limit_and_marks_cut_answers() -> None:
    """All of it is from the log: the final answers have another limit."""
    records = [
        make_record(0, "the", "image", cut=(True, False)), make_record(10, "a", "b"), make_record(10, "a cat", "b"),
        {"kind": "train", "step": 30}, make_record(30, "a do", "b", cut=(True, False)), {"kind": "event", "text": "x"},
    ]  # fmt: skip
    first, second = samples_over_time(records, ROWS)
    assert first.answers == ((0, "the …"), (10, "a cat"), (30, "a do …"))
    assert second.row is ROWS[1]
    assert samples_over_time([{"kind": "train", "step": 30}], ROWS) == []


def test_the_metric_curve_compares_answers_of_one_token_limit() -> None:
    """Its last point is the last sample's, and not the full answers'."""
    records = [
        {"kind": "eval", "step": 0, "ROUGE-L": 0.1}, {"kind": "eval", "step": 20, "ROUGE-L": 0.4},
        {"kind": "eval", "step": 20, "eval_loss": 1.0},
    ]  # fmt: skip
    [curve] = build_metric_curve(records, ROWS, "ROUGE-L")
    assert curve.name == "ROUGE-L of 4 held-out images"
    assert curve.points == [(0.0, 0.1), (20.0, 0.4)]
    assert build_metric_curve(records, ROWS, None) == []
    [curve] = build_metric_curve([*records, make_record(20, "a do", cut=(True,))], ROWS, "ROUGE-L")
    assert curve.name == "ROUGE-L of 4 held-out images, answers cut at 32 tokens"


def test_samples_of_the_last_step_are_cut_like_those_before(
    prepare_run: PrepareRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step the same four prompts, at most SAMPLE_TOKENS; only the final answers are whole."""
    monkeypatch.setattr("lorgnette.training.eval_samples.SAMPLE_TOKENS", 1)
    monkeypatch.setattr("lorgnette.processing.processor.Processor.count_answer_tokens", lambda self, example: 0)
    run = prepare_run("train.max_steps=2", "train.eval_steps=1", "predict.max_new_tokens=3", "lora.rank=1")
    run.train()
    records = [record for record in run_log.read_log(run.run_dir.log) if record["kind"] == "samples"]
    assert [(record["step"], record["cut"], record["max_new_tokens"]) for record in records] == [
        (step, [True, True], 1) for step in (0, 1, 2)
    ]
    page = run.run_dir.report.read_text(encoding="utf-8")
    assert "Those that end with … are cut at 1 tokens" in page
    assert "of 2 held-out images, answers cut at 1 tokens" in page
    assert records[-1]["answers"][0] + " …</p>" in page
