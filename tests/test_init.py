"""The package in Python: what Tab and `help` show, and what an import costs."""

import inspect
import subprocess
import sys
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


def test_an_import_loads_neither_torch_nor_pandas() -> None:
    code = "import lorgnette, sys; lorgnette.train; lorgnette.check; lorgnette.Run; lorgnette.register_metric; "
    code += "print([name for name in ('torch', 'pandas', 'transformers', 'IPython') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
