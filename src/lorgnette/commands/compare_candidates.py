"""Those that answer: the base, an adapter or its run, a merged or any other model, a file of answers. What a person
types becomes something that can be asked; nothing is read but headers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.commands.predict import asked_of, texts
from lorgnette.commands.saved_answers import Said
from lorgnette.errors import UsageError
from lorgnette.inference.hf_generate import Sampling
from lorgnette.inference.loading import Asked, Weights, adapter_of
from lorgnette.lora.metadata import PEFT_FILE, Contract
from lorgnette.metrics.eval_prompts import Question
from lorgnette.report.console import Terminal
from lorgnette.report.html.page import flattened
from lorgnette.report.predictions import PredictionRow, read_predictions
from lorgnette.report.run_dir import RunFolder

BASE = "base"
"""How the untuned model of the others is named."""
WHO = "an adapter or its run, `base`, a model (a folder, or OWNER/NAME), or a file of answers (.jsonl)"


@dataclass(frozen=True)
class Contender:
    """name: as it was typed, short enough for a table's head. One of asked and said is there: a model, or answers that
    were given before. run: the folder it was trained in, if that is at hand. inside: the tuned
    model whose weights this untuned one is asked in, so that they are read once for both."""

    name: str
    asked: Asked | None = None
    said: Said | None = None
    run: RunFolder | None = None
    inside: Asked | None = None

    def answers(self, asked: Sequence[Question], sampling: Sampling, terminal: Terminal, weights: Weights) -> list[str]:
        """One to every question. Raises LorgnetteError where a file has none to some."""
        if self.asked is not None:
            opened = weights.of(self.inside or self.asked)
            return texts(opened, asked, sampling, terminal, self.name, "tuned" if self.asked.adapter else None)
        assert self.said is not None
        return self.said.to(asked)

    def looked_over(self, asked: Sequence[Question]) -> list[str]:
        """What must be known of a file's answers, before any model is asked. Raises LorgnetteError where it lacks
        some."""
        if self.said is None:
            return []
        self.said.to(asked)
        moved = self.said.moved(asked)
        name = f"{self.name}: {moved} of {len(asked)} answers are found by their pictures' file names"
        return [f"{name}, for the pictures are no longer where it says"] if moved else []

    @property
    def settings(self) -> dict[str, str]:
        """What is known of how it was trained: the run's settings, or those that lie in its own folder."""
        if self.run is not None:
            known = config.load(config.read_recipe(self.run.config), where=str(self.run.config)).model_dump(mode="json")
            return dict(flattened({name: value for name, value in known.items() if name not in ("run", "track")}))
        if self.asked is None or self.asked.contract is None:
            return {}
        known = {"model": self.asked.contract.model, "data": {"prompt": self.asked.contract.prompt}}
        known["encode"] = self.asked.contract.encode.model_dump(mode="json")
        return dict(flattened(known | ({"lora": _rank(self.asked.adapter)} if self.asked.adapter else {})))


def contenders(words: Sequence[str], model: str | None, terminal: Terminal) -> list[Contender]:
    """Each of the words as what it names. model: the base, where it is not the adapters' own path; without adapters
    the built-in one."""
    named = dict(zip(words, _names(words), strict=True))
    if len(named) < len(words):
        raise UsageError("the same one twice", where=" ".join(words), remedy="name each once")
    found = {word: _contender(word, named[word], model, terminal) for word in words if word != BASE}
    if BASE in words:
        found[BASE] = _base([one.asked for one in found.values() if one.asked is not None], model, terminal)
    return [found[word] for word in words]


def halves(path: Path) -> list[Contender]:
    """A lone file of answers that holds both the untuned model's and the tuned one's. Raises UsageError for another."""
    rows = read_predictions(path)
    if any(row.base is None or row.tuned is None for row in rows):
        raise UsageError("nothing to compare it with", where=str(path), remedy="name another beside it, such as base")
    run = _run_of(path.parent / "adapter")
    before = Said.of(str(path), ((row, row.base) for row in rows))
    return [Contender(BASE, said=before), Contender(_names([str(path)])[0], said=_tuned(path, rows), run=run)]


def is_answers(word: str) -> bool:
    """Whether a word names a file of answers, as `predict --out` writes it."""
    return Path(word).is_file() and Path(word).suffix.lower() == ".jsonl"


def _contender(word: str, name: str, model: str | None, terminal: Terminal) -> Contender:
    path = Path(word)
    if is_answers(word):
        return Contender(name, said=_tuned(path, read_predictions(path)), run=_run_of(path.parent / "adapter"))
    if path.is_file():
        raise UsageError(
            "a file, and not one of answers (.jsonl)", where=word, remedy=f"name {WHO}; the data comes last"
        )
    if not path.exists() and word != "demo" and len(path.parts) == 1:
        raise UsageError("nothing here has this name", where=word, remedy=f"name {WHO}")
    adapter = adapter_of(path)
    if adapter == path and ((path / "config.json").is_file() or word == "demo" or not _placed(path)):
        return Contender(name, asked=Asked.of(word, None, terminal))
    return Contender(name, asked=asked_of(model, adapter, terminal), run=_run_of(adapter))


def _placed(path: Path) -> bool:
    """Whether it is meant as a place on this machine, be it gone, and not as a name on a hub."""
    return path.exists() or path.is_absolute() or (len(path.parts) > 1 and path.parent.exists())


def _base(others: Sequence[Asked], model: str | None, terminal: Terminal) -> Contender:
    """The others' own base, asked as the first of them is: with its resolution."""
    tuned = next((asked for asked in others if asked.contract is not None), None)
    if tuned is None:
        return Contender(BASE, asked=Asked.of(model, None, terminal))
    if tuned.adapter is not None:
        return Contender(BASE, asked=replace(tuned, adapter=None, contract=None), inside=tuned)
    assert tuned.contract is not None
    untuned = Asked.of(model or tuned.contract.model, None, terminal)
    return Contender(BASE, asked=replace(untuned, encoder=tuned.encoder, contract=None))


def _names(words: Sequence[str]) -> list[str]:
    """As typed, without what every run has in it, and of a long path the last two folders; where that is somebody
    else's name too, whole."""
    bare = [word.rstrip("/").removesuffix("/adapter").removesuffix("/predictions.jsonl") for word in words]
    brief = [name if len(name) <= 24 else "/".join(Path(name).parts[-2:]) for name in bare]
    return [short if brief.count(short) == 1 else word for short, word in zip(brief, words, strict=True)]


def _run_of(adapter: Path) -> RunFolder | None:
    run = RunFolder(adapter.parent)
    return run if run.config.is_file() else None


def _rank(adapter: Path) -> dict[str, Any]:
    known = json.loads((adapter / PEFT_FILE).read_text(encoding="utf-8"))
    return {name: known.get(key) for name, key in (("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout"))}


def prompts_of(those: Sequence[Contender]) -> list[str]:
    """What those of them that were trained were asked in training, each prompt once, in their order."""
    contracts: list[Contract] = [one.asked.contract for one in those if one.asked and one.asked.contract]
    return list(dict.fromkeys(contract.prompt for contract in contracts))


def _tuned(path: Path, rows: Sequence[PredictionRow]) -> Said:
    """A file's answers; of a row with two, the tuned model's."""
    return Said.of(str(path), ((row, row.base if row.tuned is None else row.tuned) for row in rows))
