"""The model of a teaching session: it suggests answers, and learns from those that a person gives.

    open     weights, adapter and the features of all images, once, as `lorgnette train` builds them
    suggest  answers of the adapter that the last good round made, or of the model before any round
    train    a round: the adapter's first values, then steps over all answers as `lorgnette train` takes them

A round remembers nothing of the rounds before it: its adapter is a function of the answers and the settings, and
`lorgnette train` makes the same one of captions.csv, bit for bit in float32 on a CPU. A round that fails leaves the
adapter of the last good one. One thread uses a Learner.
"""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32

from lorgnette.config import Settings
from lorgnette.data.formats.captions import build_examples
from lorgnette.data.row_location import RowLocation
from lorgnette.engine.select import select_engine
from lorgnette.errors import LorgnetteError
from lorgnette.inference.loading import (
    LoadedModel,
    build_metadata,
    describe_out_of_memory,
    explain_out_of_memory,
    is_out_of_memory,
    release_unused_models,
)
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.metrics.answer_kind import choose_metrics
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import has_known_sizes
from lorgnette.planning.memory import GIB, EngineName, Workload, predict_memory
from lorgnette.processing.encoded_rows import EncodedRows, TextRow
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.report.stage_timer import StageTimer
from lorgnette.resolve import find_model_config, parse_model_name, resolve_model
from lorgnette.server.text_stream import TextStream
from lorgnette.training.auto_steps import NUM_RECENT
from lorgnette.training.data_module import TrainingData
from lorgnette.training.initial_adapter import check_initial_adapter, find_origin
from lorgnette.types import IGNORE_INDEX, Encoded, Example, Image, ImageGrid, Prediction

if TYPE_CHECKING:
    import torch

    from lorgnette.training.setup import TrainingSetup
    from lorgnette.training.trainer import NotFiniteError, StepReport, Trainer

T = TypeVar("T")
RoundErrorKind = Literal["memory", "loss", "other"]
StepCallback = Callable[[int, int, float], None]
"""(step from 1, steps at most, loss of the step)"""
TextCallback = Callable[[int, str], bool]
"""(place among the images asked for, the suggestion so far) → whether it goes on."""

_PLACEHOLDER = "A small pink star above a small red boat, with nothing else to be seen around them. " * 3
"""The answer of every image before there is one: about 60 tokens, for which memory is planned."""
_MEMORY_HINT = "use a smaller image_size or lora.rank, or free some memory; the answers are kept"
_NO_SAVES = 10**9


@dataclass(frozen=True)
class Answer:
    """What a person wrote. image: its index in the list of images."""

    image: int
    text: str


@dataclass(frozen=True)
class ModelSuggestion:
    """surety: the mean log-probability of the text's tokens and the end token."""

    text: str
    surety: float


@dataclass(frozen=True)
class RoundResult:
    """loss: nats per label, the mean of the last steps. end_reason: `auto_steps.EndReason`."""

    steps: int
    loss: float
    seconds: float
    end_reason: str


