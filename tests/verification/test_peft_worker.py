"""The arithmetic of the process without lorgnette. (What it finds: test_elsewhere.py.)"""

import ast
import math
from pathlib import Path

import torch

from lorgnette.verification import peft_worker
from lorgnette.verification.peft_check import WORKER


def test_it_imports_nothing_of_ours() -> None:
    assert Path(peft_worker.__file__) == WORKER
    tree = ast.walk(ast.parse(WORKER.read_text(encoding="utf-8")))
    named = [
        name
        for node in tree
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    ]  # fmt: skip
    assert "transformers" in named
    assert not [name for name in named if name.startswith("lorgnette")]


def test_distances_by_hand() -> None:
    one = torch.tensor([[0.5, 0.5, 0.0], [0.8, 0.1, 0.1]]).clamp_min(1e-30).log()
    other = torch.tensor([[0.25, 0.75, 0.0], [0.8, 0.1, 0.1]]).clamp_min(1e-30).log()
    found = peft_worker._compute_distance(one, other)
    assert found["tokens"] == 2
    assert math.isclose(found["kl"], (0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2, rel_tol=1e-5)
    assert math.isclose(found["total_variation"], 0.25 / 2, rel_tol=1e-5)
    assert found["first_choices"] == 1
    assert math.isclose(found["largest"], math.log(2), rel_tol=1e-5)  # a token that both find unlikely does not count
    assert peft_worker._compute_distance(one, one)["largest"] == 0
