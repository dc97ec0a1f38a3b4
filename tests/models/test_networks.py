"""Other packages name no family: a new one is a folder of `models`."""

from pathlib import Path

import lorgnette
from lorgnette.models.registry import FAMILIES


def test_only_models_names_a_family() -> None:
    package = Path(lorgnette.__file__).parent
    files = [path for path in package.rglob("*.py") if package / "models" not in path.parents]
    assert len(files) > 100
    assert [path for path in files if any(name in path.read_text(encoding="utf-8") for name in FAMILIES)] == []
