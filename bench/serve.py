"""Compare `lorgnette serve` with `predict`: time a token, time to the first token, memory, equal answers.

    python bench/serve.py JOB --out results.json [--tokens 64] [--built-in] [--budget 300]

JOB is made by bench/job.py; with --built-in this program makes it, of the built-in model and drawn scenes. The parts:

    predict   `generate_answers` at batch 1 and 32, images read and encoded anew, with an adapter
    served    the command in a process of its own, asked by users in other processes: 1, 8 and 32 users at once, 32 who
              ask four times each, tuned and base of one image at once
    served-4  the same with four adapters, and another adapter at every other request
    batch     the decode steps alone, without HTTP: 1, 8 and 32 rows of an adapter, of the base model, and of both
    adapters  1, 2 and 4 adapters: memory of the decoder, and the step of 8 rows
    equal     answers of rows that share steps, beside those of `predict`: where they part, the distance of the two
              logits in fp32, and the error of the logits in bf16

A user's time a token is that between the first token and the last, divided by the tokens after the first. Each request
has another image. The file is written after every part and lists the parts that the budget leaves out.
"""

import argparse
import gc
import itertools
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, Int64
from job import BUILT_IN
from machine import DEVICE, HAS_GPU, describe_machine, name_device, time_seconds
from process import FailedError, end
from results_file import ResultsFile
from torch import Tensor

from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.device import select_dtype
from lorgnette.engine.loading import build_features, load_decoder_with_adapters, load_fast_model
from lorgnette.inference.continuous_batch import ContinuousBatch, DecodeRow
from lorgnette.inference.decode import generate_tokens
from lorgnette.inference.generator import Generator
from lorgnette.inference.loading import LoadedModel, ModelSpec
from lorgnette.inference.sampling import SamplingParams
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.lora.metadata import AdapterMetadata
from lorgnette.lora.peft_files import SavedAdapter, write_adapter
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.processing.processor import Processor
from lorgnette.report.console import Terminal
from lorgnette.types import Encoded, Example, Image, Prediction, Turn

HERE = Path(__file__).parent
LORA = LoraSettings(rank=64, alpha=16)
PROMPT = "COCO Yes:"
NUM_ADAPTERS = 4
PARTS = ("predict", "served", "equal", "served-4", "batch", "adapters")
PREDICT_RUNS = ((1, 8), (32, 3)) if HAS_GPU else ((1, 3), (32, 1))
"""Batch sizes, and how often."""
NUM_CLIENTS = 8
"""Processes of users: with four users each they take a small part of a core."""
START_LIMIT_S = 120
Figures = dict[str, Any]
Texts = dict[str, str]
"""Answers by the path of their image."""


# The job


def make_built_in_job(job: Path, count: int) -> None:
    """The built-in model, and drawn scenes as images."""
    shutil.copytree(BUILT_IN, job / "model")
    (job / "images").mkdir()
    rng = random.Random(0)
    for i in range(count):
        draw_scene(sample_scene(rng)).save(job / "images" / f"{i:06}.jpg", quality=95)


