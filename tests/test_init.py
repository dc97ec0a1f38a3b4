"""The package in Python: what Tab and `help` show, and what an import costs."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import lorgnette

FUNCTIONS = [name for name in lorgnette.__all__ if inspect.isfunction(getattr(lorgnette, name))]


def test_tab_shows_the_verbs_and_nothing_else() -> None:
    assert set(dir(lorgnette)) == set(lorgnette.__all__)
    assert {"train", "predict", "load", "check", "compare"} <= set(FUNCTIONS)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lorgnette.trian  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_and_types_of_each_verb_are_complete(name: str) -> None:
    function = getattr(lorgnette, name)
    assert len(function.__doc__.split()) >= 8
    hints = get_type_hints(function)
    assert set(hints) == {*inspect.signature(function).parameters, "return"}
    options = [p for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
    assert all(p.kind is p.KEYWORD_ONLY for p in options[2:])


def test_an_argument_has_one_name_in_all_verbs() -> None:
    """A word of one verb that means the same in another is written the same there."""
    parameters: dict[str, Any] = {name: inspect.signature(getattr(lorgnette, name)).parameters for name in FUNCTIONS}
    names = {argument for own in parameters.values() for argument in own}
    assert not names & {"source", "path", "max_rows", "sampling", "num_rows", "folder"}
    for verb in ("train", "check", "preview", "plan"):
        assert next(iter(parameters[verb])) == "data"
        assert {"recipe", "settings", "values"} <= set(parameters[verb])


IMPORTS = """
import sys

def refuse(step, *names):
    assert not (loaded := [name for name in names if name in sys.modules]), f"{{step}} imports {{loaded}}"

import lorgnette
lorgnette.train; lorgnette.check; lorgnette.teach; lorgnette.Run; lorgnette.register_metric
refuse("the package", "torch", "pandas", "transformers", "IPython")

import lorgnette.training.initial_adapter
refuse("reading an adapter's settings", "torch", "peft")

# A second before the first step.
import numpy, torch
from lorgnette.kernels.attention import attention_backward
from lorgnette.kernels.attention_plan import AttentionPlan
queries, qkv = numpy.arange(2, dtype=numpy.int32), torch.ones(2, 12)
plan = AttentionPlan.from_numpy(queries, queries + 1, 1, torch.device("cpu"))
attention_backward(qkv[:, :4], qkv, qkv[:, :4], None, plan, (1, 1))
refuse("the reference gradient", "sympy")

from pathlib import Path
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.weight_loader import load_weights_into
checkpoint = BaseCheckpoint.from_folder(Path({folder!r}))
load_weights_into(checkpoint, {{"model.language_model.norm.weight": torch.empty(64)}})
refuse("loading weights", "transformers", "peft")
refuse("the control", "torch")
"""
"""One process for all: its imports take seconds."""


def test_an_import_loads_no_slow_package(tiny: Path) -> None:
    code = IMPORTS.format(folder=str(tiny))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1:] == ["AssertionError: the control imports ['torch']"], result.stderr
