"""The recipe for formulas on real data, with its own metrics in the report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorgnette.report import run_log


def test_formulas_to_latex(tiny: Path, shared: Callable[[str], Path], cli: Callable[..., Any], tmp_path: Path) -> None:
    result = cli(
        "train", "latex-ocr", f"model={tiny}", f"data={shared('latex') / 'formulas.csv'}", "data.max_rows=40",
        "data.holdout=6", "run=run", "lora.rank=4", "train.learning_rate=0.01", "report_to=none",
        "predict.max_new_tokens=8", "train.logging_steps=1",
    )  # fmt: skip
    assert result.status == 0, result.err
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for metric in ("latex-exact-match", "latex-edit-distance", "latex-BLEU"):
        assert metric in page
        assert metric in result.out
    losses = run_log.select_series(run_log.read_log(tmp_path / "run" / "log.jsonl"), "train", "loss")
    assert losses[-1][1] < losses[0][1]
