"""Our scores equal the official ones: to 1e-3 from raw text, to 1e-10 from the same tokens."""

from collections.abc import Callable
from pathlib import Path

import metric_parity
import pytest

from lorgnette.metrics.registry import CAPTION_METRICS


def test_every_official_score(shared: Callable[[str], Path]) -> None:
    cases = metric_parity.read_cases(shared("metrics"))
    comparisons = {case.name: list(metric_parity.compare_scores(case)) for case in cases}
    assert list(comparisons) == ["fakecap_126", "odd_7"]
    for rows in comparisons.values():
        assert [row.metric for row in rows] == list(CAPTION_METRICS)
        for row in rows:
            assert row.text_error < 1e-3
            assert row.token_error < 1e-10
            assert row.max_example_error < 1e-10


def test_scores_from_raw_text_are_equal_too(shared: Callable[[str], Path]) -> None:
    for case in metric_parity.read_cases(shared("metrics")):
        assert metric_parity.count_token_differences(case) == 0
        assert max(row.text_error for row in metric_parity.compare_scores(case)) < 1e-10


def test_the_table_is_printed(shared: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert metric_parity.main([str(shared("metrics"))]) == 0
    out = capsys.readouterr().out
    assert "fakecap_126: 126 images, tokens differ in 0 of 757 texts" in out
    assert out.count("CIDEr-D") == 2


def test_a_folder_with_another_layout_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert metric_parity.main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "expected.json").write_text("{}")
    assert metric_parity.main([str(tmp_path)]) == 1


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_it_requires_one_folder(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert metric_parity.main(arguments) == 2
    assert "expected.json" in capsys.readouterr().err
