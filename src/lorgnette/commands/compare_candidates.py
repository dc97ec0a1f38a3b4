"""Those that answer: the base, an adapter or its run, a merged or any other model, a file of answers. What a person
types becomes something that can be asked; nothing is read but headers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.commands.predict import answer_prompts, load_model_spec
from lorgnette.commands.saved_answers import SavedAnswers
from lorgnette.errors import UsageError
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.inference.loading import ModelCache, ModelSpec, resolve_adapter
from lorgnette.lora.metadata import PEFT_FILE, AdapterMetadata
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.report.console import Terminal
from lorgnette.report.html.page import flatten_settings
from lorgnette.report.predictions import PredictionRow, read_predictions
from lorgnette.report.run_dir import RunDir

BASE = "base"
"""How the untuned model of the others is named."""
CANDIDATE_HELP = "an adapter or its run, `base`, a model (a folder, or OWNER/NAME), or a file of answers (.jsonl)"


@dataclass(frozen=True)
class Candidate:
    """name: as it was typed, short enough for a table's head. One of asked and said is there: a model, or answers that
    were given before. run: the folder it was trained in, if that is at hand. inside: the tuned
    model whose weights this untuned one is asked in, so that they are read once for both."""

    name: str
    spec: ModelSpec | None = None
    saved_answers: SavedAnswers | None = None
    run: RunDir | None = None
    weights_from: ModelSpec | None = None

    def answer(
        self, prompts: Sequence[EvalPrompt], sampling: SamplingParams, terminal: Terminal, model_cache: ModelCache
    ) -> list[str]:
        """One to every question. Raises LorgnetteError where a file has none to some."""
        if self.spec is not None:
            opened = model_cache.get(self.weights_from or self.spec)
            return answer_prompts(
                opened, prompts, sampling, terminal, self.name, "tuned" if self.spec.adapter else None
            )
        assert self.saved_answers is not None
        return self.saved_answers.lookup(prompts)

    def check_saved_answers(self, prompts: Sequence[EvalPrompt]) -> list[str]:
        """What must be known of a file's answers, before any model is asked. Raises LorgnetteError where it lacks
        some."""
        if self.saved_answers is None:
            return []
        self.saved_answers.lookup(prompts)
        moved = self.saved_answers.num_matched_by_name(prompts)
        name = f"{self.name}: {moved} of {len(prompts)} answers are found by their pictures' file names"
        return [f"{name}, for the pictures are no longer where it says"] if moved else []

    @property
    def training_settings(self) -> dict[str, str]:
        """What is known of how it was trained: the run's settings, or those that lie in its own folder."""
        if self.run is not None:
            known = config.load_settings(config.read_recipe(self.run.config), where=str(self.run.config)).model_dump(
                mode="json"
            )
            return dict(
                flatten_settings(
                    {name: value for name, value in known.items() if name not in ("run", "report_to", "project")}
                )
            )
        if self.spec is None or self.spec.metadata is None:
            return {}
        known = {"model": self.spec.metadata.model, "data": {"prompt": self.spec.metadata.prompt}}
        known |= self.spec.metadata.processor.model_dump(mode="json")
        return dict(
            flatten_settings(known | ({"lora": _read_lora_settings(self.spec.adapter)} if self.spec.adapter else {}))
        )


def resolve_candidates(names: Sequence[str], model: str | None, terminal: Terminal) -> list[Candidate]:
    """Each of the words as what it names. model: the base, where it is not the adapters' own path; without adapters
    the built-in one."""
    named = dict(zip(names, _shorten_names(names), strict=True))
    if len(named) < len(names):
        raise UsageError("the same one twice", where=" ".join(names), hint="name each once")
    found = {word: _resolve_candidate(word, named[word], model, terminal) for word in names if word != BASE}
    if BASE in names:
        found[BASE] = _build_base_candidate(
            [one.spec for one in found.values() if one.spec is not None], model, terminal
        )
    return [found[word] for word in names]