def name_all_tokens(model: Path) -> None:
    """Give names to the ids that the tokenizer does not have: random answers then are as long as true ones."""
    config = json.loads((model / "config.json").read_text())
    vocabulary = json.loads((model / "vocab.json").read_text())
    tokens = json.loads((model / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    first, size = max(*map(int, tokens), *vocabulary.values()) + 1, config.get("text_config", config)["vocab_size"]
    (model / "vocab.json").write_text(json.dumps(vocabulary | {f"Ġw{id_}": id_ for id_ in range(first, size)}))


def write_adapters(job: Path, num_tokens: int, side: int) -> list[Path]:
    """Adapters with random factors. side: of an image, in pixels."""
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    processor = Processor.from_folder(job / "model", ProcessorSettings(image_size=(side, side)))
    shape = AdapterShape.from_settings(checkpoint.load_text_config(), LORA)
    metadata = AdapterMetadata(
        family=checkpoint.family.model_type, model=str(job / "model"), revision=None,
        fingerprint=checkpoint.fingerprint, prompt=PROMPT, chat_template=processor.chat_template.source,
        processor=processor.settings, predict_max_new_tokens=num_tokens,
    )  # fmt: skip
    folders = [job / "adapters" / f"tuned{number}" for number in range(NUM_ADAPTERS)]
    for number, folder in enumerate(folders):
        folder.mkdir(parents=True, exist_ok=True)
        params = FlatLoraParams(shape, DEVICE)
        params.copy_from(FlatLoraParams.init_values(shape, 0))
        generator = torch.Generator(DEVICE).manual_seed(number)
        params.values.data.add_(torch.randn(params.values.shape, generator=generator, device=DEVICE), alpha=1e-2)
        write_adapter(folder, params.copy_to_cpu(), checkpoint.family, LORA, metadata)
    return folders


class Images:
    """Questions about the images of a job. first: those of all who are compared; `take` gives others, each another
    until all were used."""

    def __init__(self, job: Path) -> None:
        paths = sorted((job / "images").glob("*.jpg"))
        turns = [(Turn("user", (Image(path), PROMPT)),) for path in paths]
        self.examples = [Example(f"{row}", turn, job, row) for row, turn in enumerate(turns, start=1)]
        self.first = self.examples[:32]
        self._endless = itertools.cycle(self.examples[32:] or self.first)

    def take(self, count: int) -> list[Example]:
        return list(itertools.islice(self._endless, count))


def get_image_path(example: Example) -> str:
    return str(next(part.path for part in example.turns[0].parts if isinstance(part, Image)))


# What `predict` takes


def measure_predict(model: LoadedModel, images: Images, num_tokens: int, batch_size: int, repeats: int) -> Figures:
    """Batches of new images, read and encoded anew: seconds of the whole answers, and of their first tokens."""
    predictions: list[Prediction] = []

    def answer(examples: list[Example], length: int) -> float:
        model.forget_images()
        sampling = SamplingParams(max_new_tokens=length, batch_size=batch_size)
        return time_seconds(lambda: predictions.extend(model.generate_answers(examples, sampling, adapter="tuned")))

    for length in (num_tokens, num_tokens, 1):  # kernels compile, graphs are captured
        answer(images.examples[:batch_size], length)
    taken = [images.take(batch_size) for _ in range(repeats)]
    first = [answer(examples, 1) for examples in taken]
    predictions.clear()
    whole = [answer(examples, num_tokens) for examples in taken]
    counts = [count_tokens(model.processor, prediction, num_tokens) for prediction in predictions]
    steps = statistics.mean(max(counts[i : i + batch_size]) - 1 for i in range(0, len(counts), batch_size))
    return {
        "answers": len(counts), "tokens": sum(counts), "tokens_per_s": sum(counts) / sum(whole),
        "ms_per_token": 1000 * (statistics.mean(whole) - statistics.mean(first)) / max(1, steps),
        "first_s": statistics.median(first), "whole_s": statistics.median(whole),
    }  # fmt: skip


def count_tokens(processor: Processor, prediction: Prediction, limit: int) -> int:
    """Tokens of an answer without its end token. An answer that was cut off has as many as it may; a random text has
    more by its letters."""
    return min(len(processor.tokenizer.encode(prediction.text)), limit) if prediction.is_complete else limit


# The command, and its users in other processes


class Service:
    """`lorgnette serve` in a process of its own, and processes of its users."""

    def __init__(self, port: int, clients: list["subprocess.Popen[str]"]) -> None:
        self._port, self._clients = port, clients

    def ask(self, users: Sequence[Sequence[Figures]]) -> list[Figures]:
        """Let all users begin at once; each asks its questions one after another. Raises FailedError if an answer is
        not whole."""
        start, shares = time.monotonic() + 0.3, [users[i :: len(self._clients)] for i in range(len(self._clients))]
        busy = [(client, share) for client, share in zip(self._clients, shares, strict=True) if share]
        for client, share in busy:
            assert client.stdin is not None
            client.stdin.write(json.dumps({"port": self._port, "start": start, "users": share}) + "\n")
            client.stdin.flush()
        answers: list[Figures] = []
        for client, _ in busy:
            assert client.stdout is not None
            answers += json.loads(client.stdout.readline())
        for answer in answers:
            if answer["status"] != 200 or not answer["complete"] or not answer["tokens"]:
                raise FailedError(f"an answer is not whole: {answer}")
        return answers


@contextmanager
def start_service(job: Path, adapters: Sequence[Path]) -> Iterator[Service]:
    """Raises FailedError if the server does not start."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "lorgnette", "serve", *(f"{path.name}={path}" for path in adapters)]
    command += ["--model", str(job / "model"), "--port", str(port)]
    log = job / "serve.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, process_group=0)
    clients: list[subprocess.Popen[str]] = []
    try:
        wait_until_ready(port, server, log)
        for _ in range(min(NUM_CLIENTS, os.cpu_count() or 1)):
            client = [sys.executable, str(HERE / "chat_clients.py")]
            clients.append(subprocess.Popen(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        yield Service(port, clients)
    finally:
        for started in clients:
            started.kill()
            started.wait()
        server.send_signal(signal.SIGINT)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            print("the server does not end by itself", flush=True)
        end(server)


def wait_until_ready(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise FailedError(f"the server is not ready\n{log.read_text(errors='replace')[-3000:]}")


def build_questions(examples: Sequence[Example], model: str, num_tokens: int) -> list[Figures]:
    return [
        {"model": model, "image": get_image_path(example), "prompt": PROMPT, "max_tokens": num_tokens}
        for example in examples
    ]


def summarize(answers: Sequence[Figures]) -> Figures:
    """Figures of answers that were asked together: tokens/s of all, medians of each one's times."""
    begin, finish = min(a["asked"] for a in answers), max(a["asked"] + a["last_s"] for a in answers)
    tokens = sum(a["tokens"] for a in answers)
    return {
        "answers": len(answers), "tokens": tokens, "tokens_per_s": tokens / (finish - begin),
        "ms_per_token": statistics.median(map(compute_ms_per_token, answers)),
        "first_s": statistics.median(a["first_s"] for a in answers), "first_s_max": max(a["first_s"] for a in answers),
        "whole_s": statistics.median(a["last_s"] for a in answers),
        "tokens_per_chunk": tokens / sum(a["chunks"] for a in answers),
    }  # fmt: skip


def compute_ms_per_token(answer: Figures) -> float:
    return 1000 * (answer["last_s"] - answer["first_s"]) / max(1, answer["tokens"] - 1)


def measure_users(service: Service, images: Images, model: str, num_tokens: int) -> Figures:
    """1, 8 and 32 users who ask once at once, and 32 who ask four times each."""

    def measure(num_users: int, num_answers: int, repeats: int) -> Figures:
        runs = []
        for _ in range(repeats):
            questions = build_questions(images.take(num_answers), model, num_tokens)
            runs.append(summarize(service.ask([questions[i::num_users] for i in range(num_users)])))
        return {name: statistics.median(run[name] for run in runs) for name in runs[0]}

    return {
        "1 user": measure(1, 8, 1), "8 users": measure(8, 8, 3), "32 users": measure(32, 32, 3),
        "32 users, 4 times": measure(32, 128, 1),
    }  # fmt: skip


def measure_pairs(service: Service, images: Images, model: str, num_tokens: int) -> Figures:
    """Base model and adapter asked about one image at the same time."""
    runs = []
    for example in images.take(6):
        runs += service.ask([build_questions([example], name, num_tokens) for name in (model, "base")])
    by_model = [[run for run in runs if run["model"] == name] for name in (model, "base")]
    return {
        "ms_per_token": statistics.median(map(compute_ms_per_token, runs)),
        "first_s": [statistics.median(run["first_s"] for run in own) for own in by_model],
        "alike": sum(a["text"] == b["text"] for a, b in zip(*by_model, strict=True)) / 6,
    }


def measure_changes(service: Service, images: Images, models: Sequence[str]) -> Figures:
    """Seconds to the first token of one user who asks every adapter twice in turn: changed adapters, and the same."""
    names = [name for name in models for _ in range(2)] * 6
    examples = images.take(len(names))
    questions = [q for pair in zip(examples, names, strict=True) for q in build_questions([pair[0]], pair[1], 4)]
    first = [answer["first_s"] for answer in service.ask([questions])][2 * len(models) :]
    changed, same = statistics.median(first[::2]), statistics.median(first[1::2])
    return {"same_first_s": same, "changed_first_s": changed, "change_ms": 1000 * (changed - same)}


def count_gpu_memory() -> float | None:
    """GiB in use on the GPU, by all processes."""
    if not HAS_GPU:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) / 1024


# The decode steps alone


def build_batch(job: Path, adapters: Sequence[Path], prompts: "Prompts") -> ContinuousBatch:
    """A decoder with these adapters."""
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    saved = [SavedAdapter.load(path) for path in adapters]
    decoder, ranks = load_decoder_with_adapters(checkpoint, saved, DEVICE, select_dtype("auto", DEVICE))
    return ContinuousBatch(Generator(decoder, prompts.features), ranks)


class Prompts:
    """Encoded examples, and the features of their images."""

    def __init__(self, job: Path, examples: Sequence[Example]) -> None:
        checkpoint = BaseCheckpoint.from_folder(job / "model")
        settings = AdapterMetadata.load(job / "adapters" / "tuned0").processor
        processor = Processor.from_folder(checkpoint.folder, settings)
        self.encoded = [processor.encode(example, add_generation_prompt=True) for example in examples]
        self.features = build_features(
            checkpoint, processor.image_processor, DEVICE, select_dtype("auto", DEVICE)
        )  # fmt: skip
        for error in self.features.prepare(grid for prompt in self.encoded for grid in prompt.grids).values():
            raise error


def time_steps(
    batch: ContinuousBatch, prompts: Sequence[Encoded], adapters: Sequence[int | None], num_tokens: int
) -> float:
    """Milliseconds a step of rows that begin and end together."""
    sampling = SamplingParams(max_new_tokens=num_tokens)
    seconds = 0.0
    for _ in range(2):  # graphs are captured the first time
        pairs = zip(prompts, itertools.cycle(adapters), strict=False)
        rows = [DecodeRow(prompt, adapter, sampling) for prompt, adapter in pairs]
        waiting = list(rows)
        while waiting:
            batch.join(taken := batch.select(waiting))
            waiting = [row for row in waiting if row not in taken]
        batch.step()
        seconds = time_seconds(lambda: [batch.step() for _ in range(num_tokens - 2)])
        for row in rows:
            batch.leave(row)
    return 1000 * seconds / (num_tokens - 2)


def measure_batch(job: Path, adapters: Sequence[Path], prompts: Prompts, num_tokens: int) -> list[Figures]:
    batch = build_batch(job, adapters, prompts)
    mixes: dict[str, list[int | None]] = {"tuned": [0], "base": [None], "base and tuned": [None, *range(len(adapters))]}
    return [
        {
            "rows": rows,
            "adapters": len(adapters),
            "mix": name,
            "ms": time_steps(batch, prompts.encoded[:rows], mix, num_tokens),
        }
        for rows in (1, 8, 32)
        for name, mix in mixes.items()
        if rows > 1 or len(mix) == 1
    ]


def measure_adapters(job: Path, adapters: Sequence[Path], prompts: Prompts, num_tokens: int) -> list[Figures]:
    """Memory of decoders with no adapter and with more and more, and the step of eight rows."""
    runs = []
    for count in (0, 1, 2, 4):
        gc.collect()
        before = torch.cuda.memory_allocated() if HAS_GPU else 0
        batch = build_batch(job, adapters[:count], prompts)
        used = torch.cuda.memory_allocated() - before if HAS_GPU else None
        ms = time_steps(batch, prompts.encoded[:8], [None, *range(count)], num_tokens)
        change_ms = time_changes(batch, prompts.encoded[0], count) if count > 1 else None
        runs.append({"adapters": count, "gib": used and used / 2**30, "ms": ms, "change_ms": change_ms})
        del batch
    return runs


def time_changes(batch: ContinuousBatch, prompt: Encoded, num_adapters: int) -> float:
    """Milliseconds to an answer's first token that another adapter than that of the answer before costs."""
    sampling = SamplingParams(max_new_tokens=1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(10 * num_adapters):
        row = DecodeRow(prompt, number // 2 % num_adapters, sampling)
        joined = time_seconds(partial(batch.join, [row]))
        seconds[number % 2 == 0].append(joined + time_seconds(batch.step))
        batch.leave(row)
    return 1000 * (statistics.median(seconds[True]) - statistics.median(seconds[False]))


# Whether answers are equal


def measure_equality(job: Path, adapters: Sequence[Path], prompts: Prompts, num_tokens: int) -> Figures:
    """Rows of base and adapters that join four at a time, beside the same answers one by one, as of `predict`."""
    sampling = SamplingParams(max_new_tokens=num_tokens)
    rows = [DecodeRow(prompt, 0 if i % 2 else None, sampling) for i, prompt in enumerate(prompts.encoded)]
    shared = collect_tokens(build_batch(job, adapters[:2], prompts), rows, num_tokens)
    alone = build_generator(job, adapters[0], prompts.features)
    parted: dict[bool, list[tuple[Encoded, list[int], int]]] = {False: [], True: []}
    num_equal = 0
    for row in rows:
        use_adapter = row.adapter is not None
        answer = generate_tokens(alone, [row.prompt], pick_likeliest, num_tokens, [], use_adapter=use_adapter)
        tokens = answer[0].tolist()
        place = next((i for i, pair in enumerate(zip(shared[row], tokens, strict=True)) if pair[0] != pair[1]), None)
        num_equal += place is None
        if place is not None:
            parted[use_adapter].append((row.prompt, [*tokens[: place + 1], shared[row][place]], place))
    exact = build_generator(job, adapters[0], prompts.features, torch.float32)
    partings = [
        compare_logits(alone, exact, *answer, use_adapter=use_adapter)
        for use_adapter, answers in parted.items() for answer in answers
    ]  # fmt: skip
    unexplained = sum(parting["gap"] > 2 * parting["max_error"] for parting in partings)
    return {"answers": len(rows), "equal": num_equal, "unexplained": unexplained, "partings": partings}


def pick_likeliest(logits: Float32[Tensor, "B V"], _: int) -> Int64[Tensor, " B"]:
    return logits.argmax(-1)


def collect_tokens(batch: ContinuousBatch, rows: Sequence[DecodeRow], num_tokens: int) -> dict[DecodeRow, list[int]]:
    """Tokens of rows of which four more join every five steps, and each leaves at its last token."""
    tokens: dict[DecodeRow, list[int]] = {row: [] for row in rows}
    waiting = list(rows)
    for number in itertools.count():
        if number % 5 == 0 and waiting:
            batch.join(taken := batch.select(waiting[:4]))
            waiting = [row for row in waiting if row not in taken]
        for row, token in batch.step():
            tokens[row].append(token)
            if len(tokens[row]) == num_tokens:
                batch.leave(row)
        if not waiting and all(len(own) == num_tokens for own in tokens.values()):
            return tokens
    raise AssertionError


def build_generator(job: Path, adapter: Path, features: Any, dtype: torch.dtype | None = None) -> Generator:
    checkpoint = BaseCheckpoint.from_folder(job / "model")
    dtype = dtype or select_dtype("auto", DEVICE)
    return Generator(load_fast_model(checkpoint, SavedAdapter.load(adapter), features, dtype).decoder, features)


def compare_logits(
    rounded: Generator, exact: Generator, prompt: Encoded, tokens: list[int], place: int, *, use_adapter: bool
) -> Figures:
    """The logits of the two tokens at the place where answers part. tokens: those before it, and the two."""
    logits = []
    for generator in (rounded, exact):
        cache = generator.prefill([prompt], len(tokens), use_adapter=use_adapter)
        for token in tokens[:place]:
            token_ids = torch.tensor([token], device=generator.device)
            generator.decode_step(cache, token_ids, use_adapter=use_adapter)
        logits.append(cache.logits[0].clone())
    error = logits[0] - logits[1]
    first, second = tokens[place:]
    return {
        "token": place, "gap": abs((logits[1][first] - logits[1][second]).item()),
        "rms_error": error.square().mean().sqrt().item(), "max_error": error.abs().max().item(),
    }  # fmt: skip


def count_equal(first: Texts, second: Texts) -> Figures:
    """Answers of two to the same images."""
    both = first.keys() & second.keys()
    return {"answers": len(both), "equal": sum(first[image] == second[image] for image in both)}


class Comparison:
    """The parts of the program, by the names above. texts: of the first 32 images, by who answered."""

    def __init__(self, job: Path, num_tokens: int, side: int) -> None:
        self.job, self.num_tokens, self.images = job, num_tokens, Images(job)
        name_all_tokens(job / "model")
        self.adapters = write_adapters(job, num_tokens, side)
        self.first = self.images.first
        self.texts: dict[str, Texts] = {}
        self.runs: dict[str, tuple[float, Callable[[], Any]]] = {
            "predict": (20, self.run_predict), "served": (40, self.run_service), "equal": (20, self.run_equality),
            "served-4": (40, self.run_adapters),
            "batch": (20, lambda: measure_batch(job, self.adapters, Prompts(job, self.first), num_tokens)),
            "adapters": (20, lambda: measure_adapters(job, self.adapters, Prompts(job, self.first), num_tokens)),
        }  # fmt: skip
        """Part → the seconds that it takes, about, and what returns its figures."""

    def run(self, parts: Sequence[str], results: ResultsFile) -> None:
        for name in parts:
            seconds, run = self.runs[name]
            if not results.fits(seconds, name):
                continue
            start = time.monotonic()
            try:
                figures = run()
            except Exception as error:  # the other parts are measured all the same
                traceback.print_exc()
                figures = {"failed": str(error)}
            results.update(**{name: figures})
            print(f"{name}, {time.monotonic() - start:.0f} s: {json.dumps(figures)}", flush=True)
            gc.collect()
            if HAS_GPU:
                torch.cuda.empty_cache()
        results.update(targets=compare_targets(results.figures))
        print(json.dumps(results.figures["targets"], indent=1))

    def run_predict(self) -> Figures:
        model = ModelSpec.from_names(str(self.job / "model"), self.adapters[0], Terminal()).load("auto")
        figures = {
            f"batch {n}": measure_predict(model, self.images, self.num_tokens, n, repeats)
            for n, repeats in PREDICT_RUNS
        }
        for batch_size in (1, 32):
            self.texts[f"predict, batch {batch_size}"] = answer_all(model, self.first, self.num_tokens, batch_size)
        return figures

    def run_service(self) -> Figures:
        before, start = count_gpu_memory(), time.monotonic()
        with start_service(self.job, self.adapters[:1]) as service:
            figures: Figures = {"start_s": time.monotonic() - start}
            self.warm(service)
            figures |= measure_users(service, self.images, self.adapters[0].name, self.num_tokens)
            figures["base and tuned"] = measure_pairs(service, self.images, self.adapters[0].name, self.num_tokens)
            after = count_gpu_memory()
        return figures | {"gib": None if before is None or after is None else after - before}

    def run_adapters(self) -> Figures:
        names = [path.name for path in self.adapters]
        with start_service(self.job, self.adapters) as service:
            self.warm(service)
            figures = measure_users(service, self.images, names[0], self.num_tokens)
            return figures | measure_changes(service, self.images, names)

    def warm(self, service: Service) -> None:
        """Let kernels compile and graphs be captured."""
        for num_users in (1, 8, 32, 32, 1):
            questions = build_questions(self.first[:num_users], self.adapters[0].name, self.num_tokens)
            answers = service.ask([questions[i::num_users] for i in range(num_users)])
            self.texts[f"served, {num_users} users"] = {answer["image"]: answer["text"] for answer in answers}

    def run_equality(self) -> Figures:
        """Of the texts, and token by token."""
        compared = [name for name in self.texts if name not in ("served, 1 users", "served, 8 users")]
        of_texts = {
            f"{a} and {b}": count_equal(self.texts[a], self.texts[b]) for a, b in itertools.combinations(compared, 2)
        }
        rows = measure_equality(self.job, self.adapters, Prompts(self.job, self.first), self.num_tokens)
        return {"texts": of_texts, "rows": rows}


def answer_all(model: LoadedModel, examples: Sequence[Example], num_tokens: int, batch_size: int) -> Texts:
    sampling = SamplingParams(max_new_tokens=num_tokens, batch_size=batch_size)
    answers = model.generate_answers(examples, sampling, adapter="tuned")
    return {get_image_path(answer.example): answer.text for answer in answers}


def compare_targets(figures: Figures) -> Figures:
    """What is asked for: one user at most 1.15 times the time a token of `predict` at batch 1, 32 users at least 0.6 of
    its tokens/s at batch 32, and a change of adapters in at most 5 ms."""
    predict, served, adapters = figures.get("predict", {}), figures.get("served", {}), figures.get("adapters")
    if "batch 1" not in predict or "1 user" not in served:
        return {}
    one, many = served["1 user"], served["32 users"]
    return {
        "one_user_times_predict": one["ms_per_token"] / predict["batch 1"]["ms_per_token"],
        "one_user_whole_times_predict": one["whole_s"] / predict["batch 1"]["whole_s"],
        "32_users_share_of_predict": many["tokens_per_s"] / predict["batch 32"]["tokens_per_s"],
        "change_ms": adapters[-1]["change_ms"] if isinstance(adapters, list) else None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--built-in", action="store_true", help="make JOB of the built-in model")
    parser.add_argument("--parts", default=",".join(PARTS), help="names from above, in this order")
    parser.add_argument("--budget", type=float, default=300, help="seconds for everything")
    arguments = parser.parse_args()
    results = ResultsFile(arguments.out, ["bench/serve.py"], name_device(), arguments.budget)
    if arguments.built_in:
        make_built_in_job(arguments.job, 160)
    results.update(machine=describe_machine(), tokens=arguments.tokens)
    side = 112 if arguments.built_in else 280
    Comparison(arguments.job, arguments.tokens, side).run(arguments.parts.split(","), results)
