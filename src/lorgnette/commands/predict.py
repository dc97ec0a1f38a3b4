"""`predict` and `load`: answers to images or a data file, without and with an adapter."""

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import PIL.Image
from rich.console import Console

from lorgnette import data as data_sets
from lorgnette.commands.answer_settings import select_max_new_tokens, set_answer_size
from lorgnette.commands.arguments import as_name
from lorgnette.data.image_resolver import build_url_error, is_url
from lorgnette.data.memory_rows import encode_image, is_in_memory, write_rows
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.inference.answers import AnswersInterrupted, answer_examples, describe_generation, describe_row_cuts
from lorgnette.inference.loading import LoadedModel, ModelSpec, release_unused_models, resolve_adapter
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.paths import check_writable
from lorgnette.io.shell import escape_line, format_command
from lorgnette.metrics.answer_kind import choose_metrics
from lorgnette.metrics.registry import AUTO, expand_metric_names, uses_boxes
from lorgnette.report.console import Terminal, print_result
from lorgnette.report.draw_boxes import format_box
from lorgnette.report.notebook import Answers
from lorgnette.report.predictions import build_box_record, write_predictions
from lorgnette.report.run import Run
from lorgnette.resolve import check_local_images
from lorgnette.types import Example, PredictionRow, Problem
from lorgnette.verification.judgement import judge_adapter


