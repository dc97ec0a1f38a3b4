"""A round's adapter is the one of `lorgnette train`, bit for bit; suggestions are those of `predict`."""

import csv
import filecmp
import io
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import lorgnette
from lorgnette import config
from lorgnette.config import Settings
from lorgnette.errors import LorgnetteError
from lorgnette.inference import hf_generate
from lorgnette.inference.loading import LoadedModel, ModelSpec
from lorgnette.inference.sampling import SamplingParams
from lorgnette.planning.memory import GIB
from lorgnette.report.console import Terminal
from lorgnette.teaching.learner import Answer, Learner, RoundError, RoundStopped
from lorgnette.training import trainer
from lorgnette.types import Example, Image, Turn

COLORS = ["red", "green", "blue", "yellow", "black", "white", "gray", "orange"]
ORDER = [4, 0, 6, 1, 5, 3]
"""The images that are answered, in order; two are not."""
ASKED = [7, 4, 2]
PROMPT, MAX_NEW_TOKENS = "Name it.", 6


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{color}.png" for color in COLORS]
    for number, (path, color) in enumerate(zip(paths, COLORS, strict=True)):
        PIL.Image.new("RGB", (60 + 10 * number, 40), color).save(path)
    return paths


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def make_settings(tiny: Path) -> Callable[..., Settings]:
    """Settings of a round that changes what the model says, in 10 steps. The seed is not that of the suggestions."""

    def make(*words: str) -> Settings:
        defaults = [
            f"model={tiny}", "device=cpu", "image_size=56", "lora.rank=4", "data.holdout=0", f"data.prompt={PROMPT}",
            "train.epochs=auto", "train.batch_size=4", "train.learning_rate=1e-2", "train.max_steps=10",
            f"predict.max_new_tokens={MAX_NEW_TOKENS}", "report_to=none", "seed=3",
        ]  # fmt: skip
        return config.load_settings(None, [*defaults, *words])

    return make


@pytest.fixture(scope="module")
def open_learner(images: list[Path], make_settings: Callable[..., Settings]) -> Callable[..., Learner]:
    """open_learner("seed=1") → a learner that knows the images."""

    def build(*words: str) -> Learner:
        learner = Learner(make_settings(*words), images, Terminal(Console(file=io.StringIO())))
        assert learner.open(lambda done, total: None) == {}
        return learner

    return build


@pytest.fixture(scope="module")
def learner(open_learner: Callable[..., Learner]) -> Iterator[Learner]:
    """One for the tests that leave it as it was: they train on it, and need no state of it."""
    learner = open_learner()
    yield learner
    learner.close()


def build_answers(order: Sequence[int] = ORDER) -> list[Answer]:
    return [Answer(image, f" it is {COLORS[image]}\n") for image in order]


def tune(learner: Learner, order: Sequence[int] = ORDER, *, stop_at: int | None = None) -> list[tuple[int, int]]:
    """A round; returns (step, steps at most) of each step."""
    steps: list[tuple[int, int]] = []
    result = learner.train(
        build_answers(order),
        on_step=lambda step, most, loss: steps.append((step, most)),
        should_stop=lambda: len(steps) == stop_at,
    )
    assert result.steps == len(steps)
    return steps


def read_values(learner: Learner, folder: Path) -> bytes:
    """The adapter's weights file."""
    learner.save(folder)
    return (folder / "adapter_model.safetensors").read_bytes()


def list_texts(learner: Learner, *, tuned: bool) -> list[str]:
    return [suggestion.text for suggestion in learner.suggest(ASKED, tuned=tuned)]


def predict(settings: Settings, images: Sequence[Path], adapter: Path | None) -> list[str]:
    """As the command answers, without and with an adapter."""
    spec = ModelSpec.from_names(settings.model, adapter, Terminal(Console(file=io.StringIO())))
    if adapter is None:
        processor = type(spec.processor).from_folder(spec.checkpoint.folder, settings.processor)
    else:
        assert spec.metadata is not None
        assert spec.metadata.prompt == PROMPT
        processor = spec.processor
    model = type(loaded := spec.load("cpu"))(loaded.model, processor)
    paths = [images[i] for i in ASKED]
    questions = [Example("1", (Turn("user", (Image(path), PROMPT)),), path, 1) for path in paths]
    sampling = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, batch_size=2)
    return [answer.text for answer in model.generate_answers(questions, sampling, adapter="tuned")]