class RoundError(LorgnetteError):
    """A round failed, and the adapter is that of the last good round. images: those it is about, by index."""

    def __init__(
        self,
        message: str,
        kind: RoundErrorKind,
        *,
        where: str | None = None,
        hint: str | None = None,
        images: Sequence[int] = (),
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.kind, self.images = kind, tuple(images)


class RoundStopped(Exception):  # noqa: N818
    """`should_stop` ended a round, and the adapter is that of the last good round."""


@dataclass(frozen=True)
class _Steps:
    """The steps of a good round. loss, end_reason: as of RoundResult; values: of the adapter."""

    number: int
    loss: float
    end_reason: str
    values: Mapping[str, "torch.Tensor"]


@dataclass
class _OpenModel:
    """What `Learner.open` builds. sample: of the adapter's folder; first_values: of the adapter, before any round."""

    setup: "TrainingSetup"
    answering: LoadedModel
    sample: Encoded
    first_values: Mapping[str, "torch.Tensor"]
    max_tokens: int
    """Of a micro-batch. Fewer after a round was short of memory."""


class Learner:
    """title: the model's name for people."""

    def __init__(self, settings: Settings, images: Sequence[Path], terminal: Terminal) -> None:
        """Find the model, and check what can be checked without its weights. A model on a hub is downloaded.

        images: those that may be asked about and answered. Raises LorgnetteError or UsageError.
        """
        self._settings, self._images, self._terminal = settings, list(images), terminal
        if (hf_config := find_model_config(settings.model)) is not None:
            select_engine(settings, hf_config)
        folder = resolve_model(settings.model, terminal)
        self._checkpoint = BaseCheckpoint.from_folder(folder).quantize(settings.quantization)
        check_initial_adapter(settings, self._checkpoint, terminal)
        self._processor = Processor.from_folder(self._checkpoint.folder, settings.processor)
        self.title = _build_title(settings)
        self.feature_means: Float32[np.ndarray, "N C"] = np.zeros((len(self._images), 0), np.float32)
        """The mean of each image's feature rows, once opened; 0 for those that cannot be read."""
        self._broken: frozenset[int] = frozenset()
        self._model: _OpenModel | None = None
        self._tuned: tuple[Mapping[str, torch.Tensor], AdapterMetadata] | None = None

    def open(self, on_progress: Callable[[int, int], None]) -> dict[int, LorgnetteError]:
        """Read the weights and compute the features of all images.

        on_progress: (images that have features, all images). Returns the images that cannot be read, by index. Raises
        LorgnetteError if none can, or if the weights are broken or do not fit into memory.
        """
        import torch

        from lorgnette.device import select_device, select_dtype
        from lorgnette.training.setup import build_training
        from lorgnette.verification.reference_sample import make_sample

        settings = self._settings
        data, errors = self._build_data()
        device = select_device(settings.device)
        dtype = select_dtype(settings.dtype, device)
        num_done = 0

        def count_images(count: int, note: str = "") -> None:
            nonlocal num_done
            num_done += count
            on_progress(len(errors) + num_done, len(self._images))

        hint = "use a smaller image_size, or --device cpu"
        # Future warnings are for the developers of libraries.
        with explain_out_of_memory(hint), warnings.catch_warnings(action="ignore", category=FutureWarning):
            sample = make_sample(self._processor, settings.data.prompt)
            setup = build_training(
                _skip_bad_rows(settings), data, device, dtype, resume_from=None, extra_grids=sample.grids,
                timer=StageTimer(self._terminal), terminal=self._terminal, on_image=count_images,
            )  # fmt: skip
            for problem in setup.data.problems:
                errors[problem.row - 1] = LorgnetteError(problem.fact, where=problem.where, hint=problem.hint)
            processor = data.build_eval_processor(settings.processor, settings.predict.image_size)
            answering = LoadedModel(setup.model, processor)
            max_tokens = setup.max_tokens_per_microbatch
            self._model = _OpenModel(setup, answering, sample, setup.copy_adapter(), max_tokens)
            self._broken = frozenset(errors)
            with torch.no_grad():
                self._compute_feature_means()
        return errors

    def suggest(
        self, images: Sequence[int], *, tuned: bool, on_text: TextCallback | None = None
    ) -> list[ModelSuggestion]:
        """Answer for each of these images, with how sure the model is.

        tuned: with the adapter of the last good round; otherwise as the model answers before any round. on_text: is
        called while a suggestion grows, and ends it where it stands by returning False. Raises LorgnetteError for an
        image that cannot be read, or if memory is short.
        """
        import torch

        from lorgnette.device import leave_core_free

        model = self._require_open()
        examples = [self._build_question(image) for image in images]
        is_swapped = self._tuned is not None and not tuned
        if is_swapped:
            model.setup.load_adapter(model.first_values)
        # The page needs a core at the same time. A round uses all, as `train`: its sums depend on their number.
        cores = leave_core_free() if model.setup.features.device.type == "cpu" else nullcontext()
        try:
            with explain_out_of_memory(_MEMORY_HINT), torch.no_grad(), cores:
                texts = self._generate(examples, on_text)
                sureties = self._compute_sureties(examples, texts)
        finally:
            if is_swapped:
                self._load_values()
        return [ModelSuggestion(*pair) for pair in zip(texts, sureties, strict=True)]

    def train(
        self, answers: Sequence[Answer], *, on_step: StepCallback, should_stop: Callable[[], bool]
    ) -> RoundResult:
        """Train a new adapter on all these answers, in this order.

        Raises RoundError if the round fails, and RoundStopped after should_stop; `suggest` then uses the adapter of the
        last good round. Out of memory, a round begins once more, with all that suggestions keep given back.
        """
        from lorgnette.training.trainer import NotFiniteError

        start, rows = time.perf_counter(), self._encode_answers(answers)
        steps: _Steps | None = None
        shortage = ""
        for _ in range(2):
            try:
                steps = self._take_steps(rows, on_step, should_stop)
                break
            except NotFiniteError as error:
                self._load_values()
                raise self._explain_loss(error, answers) from error
            except BaseException as error:
                if not is_out_of_memory(error):
                    self._load_values()
                    raise
                shortage = describe_out_of_memory(error)
            self._release_memory()  # now that no traceback holds the tensors of the round
        if steps is None:
            self._load_values()
            message = f"not enough memory for a round: {shortage}{self._measure_shortage(rows)}"
            raise RoundError(message, "memory", where="memory", hint=_MEMORY_HINT)
        self._tuned = steps.values, self._describe_adapter([answer.text for answer in answers], steps.number)
        return RoundResult(steps.number, steps.loss, time.perf_counter() - start, steps.end_reason)

    def save(self, folder: Path) -> None:
        """Write the adapter of the last good round, with its metadata and reference sample, in place of the folder's
        content. Raises LorgnetteError if it cannot be written, or if there was no good round."""
        from lorgnette.io.atomic import atomic_folder
        from lorgnette.lora.peft_files import write_adapter
        from lorgnette.verification.reference_sample import record_sample

        model = self._require_open()
        if self._tuned is None:
            raise LorgnetteError("there is no adapter yet", where=str(folder), hint="tune once, then save")
        values, metadata = self._tuned
        sample = record_sample(model.setup.engine, model.sample, self._processor, metadata.prompt)
        with atomic_folder(folder) as temporary:
            write_adapter(temporary, values, self._checkpoint.family, self._settings.lora, metadata)
            sample.save(temporary)

    def load(self, folder: Path) -> None:
        """Take the adapter of an earlier round from its folder. Raises LorgnetteError if it is broken or another's."""
        from lorgnette.lora.peft_files import SavedAdapter, check_tensors

        model, state = self._require_open(), SavedAdapter.load(folder).state
        check_tensors(state, {name: tuple(value.shape) for name, value in model.first_values.items()}, folder)
        self._tuned = state, AdapterMetadata.load(folder)
        self._load_values()

    def close(self) -> None:
        """Free the model's memory. Features that are not on disk yet are written first."""
        if self._model is None:
            return
        error = self._model.setup.features.close()
        if error is not None:
            self._terminal.warn(f"image features are not cached on disk: {error}")
        self._model = None
        release_unused_models()

    def _require_open(self) -> _OpenModel:
        assert self._model is not None, "open the learner first"
        return self._model

    def _build_data(self) -> tuple[TrainingData, dict[int, LorgnetteError]]:
        """(all images with a placeholder for the answer, those whose size cannot be read)"""
        errors, rows = dict[int, LorgnetteError](), list[TextRow]()
        for index in range(len(self._images)):
            try:
                rows.append(self._processor.encode_row(self._build_example(Answer(index, _PLACEHOLDER))))
            except LorgnetteError as error:
                errors[index] = error
        folder = Path(os.path.commonpath([path.absolute().parent for path in self._images] or [Path.cwd()]))
        if not rows:
            raise LorgnetteError("no image can be read", where=str(folder), hint="`lorgnette check` says why")
        examples, none = self._join_rows(rows), self._join_rows([])
        files, adapter = (folder,), self._settings.adapter
        return TrainingData(self._checkpoint, self._processor, examples, none, [], files, adapter), errors

    def _join_rows(self, rows: Sequence[TextRow]) -> EncodedRows:
        processor = self._processor
        return EncodedRows.from_rows(rows, processor.image_token_id, processor.compute_position_ids)

    def _build_example(self, answer: Answer) -> Example:
        """The example that a row of captions.csv would be. Raises LorgnetteError for an empty answer."""
        image, settings = Image(self._images[answer.image]), self._settings.data
        row = answer.image + 1
        location = RowLocation(image.path, row, row, prompt=settings.prompt, trim=settings.trim)
        [example] = build_examples(image, answer.text, location, name="caption", id_=location.id)
        return example

    def _build_question(self, image: int) -> Example:
        if image in self._broken:
            raise LorgnetteError("this image cannot be read", where=str(self._images[image]), hint="skip it")
        return self._build_example(Answer(image, _PLACEHOLDER)).without_answer()

    def _encode_answers(self, answers: Sequence[Answer]) -> EncodedRows:
        """Raises RoundError for an answer that cannot be trained on; it names the image."""
        if not answers:
            raise RoundError("there is no answer to train on", "other", hint="answer an image first")
        rows = list[TextRow]()
        for answer in answers:
            try:
                self._build_question(answer.image)
                rows.append(self._processor.encode_row(self._build_example(answer)))
            except LorgnetteError as error:
                where, images = self._images[answer.image].name, [answer.image]
                raise RoundError(error.message, "other", where=where, hint=error.hint, images=images) from error
        return self._join_rows(rows)

    def _load_values(self) -> None:
        """Put the adapter of the last good round in place, or its first values."""
        model = self._require_open()
        model.setup.load_adapter(model.first_values if self._tuned is None else self._tuned[0])

    def _generate(self, examples: Sequence[Example], on_text: TextCallback | None) -> list[str]:
        from lorgnette.inference.sampling import SamplingParams

        model, predict = self._require_open(), self._settings.predict
        sampling = SamplingParams(max_new_tokens=predict.max_new_tokens, batch_size=predict.batch_size)
        watcher = _TextWatcher(model.answering.processor, len(examples), on_text) if on_text else None
        on_tokens = watcher.add_tokens if watcher else None
        generate = partial(model.answering.generate_answers, examples, sampling, adapter="tuned", on_tokens=on_tokens)
        predictions = self._try_twice(lambda: list(generate()))
        return watcher.choose_texts(predictions) if watcher else [prediction.text for prediction in predictions]

    def _compute_sureties(self, examples: Sequence[Example], texts: Sequence[str]) -> list[float]:
        """The mean log-probability of each text's tokens and its end token."""
        import torch

        from lorgnette.processing.packing import split_into_microbatches

        model, processor = self._require_open(), self._processor
        rows = [
            _append_answer(processor.encode(example, add_generation_prompt=True), processor, text)
            for example, text in zip(examples, texts, strict=True)
        ]
        engine, longest = model.setup.engine, max((len(row.input_ids) for row in rows), default=0)
        max_tokens, sharing = max(model.max_tokens, longest), engine.eval_prefix_sharing
        batches = split_into_microbatches(rows, max_tokens, prefix_sharing=sharing) if rows else []
        losses = self._try_twice(lambda: [engine.compute_label_losses(batch) for batch in batches])
        if not losses:
            return []
        parts = torch.split(torch.cat(losses).cpu(), [row.num_labels for row in rows])
        return [-part.mean().item() for part in parts]

    def _compute_feature_means(self) -> None:
        """Fill `feature_means`; the device is read once for many images."""
        import torch

        features, grids = self._require_open().setup.features, dict[int, Sequence[ImageGrid]]()
        for index in range(len(self._images)):
            if index not in self._broken:
                grids[index] = self._processor.encode(self._build_question(index), add_generation_prompt=True).grids
        means = [features.gather(grid).float().mean(0) for grid in grids.values()]
        if means:
            table = torch.stack(means).cpu().numpy()
            self.feature_means = np.zeros((len(self._images), table.shape[1]), np.float32)
            self.feature_means[list(grids)] = table

    def _try_twice(self, work: Callable[[], list[T]]) -> list[T]:
        """What `work` returns; out of memory it runs once more, with all that is kept for later given back."""
        import torch

        with suppress(torch.OutOfMemoryError):
            return work()
        self._release_memory()  # now that no traceback holds its tensors
        return work()

    def _release_memory(self) -> None:
        """Free what rounds and suggestions keep for the next: CUDA graphs, their memory, KV caches."""
        model = self._require_open()
        model.answering.release_memory()
        model.setup.release_memory()

    def _measure_shortage(self, rows: EncodedRows) -> str:
        """What a step of the longest row needs of the GPU's memory, and what is there; "" if that is no shortage, and
        without a GPU."""
        from lorgnette.device import measure_available_bytes
        from lorgnette.engine.loading import FastModel

        setup, config = self._require_open().setup, self._checkpoint.load_hf_config()
        device = setup.features.device
        if device.type != "cuda" or not has_known_sizes(config):
            return ""
        longest, sizes = int(rows.sizes.lengths.argmax()), rows.sizes
        largest = int(sizes.lengths[longest]), int(sizes.num_labels[longest])
        engine: EngineName = "fast" if isinstance(setup.model, FastModel) else "reference"
        workload = Workload.from_settings(self._settings, config, engine, largest, [], setup.data.grids)
        needed, free = predict_memory(workload).peak_bytes, measure_available_bytes(device)
        if needed <= free:  # it is in pieces, or another process had it
            return ""
        return f"; about {needed / GIB:.1f} GiB are needed in all, {free / GIB:.1f} GiB are there"

    def _explain_loss(self, error: "NotFiniteError", answers: Sequence[Answer]) -> RoundError:
        images = list(dict.fromkeys(answers[i].image for i in error.rows))
        message = f"{error.message.partition(':')[0]}: the loss is not finite"
        hint = "try again with a lower train.learning_rate, or with dtype=float32"
        where = ", ".join(self._images[image].name for image in images)
        return RoundError(message, "loss", where=where, hint=hint, images=images)

    def _take_steps(self, rows: EncodedRows, on_step: StepCallback, should_stop: Callable[[], bool]) -> "_Steps":
        """Train from the first values."""
        import torch

        from lorgnette.engine.loss_scale import INITIAL_LOSS_SCALE
        from lorgnette.training.sampler import BatchSampler
        from lorgnette.training.trainer import Trainer

        model, settings = self._require_open(), self._settings
        engine = model.setup.engine
        model.setup.load_adapter(model.first_values)
        engine.flat_grad.zero_()
        if engine.loss_scale is not None:
            engine.loss_scale.fill_(INITIAL_LOSS_SCALE)
        train = settings.train.model_copy(update={"save_steps": _NO_SAVES})
        sampler = BatchSampler(rows, train, settings.seed, group_by_image=settings.data.group_by_image)
        trainer = Trainer(engine, sampler, (), train, max(model.max_tokens, int(rows.sizes.lengths.max())))
        callbacks = _RoundCallbacks(trainer, on_step, should_stop, model.answering.release_memory)
        torch.manual_seed(settings.seed)  # PEFT's dropout begins as after `build_training`
        is_finished = trainer.train(callbacks)
        model.max_tokens = min(model.max_tokens, trainer.max_tokens_per_microbatch)
        if not is_finished:
            raise RoundStopped
        reason = trainer.auto_steps.end_reason if trainer.auto_steps else "limit"
        return _Steps(trainer.step, callbacks.recent_loss, reason, model.setup.copy_adapter())

    def _describe_adapter(self, texts: Sequence[str], steps: int) -> AdapterMetadata:
        """The metadata that `lorgnette train` writes for these answers."""
        settings = self._settings
        names = choose_metrics(settings.predict.metrics, [(text,) for text in texts]).names
        predict = settings.predict.model_copy(update={"metrics": names})
        settings = settings.model_copy(update={"predict": predict})
        origin = find_origin(settings.adapter) if settings.adapter else None
        metadata = build_metadata(settings, self._checkpoint, self._processor)
        return metadata.model_copy(update={"step": steps, "origin": origin})


class _RoundCallbacks:
    """Reports steps, and frees what suggestions keep when memory is short. It writes nothing."""

    def __init__(
        self,
        trainer: "Trainer",
        on_step: StepCallback,
        should_stop: Callable[[], bool],
        release_memory: Callable[[], None],
    ) -> None:
        self._trainer, self._on_step, self._release_memory = trainer, on_step, release_memory
        self.should_stop = should_stop
        self._losses: deque[float] = deque(maxlen=NUM_RECENT)

    @property
    def recent_loss(self) -> float:
        return fmean(self._losses)

    def on_step_end(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        self._on_step(step, self._trainer.total_steps, loss)

    def on_out_of_memory(self, step: int, max_tokens: int, rank: int) -> None:
        self._release_memory()

    def on_evaluate(self, step: int, loss: float) -> float:
        return loss

    def on_log(self, report: "StepReport") -> None: ...
    def on_new_best(self, step: int) -> None: ...
    def on_save(self, step: int, state: dict[str, Any]) -> None: ...
    def on_skipped_step(self, step: int, loss_scale: float) -> None: ...


class _TextWatcher:
    """Turns the tokens of growing suggestions into texts, and keeps those that the callback has ended."""

    def __init__(self, processor: Processor, count: int, on_text: TextCallback) -> None:
        self._streams = [TextStream(processor) for _ in range(count)]
        self._texts, self._ended, self._on_text = [""] * count, set[int](), on_text

    def add_tokens(self, index: int, ids: Sequence[int]) -> bool:
        """ids: all tokens of the suggestion so far."""
        stream = self._streams[index]
        self._texts[index] += stream.add(ids[stream.num_tokens :])
        goes_on = self._on_text(index, self._texts[index])
        if not goes_on:
            self._ended.add(index)
        return goes_on

    def choose_texts(self, predictions: Sequence[Prediction]) -> list[str]:
        """The texts: whole, or as they were when the callback ended them."""
        return [
            text if index in self._ended and not prediction.is_complete else prediction.text
            for index, (text, prediction) in enumerate(zip(self._texts, predictions, strict=True))
        ]


def _skip_bad_rows(settings: Settings) -> Settings:
    """The settings with which images that cannot be decoded are left out."""
    return settings.model_copy(update={"data": settings.data.model_copy(update={"on_bad_row": "skip"})})


def _append_answer(prompt: Encoded, processor: Processor, text: str) -> Encoded:
    """The prompt with a text and its end token as labels, as the model would have generated them."""
    from lorgnette.inference.generator import find_next_position

    answer = np.array([*processor.tokenizer.encode(text), processor.eos_token_id], np.int32)
    positions = find_next_position(prompt) + np.arange(len(answer), dtype=np.int32)
    return replace(
        prompt,
        input_ids=np.concatenate([prompt.input_ids, answer]),
        labels=np.concatenate([np.full(len(prompt.input_ids), IGNORE_INDEX, np.int32), answer]),
        position_ids=np.concatenate([prompt.position_ids, np.tile(positions, (3, 1))], 1),
    )


def _build_title(settings: Settings) -> str:
    """The model's name, without its owner."""
    name = "the built-in model" if settings.model == "demo" else Path(parse_model_name(settings.model)[0]).name
    return f"{name} in NF4" if settings.quantization else name
