"""The exam counts what the judge says, on scenes of its own."""

from pathlib import Path

import pytest
from demo_model import exam
from demo_model.exam import evaluate_checkpoint, sample_held_out_scenes, summarize_checks

from lorgnette.demo.captions import FullFactCheck, write_caption
from lorgnette.resolve import BUILT_IN_MODEL


def test_marks_are_shares() -> None:
    good = FullFactCheck(True, True, True, has_sizes=True, has_background=True)
    half = FullFactCheck(True, True, False, has_sizes=True, has_background=False)
    counted = summarize_checks([good, half], ("a",))
    assert (counted.objects, counted.relation, counted.background) == (1.0, 0.5, 0.5)
    assert (counted.correct, counted.complete) == (0.5, 0.5)
    assert "relation 0.500" in str(counted)


def test_held_out_scenes_are_the_same_each_time() -> None:
    assert sample_held_out_scenes(5) == sample_held_out_scenes(5)
    assert sample_held_out_scenes(5) == sample_held_out_scenes(9)[:5]
    assert sample_held_out_scenes(5, seed=1) != sample_held_out_scenes(5)


def test_an_untrained_model_fails(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "MAX_NEW_TOKENS", 8)
    result = evaluate_checkpoint(untrained, sample_held_out_scenes(2), "cpu")
    assert (result.num_scenes, result.correct) == (2, 0.0)


def test_right_texts_pass(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exam, "generate_descriptions", lambda model, tokenizer, scenes, prompt: [write_caption(s) for s in scenes]
    )
    result = evaluate_checkpoint(untrained, sample_held_out_scenes(3), "cpu")
    assert (result.correct, result.sizes, result.background) == (1.0, 1.0, 0.0)


def test_the_shipped_model_describes_scenes_right_on_this_machine() -> None:
    """Eight scenes, greedily, on the CPU: drawing, encoding and weights fit together."""
    result = evaluate_checkpoint(BUILT_IN_MODEL, sample_held_out_scenes(8, seed=1), "cpu")
    assert result.correct >= 7 / 8
    assert all(len(text.split()) >= 40 for text in result.examples)