@pytest.mark.parametrize("words", [("engine=reference",), ("engine=fast",), ("engine=reference", "adapter")])
def test_a_round_makes_the_adapter_that_train_makes(
    words: tuple[str, ...], open_learner: Callable[..., Learner], make_settings: Callable[..., Settings],
    images: list[Path], tmp_path: Path,
) -> None:  # fmt: skip
    """All files of the folder, with dropout; also with an adapter to continue, and after other rounds."""
    words = tuple(f"adapter={tmp_path / 'first'}" if word == "adapter" else word for word in words)
    if any(word.startswith("adapter=") for word in words):
        first = open_learner()
        tune(first, [7, 2])
        first.save(tmp_path / "first")
    table = tmp_path / "captions.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = [(images[answer.image], answer.text.strip()) for answer in build_answers()]
        csv.writer(file).writerows([("image_path", "caption"), *rows])
    settings = make_settings(*words, f"data={table}", f"run={tmp_path / 'run'}")
    assert settings.lora.dropout == 0.05
    lorgnette.train(settings, console=Console(file=io.StringIO()))
    trained = tmp_path / "run" / "adapter"

    learner = open_learner(*words)
    untuned = list_texts(learner, tuned=False)
    own: list[Path] = []
    for number, order in enumerate((ORDER, ORDER[::-1], ORDER)):
        assert len(tune(learner, order)) > 8
        own.append(tmp_path / f"round-{number}")
        learner.save(own[-1])
        assert list_texts(learner, tuned=False) == untuned, "asking the untuned model changes no adapter"
    learner.close()
    names = sorted(os.listdir(trained))
    assert names == sorted(os.listdir(own[0]))
    assert len(names) == 5
    for folder in (own[0], own[2]):
        assert filecmp.cmpfiles(trained, folder, names, shallow=False) == (names, [], [])
    differing = filecmp.cmpfiles(trained, own[1], names, shallow=False)[1]
    assert "adapter_model.safetensors" in differing, "the order of the answers matters"


