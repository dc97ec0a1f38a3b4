"""Other packages name no family: a new one is a folder of `models`."""

from pathlib import Path

import lorgnette
from lorgnette.models.registry import FAMILIES


def test_only_models_names_a_family() -> None:
    package = Path(lorgnette.__file__).parent
    words_of_others = package / "synonyms"  # templates and model types of other trainers
    families = {package / "models" / name for name in FAMILIES}
    files = [path for path in package.rglob("*.py") if not {*families, words_of_others} & {*path.parents}]
    shared = {package / "models" / "networks.py", package / "models" / "model_config.py"}  # the first family's classes
    assert len(files) > 100
    naming = {path for path in files if any(name in path.read_text(encoding="utf-8") for name in FAMILIES)}
    assert naming <= shared
