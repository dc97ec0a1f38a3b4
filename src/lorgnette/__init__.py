"""lorgnette: fine-tune Qwen-VL models on your own images with LoRA.

import lorgnette
run = lorgnette.train("captions.csv", model="Qwen2-VL-2B-Instruct")
run.scores
lorgnette.load(run).predict("photo.jpg", both=True)

docs/python.md shows all of it.
"""

from importlib import import_module

TYPE_CHECKING = False  # `typing` has one too, but takes 20 ms, in which Ctrl-C is a traceback
if TYPE_CHECKING:
    from typing import Any

    from lorgnette import recipes
    from lorgnette.commands.check import check
    from lorgnette.commands.compare import compare
    from lorgnette.commands.evaluate import evaluate
    from lorgnette.commands.export_adapter import export_adapter
    from lorgnette.commands.merge import merge
    from lorgnette.commands.plan import plan
    from lorgnette.commands.predict import load, predict
    from lorgnette.commands.prepare import prepare
    from lorgnette.commands.preview import preview
    from lorgnette.commands.serve import serve
    from lorgnette.commands.setup import setup
    from lorgnette.commands.teach import teach
    from lorgnette.commands.train import resume, train
    from lorgnette.commands.verify import verify
    from lorgnette.commands.watch import watch
    from lorgnette.commands.write_rows import write_rows
    from lorgnette.errors import LorgnetteError
    from lorgnette.metrics.own_metric import register_metric
    from lorgnette.report.run import Run

__version__ = "0.1.0"
__all__ = [
    "LorgnetteError", "Run", "__version__", "check", "compare", "evaluate", "export_adapter", "load", "merge", "plan",
    "predict", "prepare", "preview", "recipes", "register_metric", "resume", "serve", "setup", "teach", "train",
    "verify", "watch", "write_rows",
]  # fmt: skip
_MODULES = {
    "LorgnetteError": "errors",
    "Run": "report.run",
    "load": "commands.predict",
    "register_metric": "metrics.own_metric",
    "resume": "commands.train",
}
"""Where a public name is, if not in the command with its name."""


def __getattr__(name: str) -> "Any":
    """Import a public name on first use: `check` must not wait for what `train` imports."""
    if name not in __all__:
        raise AttributeError(f"module 'lorgnette' has no attribute {name!r}")
    from lorgnette.startup import check_system, freeze_gc, hide_widget_warning

    check_system()
    hide_widget_warning()
    if name == "recipes":
        return import_module("lorgnette.recipes")
    with freeze_gc():
        return getattr(import_module(f"lorgnette.{_MODULES.get(name, f'commands.{name}')}"), name)


def __dir__() -> list[str]:
    """The public names: what Tab offers, and `help` describes."""
    return list(__all__)