def predict(
    data: Any,
    *,
    adapter: Path | str | Run | None = None,
    model: Path | str | None = None,
    prompt: str | None = None,
    both: bool = False,
    images_from: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_size: str | None = None,
    out: Path | str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    temperature: float | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> Answers:
    """Answer an image, a folder of images or a data file. Print the answers, and write them to `out` as JSON lines.

    Beside an answer with boxes are these boxes in pixels of the image file.

    The model is loaded for this call; `lorgnette.load` keeps one. data: as in `Model.predict`.
    image_size: native, train, or height and width in pixels ("280x420"). The defaults of image size and max_new_tokens
    are those of the run that trained the adapter. Without a temperature answers are greedy.
    """
    adapter, model = Path(adapter) if adapter else None, os.fspath(model) if model else None
    out = Path(out) if out else None
    if data is None:
        word = adapter or "runs/captions"
        where = f"{adapter} is a run or an adapter" if adapter else "no image is named"
        raise UsageError("which image?", where=where, hint=format_command("predict", "photo.jpg", "--adapter", word))
    if both and adapter is None:
        raise UsageError("--both needs an adapter", hint="name one with --adapter")
    if out is not None:
        check_writable(out, *([] if is_in_memory(data) else [Path(data)]))
    terminal = Terminal(console)
    loaded = Model(set_answer_size(load_model_spec(model, adapter, terminal), image_size), device, terminal)
    terminal.print(f"model      {loaded.spec.title}")
    sampling = loaded.build_sampling(max_new_tokens, batch_size, temperature, top_p, seed)
    loaded.check_both(both)
    questions = loaded.read_questions(data, prompt, images_from, data_sets.ColumnChoice(image_column, caption_column))
    sampling = loaded.expect_boxes(sampling, questions)
    terminal.print(f"answers    {describe_generation(loaded.spec.processor, sampling)}")
    try:
        answers = loaded.answer(questions, sampling, both=both)
    except AnswersInterrupted as interrupted:
        _write_rows(interrupted.rows, both, out)
        terminal.warn(f"only {len(interrupted.rows)} of {interrupted.num_prompts} questions are answered")
        raise
    _write_rows(answers, both, out)
    for note in describe_row_cuts(answers, f"--max-new-tokens {sampling.max_new_tokens}"):
        terminal.warn(note)
    return answers


def load(
    candidate: Path | str | Run = "demo",
    *,
    model: Path | str | None = None,
    image_size: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> "Model":
    """Load a model, and keep it in memory for many questions.

        model = lorgnette.load("runs/captions")
        model.predict("photo.jpg", both=True)

    candidate: a run, an adapter, or a model; `demo` is the built-in model. model: the base model of an adapter, if it
    is not the one recorded with it. image_size: as in `predict`. Raises LorgnetteError if it is missing or broken.
    """
    terminal = Terminal(console)
    base_model = os.fspath(model) if model else None
    loaded = Model(resolve_spec(as_name(candidate), base_model, terminal, image_size), device, terminal)
    _ = loaded.weights
    return loaded


@dataclass(frozen=True)
class Questions:
    """Prompts about images. has_rows: they are the rows of a data set, of which equal prompts are one question.

    folder: of the images that were in memory; it is deleted with the last who uses it.
    """

    examples: Sequence[Example]
    has_rows: bool
    folder: "TemporaryFolder | None" = None


class TemporaryFolder:
    """A folder that is deleted with this object, or when Python ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="lorgnette-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Model:
    """A model that answers questions about images, with or without an adapter. `close` frees its memory."""

    def __init__(self, spec: ModelSpec, device: str = "auto", terminal: Terminal | None = None) -> None:
        """No weights are read before the first question."""
        self.spec, self.device = spec, device
        self._terminal = terminal or Terminal()
        self._weights: LoadedModel | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        adapter = f", adapter={str(self.spec.adapter)!r}" if self.spec.adapter else ""
        return f"<lorgnette.Model {self.spec.base_model!r}{adapter}{', closed' if self._is_closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def weights(self) -> LoadedModel:
        """Read at the first use. Raises LorgnetteError for broken files and after `close`."""
        if self._is_closed:
            raise LorgnetteError("the model is closed", where=self.spec.base_model, hint="load it again")
        if self._weights is None:
            self._weights = self.spec.load(self.device)
        return self._weights

    def close(self) -> None:
        """Free the memory of the model."""
        self._is_closed, self._weights = True, None
        release_unused_models()

    def predict(
        self,
        data: Any,
        *,
        prompt: str | Sequence[str] | None = None,
        both: bool = False,
        images_from: str | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Answers:
        """Answer questions about images.

        data: an image (a path, a PIL.Image or an array of uint8), a list of images, a folder of images, a data file,
        or rows in memory as in `train`. A list of images gets an answer for each, in order.
        prompt: the question, if the data has none, or one for each image of a list; default: that of the adapter's
        training. both: also answer without
        the adapter. images_from: a folder or zip with the images of a data file. max_new_tokens: default: as the
        adapter's run answers. Without a temperature answers are greedy.

        Raises LorgnetteError for images and rows that cannot be read, and if memory is short.
        """
        sampling = self.build_sampling(max_new_tokens, batch_size, temperature, top_p, seed)
        self.check_both(both)
        questions = self.read_questions(data, prompt, images_from)
        answers = self.answer(questions, self.expect_boxes(sampling, questions), both=both)
        for note in describe_row_cuts(answers, f"max_new_tokens={sampling.max_new_tokens}"):
            self._terminal.warn(note)
        return answers

    def build_sampling(
        self, max_new_tokens: int | None, batch_size: int, temperature: float | None, top_p: float, seed: int
    ) -> SamplingParams:
        """How answers are generated. max_new_tokens: default: as the adapter's run answers."""
        limit = select_max_new_tokens(max_new_tokens, [self.spec])
        return SamplingParams(limit, batch_size, temperature, top_p, seed)

    def expect_boxes(self, sampling: SamplingParams, questions: Questions) -> SamplingParams:
        """Boxes get scores if the answers of the data have boxes, or those that the adapter was trained on."""
        answered = [example for example in questions.examples if example.reference]
        references, has_boxes = [[e.reference] for e in answered], [bool(e.reference_boxes) for e in answered]
        names = expand_metric_names(choose_metrics([AUTO], references, has_boxes).names)
        is_trained = self.spec.metadata is not None and self.spec.metadata.predict_boxes
        return replace(sampling, with_boxes=is_trained or uses_boxes(names))

    def check_both(self, both: bool) -> None:
        """Raises UsageError if it cannot answer with and without an adapter."""
        if both and self.spec.adapter is None:
            raise UsageError("it has no adapter", where="both=True", hint="load a run or an adapter")
        if both and self.spec.is_base_changed:
            message, hint = "this adapter changes the base model's own weights", "ask the base model with --model alone"
            raise UsageError(f"{message}: one loaded model cannot answer for both", where="--both", hint=hint)

    def read_questions(
        self,
        data: Any,
        prompt: str | Sequence[str] | None,
        images_from: str | None,
        columns: data_sets.ColumnChoice = data_sets.RECOGNIZED,
    ) -> Questions:
        """The questions of `predict`. Raises LorgnetteError for what cannot be read."""
        if prompt is None:
            prompt = self.spec.metadata.prompt if self.spec.metadata else data_sets.DEFAULT_PROMPT
        folder = check_local_images(images_from)
        data = list(data) if isinstance(data, Iterator) else data
        for source in data if isinstance(data, list | tuple) else [data]:
            if isinstance(source, str | os.PathLike) and is_url(os.fspath(source)):
                raise build_url_error(os.fspath(source))
        if isinstance(data, bytes) or not (
            hasattr(data, "__iter__") or hasattr(data, "__getitem__") or _is_image_or_path(data)
        ):
            hint = "give a path, a PIL.Image, an array of uint8, a list of them, or rows"
            raise UsageError("no images", where=f"a {type(data).__name__}", hint=hint)
        temporary = TemporaryFolder() if is_in_memory(data) else None
        images = [data] if _is_image(data) else data
        if temporary is None or not (isinstance(images, list | tuple) and all(map(_is_image_or_path, images))):
            if not isinstance(prompt, str):
                raise UsageError("several prompts", where="prompt=", hint="give one, or a list with an image for each")
            if temporary is not None:
                data, columns = write_rows(data, temporary.path / "rows", columns=columns).path, data_sets.RECOGNIZED
            file = Path(data)
            examples = read_examples(file, prompt, images_from=folder, columns=columns, terminal=self._terminal)
            return Questions(examples, has_rows=True, folder=temporary)
        if not images:
            raise UsageError("no images", where="an empty list", hint="give paths, PIL images or arrays")
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        if len(prompts) != len(images):
            message = f"{len(prompts)} prompts for {len(images)} images"
            raise UsageError(message, where="prompt=", hint="give one text, or one for each image")
        paths = [_store_image(image, temporary.path / str(number)) for number, image in enumerate(images, start=1)]
        pairs = zip(paths, prompts, strict=True)
        examples = [example for path, text in pairs for example in read_examples(path, text)]
        return Questions(examples, has_rows=False, folder=temporary)

    def answer(self, questions: Questions, sampling: SamplingParams, *, both: bool = False) -> Answers:
        """Raises AnswersInterrupted with what was answered before Ctrl-C."""
        is_tuned = self.spec.adapter is not None
        weights = self.weights
        examples = list(map(self.spec.processor.write_boxes, questions.examples))
        try:
            rows = answer_examples(
                weights, examples, sampling, self._terminal, with_base=both or not is_tuned,
                with_adapter=is_tuned, memory_hint="use a smaller --batch-size",
            )  # fmt: skip
        finally:
            weights.forget_images()  # a file may have other content at the next question
        if not questions.has_rows:
            turns = [example.turns for example in examples]
            by_turns = dict(zip(dict.fromkeys(turns), rows, strict=True))
            rows = [by_turns[key] for key in turns]
        return Answers(rows, keeps=questions.folder)


def resolve_spec(source: str, model: str | None, terminal: Terminal, image_size: str | None = None) -> ModelSpec:
    """The model that a name stands for: a run, an adapter, a folder of weights, a name on a hub. model: the base model
    of an adapter. Raises LorgnetteError if it is missing or broken."""
    path = Path(source)
    adapter = resolve_adapter(path)
    # A missing path on this machine is an adapter's, not a name on a hub.
    is_local = path.exists() or path.is_absolute() or (len(path.parts) > 1 and path.parent.exists())
    if adapter == path and ((path / "config.json").is_file() or source == "demo" or not is_local):
        return set_answer_size(ModelSpec.from_names(source, None, terminal), image_size)
    return set_answer_size(load_model_spec(model, adapter, terminal), image_size)


def load_model_spec(model: str | None, adapter: Path | None, terminal: Terminal) -> ModelSpec:
    """Resolve model and adapter. Warn if the adapter has no metadata of ours. Raises LorgnetteError if it is broken."""
    if adapter is None:
        return ModelSpec.from_names(model, None, terminal)
    spec = judge_adapter(model, adapter, terminal).require(terminal)
    if spec.metadata and not spec.metadata.is_ours:
        height, width = spec.metadata.processor.image_size or (0, 0)
        terminal.warn(
            f"{adapter} has no lorgnette.json: images are resized to {height}×{width} as in the tutorial, and "
            f"{spec.base_model} cannot be checked to be its base model"
        )
    return spec


def read_examples(
    source: Path,
    prompt: str,
    *,
    max_rows: int | None = None,
    images_from: Path | None = None,
    columns: data_sets.ColumnChoice = data_sets.RECOGNIZED,
    needs_answer: bool = False,
    terminal: Terminal | None = None,
) -> list[Example]:
    """Read a data file or folder, an image or a folder of images. `prompt` is used if the data has none. Says which
    columns are read and which keys are not. Raises LorgnetteError for broken rows; with needs_answer, also for rows of
    a data file without an answer."""
    terminal = terminal or Terminal()
    if data_sets.is_dataset(source):
        rows = data_sets.read(
            source, prompt=prompt, max_rows=max_rows, images_from=images_from, columns=columns,
            on_columns=lambda text: terminal.print(f"columns    {text}"),
        )  # fmt: skip
        result = data_sets.load_usable(rows, on_bad_row="skip", source=source, needs_answer=needs_answer)
        examples, problems = list(result.examples), result.problems
        for finding in result.remarks:
            terminal.warn(str(finding.problem))
    elif columns.is_explicit:
        message, hint = "images without a table have no columns", "leave out --image-column and --caption-column"
        raise UsageError(message, where=str(source), hint=hint)
    else:
        images = list(islice(data_sets.read_images(source, prompt=prompt), max_rows))
        examples = [row for row in images if isinstance(row, Example)]
        problems = [row for row in images if isinstance(row, Problem)]
    if problems:
        refusal = data_sets.build_refusal(problems, len(examples) + len(problems))
        raise LorgnetteError(refusal.message, hint="fix or remove these rows, and try again")
    return examples


def _is_image(value: Any) -> bool:
    return isinstance(value, PIL.Image.Image) or hasattr(value, "__array_interface__")


def _is_image_or_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) or _is_image(value)


def _store_image(image: Any, folder: Path) -> Path:
    """The path of an image; one in memory is written into the new folder, under the name of the file it came from."""
    if not _is_image(image):
        return Path(image)
    name = Path(str(getattr(image, "filename", "") or f"image-{folder.name}")).stem
    folder.mkdir()
    path = folder / f"{name}.png"
    path.write_bytes(encode_image(image))
    return path


def _write_rows(rows: Sequence[PredictionRow], both: bool, out: Path | None) -> None:
    if out is not None:  # first: printing may fail
        write_predictions(out, rows)
    for row in rows:
        print_result(_format_row(row, both))


def _format_row(row: PredictionRow, both: bool) -> str:
    if not both:
        boxes = f"\t{json.dumps(list(map(build_box_record, row.answer_boxes)), ensure_ascii=False)}"
        text = json.dumps(row.tuned if row.tuned is not None else row.base, ensure_ascii=False)
        return f"{row.id}\t{text}{boxes if row.answer_boxes else ''}"
    lines = [row.id]
    answers = ("before:", row.shown_base, row.base_boxes), ("after: ", row.shown_tuned, row.tuned_boxes)
    for name, answer, found in answers:
        lines.append(f"  {name} {escape_line(str(answer))}")
        if found:
            lines.append(f"          boxes in pixels of the file: {'; '.join(map(format_box, found))}")
    return "\n".join(lines)
