"""The exam counts what the judge says, on scenes of its own."""

from pathlib import Path

import pytest
from demo_model import exam
from demo_model.exam import examine, held_out, marks

from lorgnette.demo.captions import FullJudgement, caption
from lorgnette.resolve import BUILT_IN


def test_marks_are_shares() -> None:
    good = FullJudgement(True, True, True, sizes=True, background=True)
    half = FullJudgement(True, True, False, sizes=True, background=False)
    counted = marks([good, half], ("a",))
    assert (counted.objects, counted.relation, counted.background) == (1.0, 0.5, 0.5)
    assert (counted.right, counted.complete) == (0.5, 0.5)
    assert "relation 0.500" in str(counted)


def test_held_out_scenes_are_the_same_each_time() -> None:
    assert held_out(5) == held_out(5)
    assert held_out(5) == held_out(9)[:5]
    assert held_out(5, seed=1) != held_out(5)


def test_an_untrained_model_fails(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "LONGEST", 8)
    result = examine(untrained, held_out(2), "cpu")
    assert (result.scenes, result.right) == (2, 0.0)


def test_right_texts_pass(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "descriptions", lambda model, tokenizer, scenes, prompt: [caption(s) for s in scenes])
    result = examine(untrained, held_out(3), "cpu")
    assert (result.right, result.sizes, result.background) == (1.0, 1.0, 0.0)


def test_the_shipped_model_describes_scenes_right_on_this_machine() -> None:
    """Eight scenes, greedily, on the CPU: drawing, encoding and weights fit together."""
    result = examine(BUILT_IN, held_out(8, seed=1), "cpu")
    assert result.right >= 7 / 8
    assert all(len(text.split()) >= 40 for text in result.examples)