def test_another_seed_makes_another_adapter(
    learner: Learner, open_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    other = open_learner("seed=1")
    for each in (learner, other):
        tune(each)
    assert read_values(learner, tmp_path / "a") != read_values(other, tmp_path / "b")
    other.close()


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_suggestions_are_the_answers_of_predict(
    engine: str, open_learner: Callable[..., Learner], images: list[Path], tmp_path: Path,
    make_settings: Callable[..., Settings],
) -> None:  # fmt: skip
    settings, learner = make_settings(), open_learner(f"engine={engine}")
    base = predict(settings, images, None)
    assert list_texts(learner, tuned=True) == list_texts(learner, tuned=False) == base, "no round yet"
    tune(learner)
    learner.save(tmp_path / "adapter")
    tuned = predict(settings, images, tmp_path / "adapter")
    assert tuned != base
    assert list_texts(learner, tuned=True) == tuned
    assert list_texts(learner, tuned=False) == base
    assert list_texts(learner, tuned=True) == tuned, "the adapter is back"
    learner.close()

    continued = open_learner(f"adapter={tmp_path / 'adapter'}")
    tune(continued, [7, 2])
    assert list_texts(continued, tuned=False) == tuned, "untuned means before this session"
    assert list_texts(continued, tuned=True) != tuned
    continued.close()


def test_surety_is_the_mean_log_probability_with_the_end_token(
    learner: Learner, tiny: Path, images: list[Path], tmp_path: Path
) -> None:
    """Of plain transformers and PEFT, for texts of several lengths; the empty one is its end token."""
    from peft import PeftModel
    from transformers import Qwen2VLForConditionalGeneration

    tune(learner)
    learner.save(tmp_path / "adapter")
    limits = iter([4, 9, 0])
    ends = {place: next(limits) for place in range(3)}
    suggestions = learner.suggest([0, 7, 3], tuned=True, on_text=lambda place, text: len(text) < ends[place])
    texts = [suggestion.text for suggestion in suggestions]
    assert len({*map(len, texts)}) > 1
    model = PeftModel.from_pretrained(Qwen2VLForConditionalGeneration.from_pretrained(tiny), tmp_path / "adapter")
    processor = learner._processor
    for image, suggestion in zip([0, 7, 3], suggestions, strict=True):
        question = Example("1", (Turn("user", (Image(images[image]), PROMPT)),), images[image], 1)
        prompt = processor.encode(question, add_generation_prompt=True)
        inputs = hf_generate._pad_batch([prompt], processor, torch.device("cpu"))
        answer = [*processor.tokenizer.encode(suggestion.text), processor.tokenizer.control_tokens["<|im_end|>"]]
        start = inputs["input_ids"].shape[1]
        rows = {"input_ids": answer, "attention_mask": [1] * len(answer), "mm_token_type_ids": [0] * len(answer)}
        for name, values in rows.items():
            inputs[name] = torch.cat([inputs[name], torch.tensor([values])], 1)
        with torch.no_grad():
            logs = model.eval()(**inputs).logits[0].float().log_softmax(-1)
        own = [logs[start - 1 + i, token].item() for i, token in enumerate(answer)]
        assert suggestion.surety == pytest.approx(np.mean(own), abs=1e-4)
        assert len(own) == 1 or suggestion.surety != pytest.approx(np.mean(own[:-1]), abs=1e-3)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_text_grows_and_can_be_ended(engine: str, open_learner: Callable[..., Learner]) -> None:
    learner = open_learner(f"engine={engine}", "predict.max_new_tokens=20", "predict.batch_size=2")
    whole = learner.suggest([0, 1, 2], tuned=False)
    seen: dict[int, list[str]] = {0: [], 1: [], 2: []}

    def show(place: int, text: str) -> bool:
        seen[place].append(text)
        return place != 1 or len(seen[place]) < 2

    shown = learner.suggest([0, 1, 2], tuned=False, on_text=show)
    for place in (0, 2):
        assert shown[place].text == whole[place].text
        assert shown[place].surety == pytest.approx(whole[place].surety, abs=1e-4)
        assert seen[place][-1] == whole[place].text.rstrip("\ufffd")
    assert len(seen[1]) == 2, "an ended suggestion is not shown again"
    assert shown[1].text == seen[1][-1]
    assert whole[1].text.startswith(shown[1].text)
    assert len(shown[1].text) < len(whole[1].text)
    for texts in seen.values():
        assert len(texts) > 1
        assert all(after.startswith(before) for before, after in pairwise(texts))
        assert "\ufffd" not in "".join(texts)
    assert learner.suggest([0, 1, 2], tuned=False) == whole
    learner.close()


def spoil(monkeypatch: pytest.MonkeyPatch, learner: Learner, change: Callable[[Any, Any, int], Any]) -> None:
    """Let `change(batch, loss, number of the call)` choose what each backward pass returns."""
    assert learner._model is not None
    engine, calls = learner._model.setup.engine, list[int]()
    backward = engine.backward

    def run(batch: Any) -> Any:
        calls.append(1)
        return change(batch, backward(batch), len(calls))

    monkeypatch.setattr(engine, "backward", run)


def refuse_memory(batch: Any, loss: Any, most_examples: int) -> Any:
    if len(batch.examples) > most_examples:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a capacity of 79 GiB")
    return loss


def test_a_failed_round_leaves_the_adapter_of_the_last_good_one(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(learner)
    good, texts = read_values(learner, tmp_path / "good"), list_texts(learner, tuned=True)
    assert texts != list_texts(learner, tuned=False)

    def check() -> None:
        assert list_texts(learner, tuned=True) == texts
        assert read_values(learner, tmp_path / "now") == good

    with monkeypatch.context() as patch:  # a loss that is not finite
        spoil(patch, learner, lambda batch, loss, call: loss * (float("nan") if call == 3 else 1))
        with pytest.raises(RoundError, match="step 3: the loss is not finite") as caught:
            tune(learner, [7, 2, 1, 0, 3])
        assert caught.value.kind == "loss"
        assert caught.value.images
        assert {*caught.value.images} <= {7, 2, 1, 0, 3}
        assert "learning_rate" in (caught.value.hint or "")
        assert COLORS[caught.value.images[0]] in (caught.value.where or "")
    check()

    with monkeypatch.context() as patch:  # no memory for the smallest micro-batch
        spoil(patch, learner, lambda batch, loss, call: refuse_memory(batch, loss, 0))
        with pytest.raises(RoundError, match=r"not enough memory for a round: .*one example") as caught:
            tune(learner, [7, 2, 1, 0, 3])
        assert caught.value.kind == "memory"
        assert "image_size" in (caught.value.hint or "")
        assert caught.value.__context__ is None, "no traceback holds the tensors of the round"
    check()

    with pytest.raises(RoundStopped):
        tune(learner, [7, 2, 1, 0, 3], stop_at=3)
    check()

    with monkeypatch.context() as patch:  # a defect
        spoil(patch, learner, lambda batch, loss, call: loss.shape[call])
        with pytest.raises(IndexError):
            tune(learner, [7, 2, 1, 0, 3])
    check()

    for answers, words in (
        ([], "no answer"),
        ([Answer(1, " \n")], "empty"),
        ([Answer(1, "a b " * 9000)], "max_length"),
    ):
        with pytest.raises(RoundError, match=words) as caught:
            learner.train(answers, on_step=lambda *_: None, should_stop=lambda: False)
        assert caught.value.kind == "other"
        assert caught.value.images == tuple(answer.image for answer in answers)
    check()
    tune(learner)
    check()


def test_a_round_short_of_memory_takes_smaller_micro_batches(
    open_learner: Callable[..., Learner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if memory is short once, before the first step. Without dropout the gradients add up to the same."""
    learner = open_learner("lora.dropout=0")
    assert learner._model is not None
    steps = tune(learner)
    learner.save(tmp_path / "whole")
    sizes: list[int] = []

    def run(batch: Any, loss: Any, call: int) -> Any:
        sizes.append(len(batch.examples))
        return refuse_memory(batch, loss, 2)

    before = learner._model.max_tokens
    with monkeypatch.context() as patch:
        spoil(patch, learner, run)
        assert tune(learner) == steps
        assert max(sizes[sizes.index(2) :]) == 2
        assert learner._model.max_tokens < before
        sizes.clear()
        tune(learner)
        assert max(sizes) == 2, "the next round begins with the smaller ones"
    learner.save(tmp_path / "halved")
    whole, halved = (load_values(tmp_path / name) for name in ("whole", "halved"))
    torch.testing.assert_close(halved, whole, atol=1e-3, rtol=1e-2)

    optimizer, calls = trainer.Optimizer, list[int]()

    def fail_once(*options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError
        return optimizer(*options)

    monkeypatch.setattr(trainer, "Optimizer", fail_once)
    tune(learner)
    assert len(calls) == 2
    learner.close()


def load_values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_suggestions_short_of_memory_begin_once_more(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what rounds and suggestions keep given back; in the second pass of either part there may be enough."""
    assert learner._model is not None
    before, released = learner.suggest(ASKED, tuned=False), list[int]()
    monkeypatch.setattr(learner, "_release_memory", lambda: released.append(1))
    num_failures = 0

    def fail_first(function: Callable[..., Any]) -> Callable[..., Any]:
        calls: list[int] = []

        def run(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) <= num_failures:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB")
            return function(*arguments, **options)

        return run

    for owner, name in ((LoadedModel, "generate_answers"), (type(learner._model.setup.engine), "compute_label_losses")):
        for num_failures in (1, 2):
            released.clear()
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, fail_first(getattr(owner, name)))
                if num_failures == 1:
                    assert learner.suggest(ASKED, tuned=False) == before
                else:
                    with pytest.raises(LorgnetteError, match=r"out of memory: .*Tried to allocate") as caught:
                        learner.suggest(ASKED, tuned=False)
                    assert "image_size" in (caught.value.hint or "")
            assert released == [1]


def test_suggestions_leave_a_core_to_the_page(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    before, seen = torch.get_num_threads(), set[int]()
    torch.set_num_threads(3)
    try:
        learner.suggest(ASKED[:1], tuned=False, on_text=lambda *_: seen.add(torch.get_num_threads()) is None)
        assert (seen, torch.get_num_threads()) == ({2}, 3)
    finally:
        torch.set_num_threads(before)


def test_a_shortage_has_figures_of_the_gpu(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = learner._encode_answers(build_answers())
    assert learner._measure_shortage(rows) == ""
    assert learner._model is not None
    monkeypatch.setattr(learner._model.setup.features, "device", torch.device("cuda"))
    free = GIB // 100
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB // 50)
    text = learner._measure_shortage(rows)
    needed = float(text.split(" GiB are needed")[0].split()[-1])
    assert 0 < needed < 1
    assert text.endswith("in all, 0.0 GiB are there")
    free = GIB
    assert learner._measure_shortage(rows) == ""  # there is enough, though it could not be had


def test_broken_images_come_back_by_their_index(
    images: list[Path], make_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    no_image, cut = tmp_path / "text.png", tmp_path / "cut.png"
    no_image.write_text("no image")
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)
    PIL.Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:4000])  # the header is complete
    paths = [images[0], no_image, images[1], cut, images[2]]
    learner, progress = Learner(make_settings(), paths, Terminal(Console(file=io.StringIO()))), list[tuple[int, int]]()
    errors = learner.open(lambda done, total: progress.append((done, total)))
    assert sorted(errors) == [1, 3]
    assert all(error.message and error.where and error.hint for error in errors.values())
    assert "cut.png" in str(errors[3])
    assert progress[-1] == (5, 5)
    assert learner._model is not None
    means = learner.feature_means
    assert means.shape == (5, 64)
    assert means.dtype == np.float32
    assert not means[[1, 3]].any()
    grid = learner._processor.encode(learner._build_question(2), add_generation_prompt=True).grids
    np.testing.assert_array_equal(means[2], learner._model.setup.features.gather(grid).mean(0).numpy())
    assert means[2].any()
    for index in (1, 3):
        with pytest.raises(LorgnetteError, match="cannot be read"):
            learner.suggest([0, index], tuned=False)
        with pytest.raises(RoundError, match="cannot be read"):
            learner.train([Answer(index, "x")], on_step=lambda *_: None, should_stop=lambda: False)
    learner.close()
    with pytest.raises(LorgnetteError, match="no image can be read"):
        Learner(make_settings(), [no_image], Terminal(Console(file=io.StringIO()))).open(lambda done, total: None)


def test_a_saved_round_is_loaded_after_a_restart(
    learner: Learner, open_learner: Callable[..., Learner], tmp_path: Path
) -> None:
    tune(learner)
    texts, folder = list_texts(learner, tuned=True), tmp_path / "adapter"
    learner.save(folder)
    other = open_learner()
    with pytest.raises(LorgnetteError, match="no adapter yet"):
        other.save(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    other.load(folder)
    assert list_texts(other, tuned=True) == texts != list_texts(other, tuned=False)
    other.save(tmp_path / "again")
    names = sorted(os.listdir(folder))
    assert filecmp.cmpfiles(folder, tmp_path / "again", names, shallow=False) == (names, [], [])
    with pytest.raises(RoundStopped):
        tune(other, stop_at=2)
    assert list_texts(other, tuned=True) == texts
    other.close()
    smaller = open_learner("lora.rank=2")
    with pytest.raises(LorgnetteError, match="does not fit"):
        smaller.load(folder)
    smaller.close()


def test_what_needs_no_weights_is_checked_at_once(
    make_settings: Callable[..., Settings], images: list[Path], tmp_path: Path, terminal: Terminal
) -> None:
    assert Learner(make_settings("model=demo"), images, terminal).title == "the built-in model"
    for words, message in (
        ("model=/no/folder", "folder"),
        ("engine=fast lora.parts=language,vision", "vision tower"),
        (f"adapter={tmp_path}", "adapter"),
    ):
        with pytest.raises(LorgnetteError, match=message):
            Learner(make_settings(*words.split()), images, terminal)
