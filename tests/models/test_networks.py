"""Other packages name no family: a new one is a folder of `models`."""

from pathlib import Path

import lorgnette
from lorgnette.models.registry import FAMILIES


def test_only_models_names_a_family() -> None:
    package = Path(lorgnette.__file__).parent
    words_of_others = package / "synonyms"  # templates and model types of other trainers
    files = [path for path in package.rglob("*.py") if not {package / "models", words_of_others} & {*path.parents}]
    assert len(files) > 100
    assert [path for path in files if any(name in path.read_text(encoding="utf-8") for name in FAMILIES)] == []
