"""A comparison names what was compared so that another person can find it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorgnette.commands.compare_candidates import Candidate
from lorgnette.commands.comparison_facts import find_step, list_facts, list_next_steps
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.report.run_dir import RunDir
from lorgnette.report.verdict import Verdict
from lorgnette.types import Example, Image, Turn

RECORDS: list[dict[str, Any]] = [
    {"kind": "eval", "step": 0, "eval_loss": 0.1, "ROUGE-L": 0.9},
    {"kind": "train", "step": 1, "loss": 2.0},
    {"kind": "eval", "step": 10, "eval_loss": 0.5, "ROUGE-L": 0.2},
    {"kind": "eval", "step": 20, "eval_loss": 0.8, "ROUGE-L": 0.7},
    {"kind": "train", "step": 30, "loss": 1.0},
    {"kind": "eval", "step": 30, "eval_loss": 0.9, "ROUGE-L": 0.6},
]


def build_candidate(folder: Path, adapter: str) -> Candidate:
    spec: Any = SimpleNamespace(adapter=folder / adapter)
    return Candidate("it", spec=spec, run=RunDir(folder))


@pytest.mark.parametrize(
    ("adapter", "config", "step"),
    [
        ("adapter", "", "30 (the last)"),
        ("checkpoints/step-000020", "", "20"),
        ("best", "", "10 (the best)"),
        ("best", "train: {metric_for_best_model: ROUGE-L}", "20 (the best)"),
    ],
)
def test_the_step_of_an_adapter(adapter: str, config: str, step: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in RECORDS))
    (tmp_path / "config.yaml").write_text(config)
    assert find_step(build_candidate(tmp_path, adapter)) == step


def test_the_step_is_unknown_without_a_log(tmp_path: Path) -> None:
    assert find_step(build_candidate(tmp_path, "adapter")) == ""
    assert find_step(Candidate("base")) == ""


def test_facts() -> None:
    prompts = [
        EvalPrompt(Example("x", (Turn("user", (Image(Path("a.jpg")), text)),), Path("d.csv"), 2), references)
        for text, references in (("What?", ("a",)), ("What?", ()))
    ]
    facts = dict(list_facts(prompts, Path("folder/d.csv"), ["greedy", "greedy"], "cpu"))
    assert dict(facts["Data"]) == {
        "File": "d.csv", "Questions": "2, 1 with references", "Images": "1 distinct", "Prompt": "What?",
    }  # fmt: skip
    assert dict(facts["Comparison"])["Answers"] == "greedy"
    assert dict(facts["Comparison"])["Made"].endswith("UTC")
    assert "lorgnette " in dict(facts["Machine"])["Versions"]
    facts = dict(list_facts(prompts, Path("d.csv"), ["greedy", "sampled"], "cpu"))
    assert "Answers" not in dict(facts["Comparison"])


def test_next_steps(tmp_path: Path) -> None:
    candidates = [Candidate("base"), build_candidate(tmp_path, "adapter")]
    typed, sure, unsure = ["base", "runs/a b"], Verdict("worked", "", ""), Verdict("unsure", "", "")
    steps = [command for _, command in list_next_steps(candidates, typed, Path("d.csv"), 1, sure)]
    assert steps == [
        "lorgnette predict IMAGE --adapter 'runs/a b'", "lorgnette evaluate 'runs/a b' d.csv",
        "lorgnette verify 'runs/a b'", "lorgnette merge 'runs/a b' 'runs/a b-merged'",
    ]  # fmt: skip
    assert list_next_steps(candidates, typed, Path("d.csv"), 0, sure) == []
    [(_, command)] = list_next_steps(candidates, typed, Path("d.csv"), None, unsure)
    assert command == "lorgnette compare base 'runs/a b' MORE.csv"
