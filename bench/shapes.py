"""Print which sizes the steps of a training have, which CUDA graphs it captures for them, and what padding costs.

    python bench/shapes.py MODEL DATA.csv [--image-tokens 4 256] [--rows 8000] [--epochs 2]

No GPU and no weights are needed: MODEL has a tokenizer and config.json, of the images only the headers are read. --rows
draws as many rows from those of the file, with repetition. The order of the rows is that of `train`. Passes that are
not replays run eagerly or are captured while the steps run: each costs the host as much as some thousand tokens.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from lorgnette import data
from lorgnette.config import ProcessorSettings, TrainSettings
from lorgnette.engine.batch_shapes import BatchShape, count_capture_tokens, plan_shapes
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.training.sampler import BatchSampler
from lorgnette.training.setup import NUM_EXAMPLES_AHEAD
from lorgnette.types import Encoded, Example


def list_shapes(sampler: BatchSampler, max_tokens: int, *, prefix_sharing: bool) -> list[BatchShape]:
    """Of all micro-batches of the run, in order."""
    return [
        BatchShape.from_batch(batch)
        for step in range(sampler.total_steps)
        for batch in sampler.pack_step(step, max_tokens, prefix_sharing=prefix_sharing)
    ]


def simulate(shapes: list[BatchShape], num_ahead: int, capture_tokens: int) -> dict[str, Any]:
    """What the engine does with these micro-batches. num_ahead: of those that the plan knows."""
    plan = plan_shapes(shapes[:num_ahead], capture_tokens, len(shapes) / min(num_ahead, len(shapes)))
    chosen = [plan.select(shape) for shape in shapes]
    uses = Counter(chosen)
    unplanned = [count for shape, count in uses.items() if shape not in plan.shapes]
    tokens, labels = sum(shape.tokens for shape in shapes), sum(shape.labels for shape in shapes)
    padded, padded_labels = sum(shape.tokens for shape in chosen), sum(shape.labels for shape in chosen)
    return {
        "micro_batches": len(shapes), "tokens": [f(s.tokens for s in shapes) for f in (min, max)],
        "mean_tokens": tokens / len(shapes), "mean_labels": labels / len(shapes), "capture_tokens": capture_tokens,
        "captured_ahead": {shape.tokens: uses[shape] for shape in plan.shapes},
        "eager_passes": len(unplanned), "captured_later": sum(count > 1 for count in unplanned),
        "padding_percent": 100 * (padded / tokens - 1), "label_padding_percent": 100 * (padded_labels / labels - 1),
    }  # fmt: skip


def encode_rows(processor: Processor, path: Path, prompt: str, num_rows: int | None) -> list[Encoded]:
    rows = [row for row in data.read(path, prompt=prompt) if isinstance(row, Example)]
    encoded = [processor.encode(row) for row in rows]
    return encoded if num_rows is None else random.Random(0).choices(encoded, k=num_rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--prompt", default="Write this formula in LaTeX.")
    parser.add_argument("--image-tokens", type=int, nargs=2, help="least and most; without, images are 280×280")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prefix-sharing", action="store_true", help="as at dropout 0")
    arguments = parser.parse_args()
    own: dict[str, Any] = {"image_size": None, "image_tokens": arguments.image_tokens} if arguments.image_tokens else {}
    processor = Processor.from_folder(arguments.model, ProcessorSettings(**own))
    encoded = encode_rows(processor, arguments.data, arguments.prompt, arguments.rows)
    settings = TrainSettings(batch_size=arguments.batch_size, epochs=arguments.epochs)
    sampler = BatchSampler(encoded, settings, arguments.seed, group_by_image=False)
    longest = max(len(row.input_ids) for row in encoded)
    shapes = list_shapes(
        sampler, max(settings.max_tokens_per_microbatch, longest), prefix_sharing=arguments.prefix_sharing
    )
    text = BaseCheckpoint.from_folder(arguments.model, needs_weights=False).load_text_config()
    num_ahead = max(1, round(len(shapes) * NUM_EXAMPLES_AHEAD / (sampler.total_steps * arguments.batch_size)))
    print(json.dumps(simulate(shapes, num_ahead, count_capture_tokens(text)), indent=1))
