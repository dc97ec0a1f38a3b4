"""Candidates of `evaluate` and `compare`: the base model, an adapter or its run, another model, a file of answers.

Resolves the names that a user types. Reads headers only, no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorgnette import config
from lorgnette.commands.answer_settings import set_answer_size
from lorgnette.commands.predict import load_model_spec
from lorgnette.commands.saved_answers import SavedAnswers
from lorgnette.config import Settings
from lorgnette.errors import UsageError
from lorgnette.inference.answers import answer_prompts, describe_generation
from lorgnette.inference.loading import ModelCache, ModelSpec, resolve_adapter
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.peft_config import read_peft_config
from lorgnette.metrics.eval_prompts import EvalPrompt
from lorgnette.report.console import Terminal
from lorgnette.report.html.page import flatten_settings
from lorgnette.report.predictions import read_predictions
from lorgnette.report.run_dir import RunDir
from lorgnette.report.training_overlap import TrainingOverlap, find_training_overlap
from lorgnette.training.start_warnings import explain_built_in_model
from lorgnette.types import BASE_MODEL, Prediction, PredictionRow

BASE = "base"
"""The name of the candidates' own base model."""
CANDIDATE_HELP = "a run, an adapter, `base`, a model (a folder, or OWNER/NAME), or a file of answers (.jsonl)"


@dataclass(frozen=True)
class Candidate:
    """A source of answers: a model (`spec`) or a file (`saved_answers`).

    name: as typed, shortened for a table's head. run: the run that trained it, if its folder exists. weights_from: the
    adapter's spec that also serves its base model, so that the weights are loaded once.
    """

    name: str
    spec: ModelSpec | None = None
    saved_answers: SavedAnswers | None = None
    run: RunDir | None = None
    weights_from: ModelSpec | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether it was fine-tuned: it has an adapter, or one was merged into it."""
        if self.spec is not None:  # the built-in model has metadata, too
            return self.spec.adapter is not None or (self.spec.metadata is not None and self.spec.base_model != "demo")
        return self.saved_answers is not None and self.saved_answers.is_tuned

    def answer(
        self, prompts: Sequence[EvalPrompt], sampling: SamplingParams, terminal: Terminal, model_cache: ModelCache
    ) -> list[Prediction]:
        """The answer to every prompt. Raises LorgnetteError if a file lacks some."""
        if self.spec is not None:
            model = model_cache.get(self.weights_from or self.spec)
            adapter = "tuned" if self.spec.adapter else None
            return answer_prompts(model, prompts, sampling, terminal, self.name, adapter)
        assert self.saved_answers is not None
        return self.saved_answers.lookup(prompts)

    def describe_generation(self, sampling: SamplingParams) -> str:
        """How its answers are generated, in words."""
        if self.spec is not None:
            return describe_generation(self.spec.processor, sampling)
        assert self.saved_answers is not None
        return self.saved_answers.generation

    def find_training_overlap(self, prompts: Sequence[EvalPrompt]) -> TrainingOverlap:
        """Which prompts are about images that it was trained on."""
        questions = [prompt.image_paths for prompt in prompts]
        if not self.is_tuned:
            return TrainingOverlap((False,) * len(questions), is_tuned=False)
        return find_training_overlap(self.name, self.run.manifest if self.run else None, questions)

    def check_saved_answers(self, prompts: Sequence[EvalPrompt]) -> list[str]:
        """Warnings about a file's answers, before any model is loaded. Raises LorgnetteError if it lacks some."""
        if self.saved_answers is None:
            return []
        self.saved_answers.lookup(prompts)
        num_by_name = self.saved_answers.num_matched_by_name(prompts)
        note = "answers are matched by image file name, because the images are not at the paths in the file"
        return [f"{self.name}: {num_by_name} of {len(prompts)} {note}"] if num_by_name else []

    def explain_built_in_model(self, prompts: Sequence[EvalPrompt]) -> str:
        """A note if it is the built-in model, and the data are not the demo's own drawings."""
        references = [text for prompt in prompts for text in prompt.references]
        return explain_built_in_model(self.spec.base_model, references) if self.spec else ""

    def load_run_settings(self) -> Settings | None:
        """The settings of the run that trained it."""
        if self.run is None:
            return None
        return config.load_settings(config.read_recipe(self.run.config), where=str(self.run.config))

    @property
    def training_settings(self) -> dict[str, str]:
        """The known training settings, by name: the run's, else those in the adapter's folder."""
        settings = self.load_run_settings()
        if settings is not None:
            return dict(flatten_settings(settings.model_dump(mode="json", exclude={"run", "report_to", "project"})))
        if self.spec is None or self.spec.metadata is None:
            return {}
        metadata = self.spec.metadata
        tree: dict[str, Any] = {"model": metadata.model, "data": {"prompt": metadata.prompt}}
        tree |= metadata.processor.model_dump(mode="json")
        if self.spec.adapter:
            peft = read_peft_config(self.spec.adapter)
            names = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
            tree["lora"] = {name: peft.get(key) for name, key in names.items()}
        return dict(flatten_settings(tree))


