"""lorgnette: fine-tune Qwen-VL models on your own images with LoRA.

import lorgnette
settings = lorgnette.recipes.load_settings("coco-caption", model="demo", data="captions.csv")
run = lorgnette.train(settings)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorgnette import recipes
    from lorgnette.commands.check import check
    from lorgnette.commands.compare import compare
    from lorgnette.commands.evaluate import evaluate
    from lorgnette.commands.export_adapter import export_adapter
    from lorgnette.commands.merge import merge
    from lorgnette.commands.plan import plan
    from lorgnette.commands.predict import predict
    from lorgnette.commands.prepare import prepare
    from lorgnette.commands.preview import preview
    from lorgnette.commands.train import resume, train
    from lorgnette.commands.verify import verify
    from lorgnette.commands.watch import watch

__version__ = "0.1.0"
__all__ = [
    "__version__", "check", "compare", "evaluate", "export_adapter", "merge", "plan", "predict", "prepare", "preview",
    "recipes", "resume", "train", "verify", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `check` must not wait for what `train` imports."""
    if name not in __all__:
        raise AttributeError(f"module 'lorgnette' has no attribute {name!r}")
    if name == "recipes":
        return import_module("lorgnette.recipes")
    from lorgnette.startup import gc_paused

    with gc_paused():
        return getattr(import_module(f"lorgnette.commands.{'train' if name == 'resume' else name}"), name)
