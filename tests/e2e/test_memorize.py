"""Parity 8: a few dozen steps memorize eight examples, so the model can learn at all."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def predict(tmp_path: Path, lorgnette: Run, *arguments: object) -> list[tuple[str, str]]:
    """The answers, each with its reference."""
    result = lorgnette("predict", "captions.csv", "--out", "answers.jsonl", "--max-new-tokens", 24, *arguments)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    return [(row["tuned"] or row["base"], *row["references"]) for row in rows]


def test_eight_examples_are_memorized(tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run) -> None:
    captions.write_text("\n".join(captions.read_text().splitlines()[:9]) + "\n")
    result = lorgnette(
        "train", f"model={tiny}", "data=captions.csv", "data.holdout=0", "image_size=56", "lora.rank=32",
        "lora.alpha=64", "lora.dropout=0", "train.batch_size=8", "train.epochs=60", "train.learning_rate=0.01",
        "train.lr_scheduler_type=cosine", "report_to=none", "run=run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    after = predict(tmp_path, lorgnette, "--adapter", "run/adapter")
    assert all(answer == reference for answer, reference in after), after
    before = predict(tmp_path, lorgnette, "--model", tiny)
    assert not any(answer == reference for answer, reference in before)