def split_before_after(path: Path) -> list[Candidate]:
    """A lone file of answers that holds both the untuned model's and the tuned one's. Raises UsageError for another."""
    rows = read_predictions(path)
    if any(row.base is None or row.tuned is None for row in rows):
        raise UsageError("nothing to compare it with", where=str(path), hint="name another beside it, such as base")
    run = _find_run(path.parent / "adapter")
    before = SavedAnswers.from_rows(str(path), ((row, row.base) for row in rows))
    return [
        Candidate(BASE, saved_answers=before),
        Candidate(_shorten_names([str(path)])[0], saved_answers=_collect_tuned_answers(path, rows), run=run),
    ]


def is_answers_file(name: str) -> bool:
    """Whether a word names a file of answers, as `predict --out` writes it."""
    return Path(name).is_file() and Path(name).suffix.lower() == ".jsonl"


def _resolve_candidate(source: str, name: str, model: str | None, terminal: Terminal) -> Candidate:
    path = Path(source)
    if is_answers_file(source):
        return Candidate(
            name,
            saved_answers=_collect_tuned_answers(path, read_predictions(path)),
            run=_find_run(path.parent / "adapter"),
        )
    if path.is_file():
        raise UsageError(
            "a file, and not one of answers (.jsonl)",
            where=source,
            hint=f"name {CANDIDATE_HELP}; the data comes last",
        )
    if not path.exists() and source != "demo" and len(path.parts) == 1:
        raise UsageError("nothing here has this name", where=source, hint=f"name {CANDIDATE_HELP}")
    adapter = resolve_adapter(path)
    if adapter == path and ((path / "config.json").is_file() or source == "demo" or not _is_local_path(path)):
        return Candidate(name, spec=ModelSpec.from_names(source, None, terminal))
    return Candidate(name, spec=load_model_spec(model, adapter, terminal), run=_find_run(adapter))


def _is_local_path(path: Path) -> bool:
    """Whether it is meant as a place on this machine, be it gone, and not as a name on a hub."""
    return path.exists() or path.is_absolute() or (len(path.parts) > 1 and path.parent.exists())


def _build_base_candidate(specs: Sequence[ModelSpec], model: str | None, terminal: Terminal) -> Candidate:
    """The others' own base, asked as the first of them is: with its resolution."""
    tuned = next((asked for asked in specs if asked.metadata is not None), None)
    if tuned is None:
        return Candidate(BASE, spec=ModelSpec.from_names(model, None, terminal))
    if tuned.adapter is not None:
        return Candidate(BASE, spec=replace(tuned, adapter=None, metadata=None), weights_from=tuned)
    assert tuned.metadata is not None
    untuned = ModelSpec.from_names(model or tuned.metadata.model, None, terminal)
    return Candidate(BASE, spec=replace(untuned, processor=tuned.processor, metadata=None))


def _shorten_names(names: Sequence[str]) -> list[str]:
    """As typed, without what every run has in it, and of a long path the last two folders; where that is somebody
    else's name too, whole."""
    bare = [word.rstrip("/").removesuffix("/adapter").removesuffix("/predictions.jsonl") for word in names]
    brief = [name if len(name) <= 24 else "/".join(Path(name).parts[-2:]) for name in bare]
    return [short if brief.count(short) == 1 else word for short, word in zip(brief, names, strict=True)]


def _find_run(adapter: Path) -> RunDir | None:
    run = RunDir(adapter.parent)
    return run if run.config.is_file() else None


def _read_lora_settings(adapter: Path) -> dict[str, Any]:
    known = json.loads((adapter / PEFT_FILE).read_text(encoding="utf-8"))
    return {name: known.get(key) for name, key in (("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout"))}


def list_training_prompts(candidates: Sequence[Candidate]) -> list[str]:
    """What those of them that were trained were asked in training, each prompt once, in their order."""
    contracts: list[AdapterMetadata] = [one.spec.metadata for one in candidates if one.spec and one.spec.metadata]
    return list(dict.fromkeys(contract.prompt for contract in contracts))


def _collect_tuned_answers(path: Path, rows: Sequence[PredictionRow]) -> SavedAnswers:
    """A file's answers; of a row with two, the tuned model's."""
    return SavedAnswers.from_rows(str(path), ((row, row.base if row.tuned is None else row.tuned) for row in rows))
