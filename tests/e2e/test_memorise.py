"""Parity 8: eight examples are learned by heart in a few dozen steps: the model can learn at all."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def texts(tmp_path: Path, lorgnette: Run, *words: object) -> list[tuple[str, str]]:
    done = lorgnette("predict", "captions.csv", "--out", "said.jsonl", "--max-new-tokens", 24, *words)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    return [(row["tuned"] or row["base"], *row["references"]) for row in rows]


def test_eight_examples_are_memorised(tmp_path: Path, tiny: Path, captions: Path, lorgnette: Run) -> None:
    eight = captions.read_text().splitlines()[:9]
    captions.write_text("\n".join(eight) + "\n")
    done = lorgnette(
        "train", f"model={tiny}", "data=captions.csv", "data.holdout=0", "image_size=56", "lora.rank=32",
        "lora.alpha=64", "lora.dropout=0", "train.batch_size=8", "train.epochs=60",
        "train.learning_rate=0.01", "train.lr_scheduler_type=cosine", "report_to=none", "run=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    learned = texts(tmp_path, lorgnette, "--adapter", "run/adapter")
    assert all(said == reference for said, reference in learned), learned
    before = texts(tmp_path, lorgnette, "--model", tiny)
    assert not any(said == reference for said, reference in before)
