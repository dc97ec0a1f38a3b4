"""The data of a training: base checkpoint, processor, encoded examples.

Everything is checked here, before a run folder is created and before weights are read.
"""

import ctypes
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from lorgnette import data
from lorgnette.config import ProcessorSettings, Settings
from lorgnette.engine.select import select_engine
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.hub.address import is_hub_address
from lorgnette.io.parse import parse_json
from lorgnette.io.paths import split_sources
from lorgnette.metrics.answer_kind import choose_metrics
from lorgnette.metrics.eval_prompts import group_by_prompt
from lorgnette.metrics.labels import find_labels
from lorgnette.metrics.registry import check_best_model_metric, expand_metric_names, get_best_model_metric
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.quantization import list_quantization_remarks
from lorgnette.processing.encode_rows import encode_rows
from lorgnette.processing.encoded_rows import EncodedRows
from lorgnette.processing.processor import Processor
from lorgnette.report.check_report import SplitSummary
from lorgnette.report.console import Terminal
from lorgnette.report.manifest import HASH_LENGTH, compute_sha256, hide_home
from lorgnette.report.trackers.tracker import select_trackers
from lorgnette.resolve import find_model_config, read_rows, resolve_data, resolve_model
from lorgnette.startup import freeze_gc
from lorgnette.training.initial_adapter import check_initial_adapter, hash_adapter
from lorgnette.training.start_warnings import list_start_warnings
from lorgnette.types import ImageGrid, Problem

_FIX_ROW = "fix or remove the row"
MAX_LISTED_INPUTS = 8


