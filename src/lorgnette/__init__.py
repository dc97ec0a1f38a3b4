"""lorgnette: LoRA for models that see.

import lorgnette
settings = lorgnette.recipe.settings("coco-caption", model="demo", data="captions.csv")
folder = lorgnette.run.train(settings)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorgnette import recipe, run

__version__ = "0.1.0"
__all__ = ["__version__", "recipe", "run"]


def __getattr__(name: str) -> Any:
    """The two public rooms, imported when they are first asked for."""
    if name not in ("recipe", "run"):
        raise AttributeError(f"lorgnette has no {name!r}")
    return import_module(f"lorgnette.{name}")
