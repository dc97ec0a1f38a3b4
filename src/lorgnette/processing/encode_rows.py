"""Encodes all rows of a data set, many in forked processes; the result is the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from lorgnette.data.example_table import ExampleTable
from lorgnette.data.image_table import ImageTable
from lorgnette.errors import LorgnetteError
from lorgnette.io.processes import count_processes, map_in_processes
from lorgnette.processing.encoded_rows import EncodedRows, RowBuffers
from lorgnette.processing.processor import Processor
from lorgnette.types import Problem

MIN_SHARED_ROWS = 8192
"""Fewer rows are encoded in this process."""
_BLOCK_SIZE = 4096
"""Rows that another process encodes at once."""
_FIX_ROW = "fix or remove the row"


@dataclass(frozen=True, slots=True)
class EncodeResult:
    """rows: those that can be encoded; problems: of the others. num_skipped: answers that are not learned, though the
    data wants it; num_flat: boxes without area in the model's numbers."""

    rows: EncodedRows
    problems: list[Problem]
    num_skipped: int
    num_flat: int


@dataclass(slots=True)
class _EncodedBlock:
    """Some rows. used: the numbers, among all examples, of those that were encoded. with_boxes: of those that have
    boxes, which `written` has as the model writes them."""

    buffers: RowBuffers
    used: list[int] = field(default_factory=list)
    with_boxes: list[int] = field(default_factory=list)
    written: ExampleTable = field(default_factory=ExampleTable)
    problems: list[Problem] = field(default_factory=list)
    num_skipped: int = 0
    num_flat: int = 0

    def extend(self, block: "_EncodedBlock") -> None:
        self.buffers.extend(block.buffers)
        self.used += block.used
        self.with_boxes += block.with_boxes
        self.written.extend(block.written)
        self.problems += block.problems
        self.num_skipped += block.num_skipped
        self.num_flat += block.num_flat


def encode_rows(
    processor: Processor, examples: ExampleTable, *, on_rows: Callable[[int], None] = lambda count: None
) -> EncodeResult:
    """Encode the examples. Those that cannot be encoded are problems, in the order of the examples.

    on_rows: is told of rows that are encoded.
    """
    blocks = [range(i, min(i + _BLOCK_SIZE, len(examples))) for i in range(0, len(examples), _BLOCK_SIZE)]
    num_processes = count_processes() if len(examples) > MIN_SHARED_ROWS else 1
    total = _EncodedBlock(RowBuffers(examples.images))
    encoded = map_in_processes(partial(_encode_block, processor, examples), blocks, num_processes)
    for numbers, block in zip(blocks, encoded, strict=True):
        on_rows(len(numbers))
        total.extend(block)
    conversations = examples if len(total.used) == len(examples) else examples.select(total.used)
    if total.with_boxes:
        written = dict(zip(total.with_boxes, total.written, strict=True))
        conversations = ExampleTable(written.get(number) or examples[number] for number in total.used)
    rows = EncodedRows.from_buffers(
        conversations, total.buffers, processor.image_token_id, processor.compute_position_ids
    )
    return EncodeResult(rows, total.problems, total.num_skipped, total.num_flat)


def _encode_block(processor: Processor, examples: ExampleTable, numbers: range) -> _EncodedBlock:
    block, rows = _EncodedBlock(RowBuffers(examples.images)), examples.select(numbers)
    images, ends = (values.tolist() for values in rows.list_image_numbers())
    for number, example, start, end in zip(numbers, rows, ends[:-1], ends[1:], strict=True):
        try:
            row = processor.encode_row(example)
        except LorgnetteError as error:
            block.problems.append(Problem(example.source, example.row, error.message, error.hint or _FIX_ROW))
            continue
        block.buffers.add(row, images[start:end])
        block.used.append(number)
        block.num_skipped += row.num_skipped
        if row.example is not example:
            block.with_boxes.append(number)
            block.written.add(row.example)
            block.num_flat += processor.count_flat_boxes(example)
    block.buffers.grids.images = ImageTable()  # not to be sent: they are those of all examples
    return block