@dataclass(frozen=True)
class TrainingData:
    """examples are trained on, held_out are not; problems: rows left out (data.on_bad_row=skip); files: the inputs;
    adapter: the one that the training continues."""

    checkpoint: BaseCheckpoint
    processor: Processor
    examples: EncodedRows
    held_out: EncodedRows
    problems: list[Problem]
    files: tuple[Path, ...]
    adapter: Path | None = None
    _digests: bytearray = field(default_factory=bytearray, repr=False, compare=False)
    """The images' sha256, one after the other, once `hash_images` has been called: 32 bytes for each image."""

    @classmethod
    def load(cls, settings: Settings, terminal: Terminal, *, needs_weights: bool = True) -> "TrainingData":
        """Read, check, split and encode the data. Raises LorgnetteError or UsageError for whatever would fail later.

        needs_weights: otherwise the model's weights need not be there, unless an adapter is checked against them.
        """
        # Settings that need no data.
        select_trackers(settings.report_to)
        get_best_model_metric(settings)
        expand_metric_names(settings.predict.metrics)
        if (hf_config := find_model_config(settings.model)) is not None:
            select_engine(settings, hf_config)
        table = resolve_data(settings, terminal)
        if table is None:
            raise UsageError("no data", where="data.path", hint="name a file: data=captions.csv")

        # Read and split the rows.
        scanned = _read_rows(settings, table, terminal)
        if settings.data.test is not None:
            test = _read_rows(settings, settings.data.test, terminal)
            train_rows, test_rows, scanned = scanned.examples, test.examples, scanned.merge(test)
        else:
            train_rows, test_rows = data.train_test_split(
                scanned.examples, holdout=settings.data.holdout, split=settings.data.split
            )

        # Encode them.
        needs_weights = needs_weights or settings.adapter is not None
        folder = resolve_model(settings.model, terminal, needs_weights=needs_weights)
        checkpoint = BaseCheckpoint.from_folder(folder, needs_weights=needs_weights).quantize(settings.quantization)
        check_initial_adapter(settings, checkpoint, terminal)
        target_remarks = checkpoint.family.list_target_remarks(settings.lora.target_modules, settings.lora.parts)
        weight_remarks = list_quantization_remarks(checkpoint.quantization)
        _return_memory()
        infos = scanned.image_infos

        def read_size(path: Path) -> tuple[int, int]:
            info = infos.get(path)
            return info.size if info else data.read_image_size(path)

        processor = Processor.from_folder(checkpoint.folder, settings.processor, read_size=read_size)
        with freeze_gc(), terminal.show_count("rows encoded", len(train_rows) + len(test_rows)) as on_rows:
            encoded, encoded_test = (encode_rows(processor, rows, on_rows=on_rows) for rows in (train_rows, test_rows))
        examples, held_out = encoded.rows, encoded_test.rows
        scanned.examples.drop_lookup()
        _return_memory()

        # Check the result.
        problems = [*scanned.problems, *encoded.problems, *encoded_test.problems]
        paths = [path for path in (table, settings.data.test) if path is not None]
        files = tuple(dict.fromkeys(source for path in paths for source in split_sources(path)))
        loaded = cls(checkpoint, processor, examples, held_out, problems, files, settings.adapter)
        loaded._check_rows(problems, len(train_rows) + len(test_rows), settings.data.on_bad_row, terminal)
        check_best_model_metric(settings, held_out.conversations)
        for finding in scanned.remarks:
            terminal.warn(str(finding.problem))
        is_auto = settings.data.holdout == "auto" and settings.data.test is None
        train_part, test_part = examples.conversations, held_out.conversations
        for line in SplitSummary.from_examples(train_part, test_part, is_auto=is_auto).advice:
            terminal.warn(line)
        remarks = processor.list_remarks(encoded.num_skipped, encoded.num_flat)
        for line in [*remarks, *target_remarks, *weight_remarks]:
            terminal.print(f"note       {line}")
        for line in list_start_warnings(settings, loaded.iter_references()):
            terminal.warn(line)
        return loaded

    def iter_references(self) -> Iterator[str]:
        """The answers of all rows, first of those that are trained on."""
        return chain(self.examples.conversations.iter_references(), self.held_out.conversations.iter_references())

    def choose_metrics(self, settings: Settings, terminal: Terminal) -> Settings:
        """The settings, with `auto` in predict.metrics replaced by what suits the references of all rows. Prints it."""
        names, parts = settings.predict.metrics, (self.examples.conversations, self.held_out.conversations)
        has_boxes = chain.from_iterable(part.iter_has_boxes() for part in parts)
        choice = choose_metrics(names, ((text,) for text in self.iter_references()), has_boxes)
        if choice.labels:
            choice = choose_metrics(names, [prompt.references for prompt in group_by_prompt(chain(*parts))])
        if not choice.reason:
            return settings
        terminal.print(f"metrics    {choice.describe('predict.metrics=')}")
        predict = settings.predict.model_copy(update={"metrics": choice.names})
        return settings.model_copy(update={"predict": predict})

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, if the answers of all rows are labels."""
        return find_labels((reference,) for reference in self.iter_references())

    @property
    def grids(self) -> list[ImageGrid]:
        """The distinct images."""
        return list(dict.fromkeys([*self.examples.sizes.distinct_grids, *self.held_out.sizes.distinct_grids]))

    @property
    def num_training_images(self) -> int:
        return len({grid.image.path for grid in self.examples.sizes.distinct_grids})

    @property
    def most_common_prompt(self) -> str:
        """The prompt of most examples, used for images without one; "" if there is none."""
        conversations = self.examples.conversations
        prompts = Counter[str]()
        for example, count in conversations.group_by_question():
            if len(example.turns) > 1:
                prompts[example.turns[-2].text] += count
        return prompts.most_common(1)[0][0] if prompts else ""

    def build_eval_processor(self, settings: ProcessorSettings, image_size: Literal["train", "native"]) -> Processor:
        """The processor of the held-out prompts. native: images keep their size, within the base model's limits."""
        if image_size == "train":
            return self.processor
        limits = self.checkpoint.family.native_image_tokens
        native = settings.model_copy(update={"image_size": None, "image_tokens": limits})
        return Processor.from_folder(self.checkpoint.folder, native)

    def hash_inputs(self) -> dict[str, str]:
        """File → sha256, "weights" → the checkpoint's fingerprint, "examples" → a hash of what is trained on.

        The examples depend on all other inputs: tokenizer, chat template, settings of the data.
        """
        files = {str(path): compute_sha256(path) for path in self.files if path.is_file()}
        files |= hash_adapter(self.adapter) if self.adapter else {}
        examples = self._hash_examples()
        _return_memory()
        return files | {"weights": self.checkpoint.fingerprint, "examples": examples}

    def hash_images(self) -> dict[str, str]:
        """Image file → its hash: first the `num_training_images` that are trained on, in the order of the examples."""
        paths = self._list_image_paths()
        with ThreadPoolExecutor(8) as pool:
            hashes = list(pool.map(compute_sha256, paths))
        self._digests[:] = bytes.fromhex("".join(hashes))
        return {str(path): value[:HASH_LENGTH] for path, value in zip(paths, hashes, strict=True)}

    def map_image_digests(self) -> dict[Path, bytes]:
        """Image file → sha256, as `hash_images` found it; empty if it was not called."""
        digests = (bytes(self._digests[start : start + 32]) for start in range(0, len(self._digests), 32))
        return dict(zip(self._list_image_paths(), digests, strict=True)) if self._digests else {}

    def _list_image_paths(self) -> list[Path]:
        return list(dict.fromkeys(grid.image.path for grid in self.grids))

    def select_held_out(self, image_hashes: Mapping[str, str]) -> dict[Path, str]:
        """Held-out image → its hash, from `hash_images`."""
        paths = dict.fromkeys(grid.image.path for grid in self.held_out.sizes.distinct_grids)
        return {path: image_hashes[str(path)] for path in paths}

    def _hash_examples(self) -> str:
        digest = hashlib.sha256(repr(self.processor.image_processor).encode())
        parts = self.examples, self.held_out
        keys = dict.fromkeys(chain.from_iterable(part.list_grid_keys() for part in parts))
        order = {key: number for number, key in enumerate(keys)}
        for part in parts:
            part.update_digest(digest, order)
        return digest.hexdigest()

    def drop_images(
        self, errors: Mapping[ImageGrid, LorgnetteError], on_bad_row: data.OnBadRow, terminal: Terminal
    ) -> "TrainingData":
        """The data without the rows of images that cannot be decoded. Raises LorgnetteError for on_bad_row=error."""
        if not errors:
            return self
        kept, problems = list[EncodedRows](), list[Problem]()
        for part in (self.examples, self.held_out):
            usable = list[int]()
            conversations = part.conversations
            for i, grids in enumerate(part.sizes.iter_grids()):
                grid = next((grid for grid in grids if grid in errors), None)
                if grid is None:
                    usable.append(i)
                    continue
                example, error, path = conversations[i], errors[grid], grid.image.path
                message, hint = f"{error.message} ({path})", error.hint or _FIX_ROW
                problems.append(Problem(example.source, example.row, message, hint, str(path)))
            kept.append(part.select(usable))
        examples, held_out = kept
        problems, digests = self.problems + problems, bytearray()  # of other images
        rest = replace(self, examples=examples, held_out=held_out, problems=problems, _digests=digests)
        rest._check_rows(problems, len(self.examples) + len(self.held_out), on_bad_row, terminal)
        return rest

    def check_unchanged(self, manifest: Path) -> None:
        """Raises LorgnetteError if an input differs from the manifest: a resumed run must be the same run."""
        try:
            content = parse_json(manifest.read_bytes())
            recorded = [dict(content[name].items()) for name in ("sha256", "images")]
        except (OSError, LorgnetteError, KeyError, TypeError, AttributeError) as error:
            reason = error.message if isinstance(error, LorgnetteError) else repr(error)
            message = f"manifest cannot be read: {reason}"
            raise LorgnetteError(message, where=str(manifest), hint="restore it, or start a new run") from None
        changed: list[str] = []
        for before, hashes in zip(recorded, (self.hash_inputs(), self.hash_images()), strict=True):
            now = {hide_home(name): value for name, value in hashes.items()}
            changed += _list_changed(before, now)
        if changed:
            names = [name for name in changed if name != "examples"] or ["the examples (tokens or settings)"]
            more = f" and {len(names) - MAX_LISTED_INPUTS} more" if len(names) > MAX_LISTED_INPUTS else ""
            message, hint = "inputs have changed since the run was started", "restore them, or start a new run"
            raise LorgnetteError(message, where=", ".join(names[:MAX_LISTED_INPUTS]) + more, hint=hint)

    def _check_rows(
        self, problems: Sequence[Problem], num_rows: int, on_bad_row: data.OnBadRow, terminal: Terminal
    ) -> None:
        """Warn of the rows left out. Raises LorgnetteError for on_bad_row=error, or if no example is left."""
        if problems and on_bad_row == "error":
            raise data.build_refusal(problems, num_rows)
        for line in data.format_problems(problems):
            terminal.warn(f"skipped: {line}")
        if not self.examples:
            where, hint = str(self.files[0]), "`lorgnette check` shows why"
            raise LorgnetteError("no example left to train on", where=where, hint=hint)


def _list_changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names with another hash. Files that were moved have other names, and are compared in their order."""
    if before.keys() != now.keys() and len(before) == len(now):
        return [name for (name, value), old in zip(now.items(), before.values(), strict=True) if value != old]
    return [name for name in {**now, **before} if now.get(name) != before.get(name)]


def _return_memory() -> None:
    """Give memory that is free back to the system: glibc keeps what reading a million rows took for the moment."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@freeze_gc()
def _read_rows(settings: Settings, path: Path, terminal: Terminal) -> data.ScanResult:
    """The usable rows of a file, at most data.max_rows.

    A table downloaded from a hub is cut already; a test file is read whole.
    """
    is_whole = is_hub_address(str(settings.data.path)) or path == settings.data.test
    rows = read_rows(settings, path, terminal, max_rows=None if is_whole else settings.data.max_rows)
    on_bad_row, keeps_shape = settings.data.on_bad_row, settings.keeps_shape
    with terminal.show_count("rows read") as on_rows:
        return data.load_usable(rows, on_bad_row=on_bad_row, source=path, keeps_shape=keeps_shape, on_rows=on_rows)
