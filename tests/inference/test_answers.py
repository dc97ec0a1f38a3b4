"""Every distinct prompt is answered once, without and with the adapter."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lorgnette.config import ProcessorSettings
from lorgnette.distributed import World
from lorgnette.errors import LorgnetteError
from lorgnette.inference.answers import (
    AnswersInterrupted,
    answer_examples,
    describe_generation,
    describe_row_cuts,
    share_answers,
)
from lorgnette.inference.loading import LoadedModel
from lorgnette.inference.sampling import SamplingParams
from lorgnette.processing.processor import Processor
from lorgnette.rank_status import RankStatus, allocate_table
from lorgnette.resolve import BUILT_IN_MODEL
from lorgnette.types import Example, Prediction, PredictionRow
from tests.ranks import run_ranks


class EchoModel(LoadedModel):
    """Answers with the name of the adapter. The base model's answers are cut."""

    def __init__(self) -> None:
        processor = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=(280, 56)))
        object.__setattr__(self, "processor", processor)  # frozen

    def generate_answers(  # type: ignore[override]
        self, examples: Sequence[Example], sampling: SamplingParams, *, adapter: str | None, on_progress: Any
    ) -> Iterator[Prediction]:
        for example in examples:
            on_progress(1)
            yield Prediction(example, adapter or "base", adapter, is_complete=adapter is not None)


@pytest.fixture
def examples(example: Callable[..., Example]) -> list[Example]:
    """Two captions of one image, one of another."""
    return [example(("user", image, "What?"), ("assistant", text)) for image, text in ((0, "a"), (1, "b"), (0, "c"))]


@pytest.mark.parametrize(("with_base", "with_adapter"), [(True, True), (True, False), (False, True)])
def test_a_prompt_is_answered_once_by_the_selected_models(
    examples: list[Example], terminal: Any, with_base: bool, with_adapter: bool
) -> None:
    rows = answer_examples(
        EchoModel(), examples, SamplingParams(4, 2), terminal, with_base=with_base, with_adapter=with_adapter
    )
    assert [row.references for row in rows] == [("a", "c"), ("b",)]
    assert {row.base for row in rows} == {"base" if with_base else None}
    assert {row.tuned for row in rows} == {"tuned" if with_adapter else None}
    assert {(row.base_is_cut, row.tuned_is_cut) for row in rows} == {(with_base, False)}
    assert {row.generation for row in rows} == {"image size 280×56 pixels; greedy; at most 4 tokens"}


class InterruptedModel(EchoModel):
    """Ctrl-C comes before the second answer of an adapter, or of the base model."""

    def __init__(self, adapter: str | None) -> None:
        super().__init__()
        object.__setattr__(self, "interrupted", adapter)

    def generate_answers(self, *arguments: Any, **options: Any) -> Iterator[Prediction]:
        for number, prediction in enumerate(super().generate_answers(*arguments, **options)):
            if number == 1 and prediction.adapter == self.interrupted:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            yield prediction


@pytest.mark.parametrize(
    ("adapter", "options", "expected"),
    [
        (None, {}, [("base", None)]),
        ("tuned", {}, [("base", "tuned"), ("base", None)]),
        ("tuned", {"with_base": False}, [(None, "tuned")]),
    ],
)
def test_an_interrupt_keeps_the_answers(
    examples: list[Example], terminal: Any, adapter: str | None, options: dict[str, bool], expected: list[Any]
) -> None:
    with pytest.raises(AnswersInterrupted) as caught:
        answer_examples(InterruptedModel(adapter), examples, SamplingParams(4, 2), terminal, **options)
    assert [(row.base, row.tuned) for row in caught.value.rows] == expected
    assert caught.value.num_prompts == 2


def test_how_answers_are_generated_is_said() -> None:
    native = Processor.from_folder(BUILT_IN_MODEL, ProcessorSettings(image_size=None, image_tokens=(4, 99)))
    text = describe_generation(native, SamplingParams(7, temperature=0.5, top_p=0.9, seed=3))
    assert text == "image size native, 4 to 99 tokens; temperature 0.5, top-p 0.9, seed 3; at most 7 tokens"


def test_cut_answers_are_counted() -> None:
    rows = [PredictionRow("a", (), "", (), "b", "t", base_is_cut=is_cut) for is_cut in (True, False, True)]
    assert describe_row_cuts(rows, "128 tokens") == ["base model: 2 of 3 answers are cut at 128 tokens"]
    assert describe_row_cuts(rows[1:2], "128 tokens") == []
    both = [replace(row, tuned="a", tuned_is_cut=True) for row in rows]
    [line] = describe_row_cuts(both, "128 tokens")
    assert line == "base model: 2 of 3 answers; adapter: 3 of 3 answers are cut at 128 tokens"


def test_an_out_of_memory_error_has_the_hint(
    examples: list[Example], terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(EchoModel, "generate_answers", fail)
    with pytest.raises(LorgnetteError, match="buy more"):
        answer_examples(EchoModel(), examples, SamplingParams(4, 2), terminal, memory_hint="buy more")


class CountingModel(EchoModel):
    """Counts the prompts that it answers, and answers with their image and the adapter."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "ids", [])

    def generate_answers(self, examples: Sequence[Example], *arguments: Any, **options: Any) -> Iterator[Prediction]:
        self.ids.append(len(examples))  # type: ignore[attr-defined]
        for prediction in super().generate_answers(examples, *arguments, **options):
            yield replace(prediction, text=f"{prediction.text} {prediction.example.images[0].path.name}")


def answer_on_rank(world: World, examples: list[Example], terminal: Any) -> tuple[list[PredictionRow], list[int]]:
    model = CountingModel()
    return answer_examples(model, examples, SamplingParams(4, 2), terminal, world=world), model.ids  # type: ignore[attr-defined]


def test_ranks_share_the_prompts_and_have_all_answers(example: Callable[..., Example], terminal: Any) -> None:
    """In the order of the data, with the fields that one process fills; the longest answer is a share of its own."""
    texts = ["a", "b", "a text that is longer than all others together", "c", "d"]
    examples = [example(("user", i, "What?"), ("assistant", text)) for i, text in enumerate(texts)]
    alone, _ = answer_on_rank(World(), examples, terminal)
    assert len({row.tuned for row in alone}) == len(texts)
    results = run_ranks(answer_on_rank, 3, examples, terminal)
    assert [rows for rows, _ in results] == [alone] * 3
    assert sorted(num_prompts for _, num_prompts in results) == [[1, 1], [2, 2], [2, 2]]
    assert [rows for rows, _ in run_ranks(answer_on_rank, 2, examples[:1], terminal)] == [alone[:1]] * 2


def test_each_answer_of_a_rank_is_progress(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise ranks that wait for many answers would end it after ten minutes."""
    world, seen = World(0, 2, status=RankStatus(0, allocate_table(2))), list[float]()

    def generate(own: Sequence[Example]) -> Iterator[Prediction]:
        for one in own:
            world.status.row["since"] = 0.0
            yield Prediction(one, "text", None)

    def gather(self: World, value: Any) -> list[Any]:
        seen.append(float(world.status.row["since"]))
        return [value, []]

    monkeypatch.setattr(World, "gather_objects", gather)
    assert len(list(share_answers(generate, examples[:1], EchoModel().processor, world))) == 1
    assert seen[0] > 0
