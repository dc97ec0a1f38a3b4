"""Our scores are the official ones: from raw text to 1e-3, from the same tokens to 1e-10."""

from collections.abc import Callable
from pathlib import Path

import metric_parity as parity
import pytest

from lorgnette.metrics.registry import CAPTION_METRICS


def test_every_official_score(shared: Callable[[str], Path]) -> None:
    found = {case.name: list(parity.compare_scores(case)) for case in parity.read_cases(shared("metrics"))}
    assert list(found) == ["fakecap_126", "odd_7"]
    for rows in found.values():
        assert [row.metric for row in rows] == list(CAPTION_METRICS)
        for row in rows:
            assert row.text_error < 1e-3
            assert row.token_error < 1e-10
            assert row.max_example_error < 1e-10


def test_from_raw_text_too_they_are_the_same_numbers(shared: Callable[[str], Path]) -> None:
    for case in parity.read_cases(shared("metrics")):
        assert parity.count_token_differences(case) == 0
        assert max(row.text_error for row in parity.compare_scores(case)) < 1e-10


def test_the_table_is_printed(shared: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(shared("metrics"))]) == 0
    out = capsys.readouterr().out
    assert "fakecap_126: 126 pictures, tokens differ in 0 of 757 texts" in out
    assert out.count("CIDEr-D") == 2


def test_a_folder_of_another_kind_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "expected.json").write_text("{}")
    assert parity.main([str(tmp_path)]) == 1


@pytest.mark.parametrize("words", [[], ["a", "b"], ["--help"]])
def test_it_takes_one_folder(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main(words) == 2
    assert "expected.json" in capsys.readouterr().err