def resolve_candidates(
    names: Sequence[str], model: str | None, terminal: Terminal, image_size: str | None = None
) -> list[Candidate]:
    """The candidates that the names stand for. model: the base model, if it is not the one recorded with the adapters;
    without adapters the default is that of `train`. image_size: see `set_answer_size`. Says which model each is."""
    short_names = dict(zip(names, _shorten_names(names), strict=True))
    if len(short_names) < len(names):
        raise UsageError("a candidate is named twice", where=" ".join(names), hint="name each once")
    check_image_size(names, image_size)
    candidates = {
        name: _resolve_candidate(name, short_names[name], model, terminal, image_size) for name in names if name != BASE
    }
    if BASE in names:
        specs = [candidate.spec for candidate in candidates.values() if candidate.spec is not None]
        candidates[BASE] = _build_base_candidate(specs, model, terminal, image_size)
    for name in names:
        if spec := candidates[name].spec:
            terminal.print(f"model      {f'{name}: ' if name != spec.base_model else ''}{spec.title}")
    return [candidates[name] for name in names]


def split_before_after(path: Path) -> list[Candidate]:
    """The base and the fine-tuned model of one file with both answers. Raises UsageError if some are missing."""
    rows = read_predictions(path)
    if any(row.base is None or row.tuned is None for row in rows):
        raise UsageError("nothing to compare with", where=str(path), hint="name a second candidate, such as base")
    before = SavedAnswers.from_rows(str(path), rows, use_base=True)
    name = BASE
    if rows and rows[0].before != BASE_MODEL:  # of a run that continued an adapter
        name, before = rows[0].before, replace(before, is_tuned=True)
    return [Candidate(name, saved_answers=before), _build_file_candidate(path, _shorten_names([str(path)])[0], rows)]


def is_answers_file(name: str) -> bool:
    """True for a file as `predict --out` writes it."""
    return Path(name).is_file() and Path(name).suffix.lower() == ".jsonl"


def check_image_size(names: Sequence[str], image_size: str | None) -> None:
    """Raise UsageError if an image size is given, but nothing is answered: the answers are all in files."""
    if image_size is not None and all(is_answers_file(name) for name in names):
        hint = "leave it out, or name a model"
        raise UsageError("saved answers have an image size already", where=f"--image-size {image_size}", hint=hint)


def _resolve_candidate(
    source: str, name: str, model: str | None, terminal: Terminal, image_size: str | None
) -> Candidate:
    path = Path(source)
    if is_answers_file(source):
        return _build_file_candidate(path, name, read_predictions(path))
    if path.is_file():
        hint = f"name {CANDIDATE_HELP}; the data comes last"
        raise UsageError("not a file of answers (.jsonl)", where=source, hint=hint)
    if not path.exists() and source != "demo" and len(path.parts) == 1:
        raise UsageError("no such run, model or file", where=source, hint=f"name {CANDIDATE_HELP}")
    adapter = resolve_adapter(path)
    # A missing path on this machine is an adapter's, not a name on a hub.
    is_local = path.exists() or path.is_absolute() or (len(path.parts) > 1 and path.parent.exists())
    if adapter == path and ((path / "config.json").is_file() or source == "demo" or not is_local):
        return Candidate(name, spec=set_answer_size(ModelSpec.from_names(source, None, terminal), image_size))
    spec = set_answer_size(load_model_spec(model, adapter, terminal), image_size)
    return Candidate(name, spec=spec, run=RunDir.find_of_adapter(adapter))


def _build_file_candidate(path: Path, name: str, rows: Sequence[PredictionRow]) -> Candidate:
    """A file's answers; of a row with two, the fine-tuned model's."""
    answers = SavedAnswers.from_rows(str(path), rows)
    return Candidate(name, saved_answers=answers, run=RunDir.find_of_adapter(path.parent / "adapter"))


def _build_base_candidate(
    specs: Sequence[ModelSpec], model: str | None, terminal: Terminal, image_size: str | None
) -> Candidate:
    """The base model of the first fine-tuned candidate, with that candidate's processor."""
    tuned = next((spec for spec in specs if spec.metadata is not None), None)
    if tuned is None:
        return Candidate(BASE, spec=set_answer_size(ModelSpec.from_names(model, None, terminal), image_size))
    if tuned.adapter is not None:
        weights_from = None if tuned.is_base_changed else tuned
        return Candidate(BASE, spec=replace(tuned, adapter=None, metadata=None), weights_from=weights_from)
    assert tuned.metadata is not None
    base = ModelSpec.from_names(model or tuned.metadata.model, None, terminal)
    return Candidate(BASE, spec=replace(base, processor=tuned.processor, metadata=None))


def _shorten_names(names: Sequence[str]) -> list[str]:
    """Drop the usual end of a run's path, and of a long path all but two folders. A short name that is ambiguous stays
    whole."""
    stems = [name.rstrip("/").removesuffix("/adapter").removesuffix("/predictions.jsonl") for name in names]
    short_names = [stem if len(stem) <= 24 else "/".join(Path(stem).parts[-2:]) for stem in stems]
    return [short if short_names.count(short) == 1 else name for short, name in zip(short_names, names, strict=True)]


def list_training_prompts(candidates: Sequence[Candidate]) -> list[str]:
    """The distinct prompts that the candidates were trained with, in order."""
    specs = [candidate.spec for candidate in candidates if candidate.spec]
    return list(dict.fromkeys(spec.metadata.prompt for spec in specs if spec.metadata))
