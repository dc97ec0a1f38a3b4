"""Every distinct prompt is answered once, without and with the adapter."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.inference.answers import answer_examples
from lorgnette.inference.loading import LoadedModel
from lorgnette.inference.sampling import SamplingParams
from lorgnette.types import Example, Prediction


class EchoModel(LoadedModel):
    """Answers with the name of the adapter."""

    def __init__(self) -> None: ...

    def generate_answers(  # type: ignore[override]
        self, examples: Sequence[Example], sampling: SamplingParams, *, adapter: str | None, on_progress: Any
    ) -> Iterator[Prediction]:
        for example in examples:
            on_progress(1)
            yield Prediction(example, adapter or "base", adapter)


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


def test_an_out_of_memory_error_has_the_hint(
    examples: list[Example], terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(EchoModel, "generate_answers", fail)
    with pytest.raises(LorgnetteError, match="buy more"):
        answer_examples(EchoModel(), examples, SamplingParams(4, 2), terminal, memory_hint="buy more")
