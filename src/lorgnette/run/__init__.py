"""The verbs, for the command line and for Python alike:

    from lorgnette import recipe, run
    folder = run.train(recipe.settings("coco-caption", model="demo", data="captions.csv"))

The only room that knows all the others; it says who hands what to whom, and has no logic beyond that. A verb's file
is imported when the verb is first used: `check` must not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorgnette.run.collector import uncollected

if TYPE_CHECKING:
    from lorgnette.run.answering import predict
    from lorgnette.run.checking import check
    from lorgnette.run.comparing import compare
    from lorgnette.run.evaluating import evaluate
    from lorgnette.run.looking import watch
    from lorgnette.run.merging import merge
    from lorgnette.run.planning import plan
    from lorgnette.run.preparing import prepare
    from lorgnette.run.previewing import preview
    from lorgnette.run.showing import demo
    from lorgnette.run.starting import resume, train
    from lorgnette.run.verifying import verify

__all__ = [
    "check", "compare", "demo", "evaluate", "merge", "plan", "predict", "prepare", "preview", "resume", "train",
    "verify", "watch",
]  # fmt: skip

_FILES = {
    "demo": "showing",
    "prepare": "preparing",
    "check": "checking",
    "preview": "previewing",
    "plan": "planning",
    "train": "starting",
    "resume": "starting",
    "predict": "answering",
    "evaluate": "evaluating",
    "compare": "comparing",
    "verify": "verifying",
    "merge": "merging",
    "watch": "looking",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"lorgnette.run has no verb {name!r}")
    with uncollected():
        return getattr(import_module(f"lorgnette.run.{_FILES[name]}"), name)
