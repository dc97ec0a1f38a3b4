"""The evaluation averages the fact checks over held-out scenes."""

from pathlib import Path

import pytest
from demo_model import evaluation
from demo_model.descriptions import FactCheck
from demo_model.evaluation import evaluate_checkpoint, sample_held_out_scenes, summarize_checks

from lorgnette.demo.captions import write_caption
from lorgnette.resolve import BUILT_IN_MODEL


def test_results_are_averages() -> None:
    good = FactCheck(True, True, True, has_sizes=True, has_background=True)
    partial = FactCheck(True, True, False, has_sizes=True, has_background=False)
    result = summarize_checks([good, partial], ("a",))
    assert (result.objects, result.relation, result.background) == (1.0, 0.5, 0.5)
    assert (result.correct, result.complete) == (0.5, 0.5)
    assert "relation 0.500" in str(result)


def test_held_out_scenes_are_the_same_each_time() -> None:
    assert sample_held_out_scenes(5) == sample_held_out_scenes(5)
    assert sample_held_out_scenes(5) == sample_held_out_scenes(9)[:5]
    assert sample_held_out_scenes(5, seed=1) != sample_held_out_scenes(5)


def test_an_untrained_model_fails(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "MAX_NEW_TOKENS", 8)
    result = evaluate_checkpoint(untrained, sample_held_out_scenes(2), "cpu")
    assert (result.num_scenes, result.correct) == (2, 0.0)


def test_correct_captions_pass(untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluation, "generate_descriptions", lambda model, tokenizer, scenes, prompt: [write_caption(s) for s in scenes]
    )
    result = evaluate_checkpoint(untrained, sample_held_out_scenes(3), "cpu")
    assert (result.correct, result.sizes, result.background) == (1.0, 1.0, 0.0)


def test_the_shipped_model_describes_scenes_correctly() -> None:
    """Eight scenes, greedy, on the CPU: drawing, encoding and weights fit together."""
    result = evaluate_checkpoint(BUILT_IN_MODEL, sample_held_out_scenes(8, seed=1), "cpu")
    assert result.correct >= 7 / 8
    assert all(len(text.split()) >= 40 for text in result.examples)
