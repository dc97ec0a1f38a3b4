"""Time answers of our own decoder at 2B's shapes: 256 captions of at most 20 tokens, from features that are there.

    python bench/answers.py JOB --out results.json [--count 256] [--tokens 20] [--rounding] [--budget 300]

JOB is bench/job.py's. The pictures' features are random numbers: the tower is not measured here. Random weights do not
stop, so every answer is `tokens` long. For the base and for the model with its adapter, unmerged: all of it, from
examples to texts, the first time (kernels are compiled, steps recorded) and again; then, device-synchronised, reading
the prompts and each step. The floor of a step is the bytes it cannot but read, weights once and every row's cached keys
and values, at the rate of a copy. --rounding also says where bf16 answers part from fp32's, over 16 prompts. The file
is written after every part; what the budget of seconds cuts off is named in it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from bf16_rounding import compare_greedy
from kept import Kept, device_name
from step import DEVICE, Drawn, profiled

from lorgnette import data
from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.engine.build_decoder import load_decoder
from lorgnette.engine.loading import FastModel
from lorgnette.inference.decode import generate_answers
from lorgnette.inference.hf_generate import SamplingParams
from lorgnette.lora.flat_params import AdapterShape, FlatLoraParams
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.qwen2_vl.config import TextConfig, load_hf_config
from lorgnette.processing.processor import Processor
from lorgnette.types import Encoded, Example, ImageGrid


class Ready(Drawn):
    """Random features, of every picture from the start."""

    def prepare(self, grids: Iterable[ImageGrid]) -> dict[ImageGrid, Exception]:
        self.of(list(grids))
        return {}


def seconds(work: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def bandwidth() -> float:
    """Of a copy of 4 GB, read and written, bytes/s."""
    source = torch.empty(2**31, dtype=torch.bfloat16, device=DEVICE)
    target = torch.empty_like(source)
    target.copy_(source)
    return 5 * 2 * source.nbytes / seconds(lambda: [target.copy_(source) for _ in range(5)])


def model_of(job: Path, lora: LoraSettings, dtype: torch.dtype, features: Any) -> FastModel:
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    shape = AdapterShape(
        TextConfig.from_hf_config(load_hf_config(checkpoint)), lora.target_modules, lora.rank, lora.alpha / lora.rank
    )
    decoder, adapter = load_decoder(checkpoint, shape, DEVICE, dtype), FlatLoraParams(shape, DEVICE)
    adapter.copy_from(FlatLoraParams.init_values(shape, 0))
    torch.manual_seed(0)
    adapter.values.data.add_(torch.randn_like(adapter.values.data), alpha=1e-3)  # B is zero as it is drawn
    adapter.attach(decoder)
    return FastModel(decoder, adapter, features)


def measured(
    model: FastModel, encoder: Processor, examples: list[Example], sampling: SamplingParams, tuned: bool, rate: float
) -> dict[str, Any]:
    torch.cuda.reset_peak_memory_stats()
    name = "tuned" if tuned else None

    def everything() -> None:
        said = list(generate_answers(model, encoder, examples, sampling, adapter=name))
        assert len(said) == len(examples)

    runs = [seconds(everything) for _ in range(6)]
    prompts = [encoder.encode(example, add_generation_prompt=True) for example in examples]
    encoding = seconds(lambda: [encoder.encode(example, add_generation_prompt=True) for example in examples])
    speaker, n = model.speaker, sampling.max_new_tokens
    reading = [seconds(lambda: speaker.prefill(prompts, n, use_adapter=tuned)) for _ in range(5)]
    cache = speaker.prefill(prompts, n, use_adapter=tuned)
    tokens = cache.logits[: len(prompts)].argmax(-1)
    steps = [seconds(lambda: speaker.decode_step(cache, tokens, use_adapter=tuned)) for _ in range(n - 1)]
    cache = speaker.prefill(prompts, n, use_adapter=tuned)
    running = seconds(lambda: [speaker.decode_step(cache, tokens, use_adapter=tuned) for _ in range(n - 1)]) / (n - 1)
    choosing = statistics.median(seconds(lambda: cache.logits.argmax(-1)) for _ in range(5))
    cache = speaker.prefill(prompts, n, use_adapter=tuned)
    kernels = profiled(lambda _: speaker.decode_step(cache, tokens, use_adapter=tuned))
    prefill = profiled(lambda _: speaker.prefill(prompts, n, use_adapter=tuned))
    return {
        "adapter": tuned, "answers": len(examples), "tokens": n, "prompt_tokens": sum(len(p.input_ids) for p in prompts),
        "first_s": runs[0], "again_s": statistics.median(runs[1:]), "runs_s": runs, "encoding_s": encoding,
        "reading_ms": 1000 * statistics.median(reading), "step_ms": 1000 * statistics.median(steps),
        "step_ms_running": 1000 * running, "choosing_ms": 1000 * choosing,
        "floor_ms": 1000 * floor_bytes(model, prompts, n, tuned) / rate,
        "room": [cache.shape.num_rows, cache.shape.num_slots], "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "step_kernels": kernels, "reading_kernels": prefill,
    }  # fmt: skip


def floor_bytes(model: FastModel, prompts: list[Encoded], tokens: int, tuned: bool) -> float:
    """Weights and head once, and the keys and values of every row halfway through its answer."""
    decoder, shape = model.decoder, model.decoder.config
    columns = sum(
        linear.weight.shape[0] * (linear.ext_features if tuned else linear.in_features) for linear in decoder.linears
    )
    if tuned:
        columns += sum((linear.ext_features - linear.in_features) * linear.in_features for linear in decoder.linears)
    rows = sum(len(prompt.input_ids) + tokens / 2 for prompt in prompts)
    kept = rows * shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim
    return (columns + decoder.lm_head.numel() + kept) * decoder.lm_head.element_size()


def parted(job: Path, lora: LoraSettings, model: FastModel, prompts: list[Encoded], tokens: int) -> dict[str, Any]:
    exact = model_of(job, lora, torch.float32, model.features)
    found = compare_greedy(model.speaker, exact.speaker, prompts, tokens, use_adapter=True)
    print(found)
    return {"error": found.error, "median_gap": found.median_gap, "said": str(found).splitlines()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--rounding", action="store_true")
    parser.add_argument("--budget", type=float, default=300, help="seconds everything may take")
    given = parser.parse_args()
    kept = Kept(given.out, ["bench/answers.py"], device_name(), given.budget)
    encoder, lora = Processor.from_folder(given.job / "model", ProcessorSettings()), LoraSettings()
    rows = [row for row in data.read(given.job / "captions.csv") if isinstance(row, Example)]
    examples = list(islice(cycle(rows), given.count))
    features = Ready(
        TextConfig.from_hf_config(load_hf_config(BaseCheckpoint.from_folder(given.job / "model"))).hidden_size
    )
    model, rate = model_of(given.job, lora, torch.bfloat16, features), bandwidth()
    sampling = SamplingParams(max_new_tokens=given.tokens, batch_size=given.count)
    kept.keep(copy_tb_per_s=rate / 1e12)
    runs: list[dict[str, Any]] = []
    took = 0.0
    for tuned in (False, True):
        if not kept.fits(took, "tuned" if tuned else "base"):
            continue
        begun = kept.left
        runs.append(measured(model, encoder, examples, sampling, tuned, rate))
        took = begun - kept.left
        kept.keep(runs=runs)
        print(json.dumps({k: v for k, v in runs[-1].items() if not k.endswith("kernels")}), flush=True)
        for part in ("step_kernels", "reading_kernels"):
            kernels = runs[-1][part]
            print("  ", part, "busy", kernels["busy_ms"], "ms,", kernels["count"])
            for row in kernels["top"][:14]:
                print("     ", *row)
    if given.rounding and kept.fits(took, "rounding"):
        prompts = [encoder.encode(example, add_generation_prompt=True) for example in examples[:16]]
        kept.keep(rounding=parted(given.job, lora, model, prompts, given.tokens))
