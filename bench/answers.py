"""Time the generation of our decoder at the shapes of 2B: 256 captions of at most 20 tokens, with features in memory.

    python bench/answers.py JOB --out results.json [--count 256] [--tokens 20] [--rounding] [--budget 300]

JOB is made by bench/job.py. The images' features are random: the vision tower is not measured here. Random weights do
not stop, so every answer has `tokens` tokens. For the base model and for the model with its unmerged adapter: the whole
way from examples to texts, the first time (kernels compile, graphs are captured) and again; then, synchronized, the
prefill and each decode step. The floor of a step is the bytes it has to read, the weights once and the cached keys and
values of every row, at the rate of a copy. --rounding also reports where answers in bf16 diverge from fp32, over 16
prompts. The file is written after every part and lists the parts that the budget leaves out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from machine import DEVICE, HAS_GPU, name_device, time_seconds
from results_file import ResultsFile
from step import RandomFeatures, build_adapter_shape, load_examples, profile_kernels

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine.loading import load_decoder
from lorgnette.inference.decode import generate_answers
from lorgnette.inference.generator import Generator
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, ImageGrid

sys.path.append(str(Path(__file__).parents[1] / "tools"))
from bf16_rounding import compare_greedy


class PreparedFeatures(RandomFeatures):
    """Random features with the method that prepares them."""

    def prepare(self, grids: Iterable[ImageGrid]) -> dict[ImageGrid, Exception]:
        if images := list(grids):
            self.gather(images)
        return {}


def measure_bandwidth() -> float:
    """Bytes/s, read and written, of copies of 4 GB (4 MB without a GPU)."""
    source = torch.empty(2**31 if HAS_GPU else 2**21, dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    return 5 * 2 * source.nbytes / time_seconds(lambda: [target.copy_(source) for _ in range(5)])


def build_generator(job: Path, lora: LoraSettings, dtype: torch.dtype, features: Any) -> Generator:
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    shape = build_adapter_shape(checkpoint, lora)
    decoder, adapter = load_decoder(checkpoint, shape, DEVICE, dtype), FlatLoraParams(shape, DEVICE)
    adapter.copy_from(FlatLoraParams.init_values(shape, 0))
    torch.manual_seed(0)
    adapter.values.data.add_(torch.randn_like(adapter.values.data), alpha=1e-3)  # B is initialized to zero
    adapter.attach(decoder)
    return Generator(decoder, features)


def measure(
    generator: Generator,
    processor: Processor,
    examples: list[Example],
    sampling: SamplingParams,
    use_adapter: bool,
    bandwidth: float,
) -> dict[str, Any]:
    if HAS_GPU:
        torch.cuda.reset_peak_memory_stats()
    adapter_name = "tuned" if use_adapter else None

    def generate_all() -> None:
        answers = list(generate_answers(generator, processor, examples, sampling, adapter=adapter_name))
        assert len(answers) == len(examples)

    def encode_all() -> list[Encoded]:
        return [processor.encode(example, add_generation_prompt=True) for example in examples]

    n = sampling.max_new_tokens
    runs = [time_seconds(generate_all) for _ in range(6)]
    prompts, encoding = encode_all(), time_seconds(encode_all)
    prefill = [time_seconds(lambda: generator.prefill(prompts, n, use_adapter=use_adapter)) for _ in range(5)]
    cache = generator.prefill(prompts, n, use_adapter=use_adapter)
    tokens = cache.logits[: len(prompts)].argmax(-1)

    def decode_step() -> None:
        generator.decode_step(cache, tokens, use_adapter=use_adapter)

    steps = [time_seconds(decode_step) for _ in range(n - 1)]
    cache = generator.prefill(prompts, n, use_adapter=use_adapter)
    queued = time_seconds(lambda: [decode_step() for _ in range(n - 1)]) / (n - 1)
    argmax = statistics.median(time_seconds(lambda: cache.logits.argmax(-1)) for _ in range(5))
    cache = generator.prefill(prompts, n, use_adapter=use_adapter)
    step_kernels = profile_kernels(lambda _: decode_step())
    prefill_kernels = profile_kernels(lambda _: generator.prefill(prompts, n, use_adapter=use_adapter))
    return {
        "adapter": use_adapter, "answers": len(examples), "tokens": n,
        "prompt_tokens": sum(len(p.input_ids) for p in prompts), "first_s": runs[0],
        "again_s": statistics.median(runs[1:]), "runs_s": runs, "encoding_s": encoding,
        "prefill_ms": 1000 * statistics.median(prefill), "step_ms": 1000 * statistics.median(steps),
        "step_ms_queued": 1000 * queued, "argmax_ms": 1000 * argmax,
        "floor_ms": 1000 * count_step_bytes(generator, prompts, n, use_adapter) / bandwidth,
        "cache_shape": [cache.shape.num_rows, cache.shape.num_slots],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if HAS_GPU else None,
        "step_kernels": step_kernels, "prefill_kernels": prefill_kernels,
    }  # fmt: skip


def count_step_bytes(generator: Generator, prompts: list[Encoded], num_tokens: int, use_adapter: bool) -> float:
    """Weights and head once, and the keys and values of every row halfway through its answer."""
    decoder, config = generator.decoder, generator.decoder.config
    linears = list(decoder.linears)
    values = sum(
        linear.weight.shape[0] * (linear.ext_features if use_adapter else linear.in_features) for linear in linears
    )
    if use_adapter:
        values += sum((linear.ext_features - linear.in_features) * linear.in_features for linear in linears)
    cached_tokens = sum(len(prompt.input_ids) + num_tokens / 2 for prompt in prompts)
    values += cached_tokens * config.num_layers * 2 * config.num_kv_heads * config.head_dim
    return (values + decoder.lm_head.numel()) * decoder.lm_head.element_size()


def measure_rounding(
    job: Path, lora: LoraSettings, generator: Generator, prompts: list[Encoded], num_tokens: int
) -> dict[str, Any]:
    exact = build_generator(job, lora, torch.float32, generator.features)
    report = compare_greedy(generator, exact, prompts, num_tokens, use_adapter=True)
    print(report)
    return {"error": report.error, "median_gap": report.median_gap, "report": str(report).splitlines()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/answers.py"], name_device(), arguments.budget)
    processor, lora = (
        Processor.from_folder(arguments.job / "model", ProcessorSettings()),
        LoraSettings(rank=64, alpha=16),
    )
    examples = list(islice(cycle(load_examples(arguments.job)), arguments.count))
    features = PreparedFeatures(BaseCheckpoint.from_folder(arguments.job / "model").load_text_config().hidden_size)
    generator = build_generator(arguments.job, lora, torch.bfloat16, features)
    bandwidth = measure_bandwidth()
    sampling = SamplingParams(max_new_tokens=arguments.tokens, batch_size=arguments.count)
    results.update(copy_tb_per_s=bandwidth / 1e12)
    runs: list[dict[str, Any]] = []
    last = 0.0
    for use_adapter in (False, True):
        if not results.fits(last, "tuned" if use_adapter else "base"):
            continue
        start = results.seconds_left
        runs.append(measure(generator, processor, examples, sampling, use_adapter, bandwidth))
        last = start - results.seconds_left
        results.update(runs=runs)
        print(json.dumps({k: v for k, v in runs[-1].items() if not k.endswith("kernels")}), flush=True)
        for part in ("step_kernels", "prefill_kernels"):
            kernels = runs[-1][part]
            print("  ", part, "busy", kernels["busy_ms"], "ms,", kernels["count"])
            for row in kernels["top"][:14]:
                print("     ", *row)
    if arguments.rounding and results.fits(last, "rounding"):
        prompts = [processor.encode(example, add_generation_prompt=True) for example in examples[:16]]
        results.update(rounding=measure_rounding(arguments.job, lora, generator, prompts, arguments.tokens))
