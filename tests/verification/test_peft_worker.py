"""The arithmetic of the worker, and that it does not import lorgnette. Its results are tested in test_peft_check.py."""

import ast
import math
from pathlib import Path

import torch

from lorgnette.verification import peft_worker
from lorgnette.verification.peft_check import WORKER


def test_worker_does_not_import_lorgnette() -> None:
    assert Path(peft_worker.__file__) == WORKER
    imports = [
        name
        for node in ast.walk(ast.parse(WORKER.read_text(encoding="utf-8")))
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    ]  # fmt: skip
    assert "transformers" in imports
    assert not [name for name in imports if name.startswith("lorgnette")]


def test_distance_of_known_distributions() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.1, 0.1]]).clamp_min(1e-30).log()
    log_q = torch.tensor([[0.25, 0.75, 0.0], [0.8, 0.1, 0.1]]).clamp_min(1e-30).log()
    distance = peft_worker._compute_distance(log_p, log_q)
    assert distance["num_tokens"] == 2
    assert math.isclose(distance["kl"], (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel_tol=1e-5)
    assert math.isclose(distance["total_variation"], 0.25 / 2, rel_tol=1e-5)
    assert distance["num_argmax_changes"] == 1
    # The third token of the first row does not count: both models give it less than 1 %.
    assert math.isclose(distance["max_logprob_difference"], math.log(2), rel_tol=1e-5)
    assert peft_worker._compute_distance(log_p, log_p)["max_logprob_difference"] == 0
