"""One GPU and several in the same call: steps, sharded layers, whole trainings, a model larger than a card, a peer.

    python bench/gpus.py WORK --out results.json [--parts steps,shards,job,coco,small,peer] [--gpus 2] [--budget 600]

    steps    optimizer steps of 2B and 7B with random weights and features, on rank 0 alone and on all (gpu_steps.py)
    shards   7B's layers whole on every GPU and sharded over all, at the same tokens for each GPU
    job      the tutorial's training by the command line, from the start of its process to its adapter
    coco     an epoch over 8,000 generated images with five captions each, grouped: image features and steps
    small    7B where this process holds so much of every GPU that one alone has no room for weights and adapter: the
             losses of several with sharded layers beside those of one whole GPU
    peer     transformers and PEFT under torchrun, 64 samples in a step

Steps are timed by the trainer: medians of 16 after 8 that warm up. WORK needs 25 GB. Parts run in the order given; each
has a limit, and the file is written after it with all that it has measured until then. --make makes the files of WORK
alone; the next call with the same parts uses them. --tiny: two small layers; without a GPU the ranks are processes on
the CPU, and the figures mean nothing.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import epoch
import gpu_steps
import job
import nf4
import process
import torch
import training_run
from cards import open_silent_console
from compare import write_resized
from families import LORA
from machine import HAS_GPU, name_device
from results_file import ResultsFile

import lorgnette
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.planning.memory import GIB, compute_usable_bytes
from lorgnette.report import run_log

HERE = Path(__file__).parent
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
JOB_MODEL = "Qwen2-VL-2B"
NUM_JOBS = 3
"""On each number of GPUs; the first compiles kernels."""
NUM_COCO_IMAGES, CAPTIONS_PER_STEP = 8000, 256
SMALL_MODEL = "Qwen2-VL-7B"
SMALL = {
    "image_size": "280", "lora.rank": 64, "train.max_steps": 6, "train.batch_size": 16, "train.logging_steps": 1,
    "data.holdout": 4, "predict.max_new_tokens": 4, "report_to": "none",
}  # fmt: skip
PEER_SAMPLES, PEER_STEPS = 64, 16
NOTE = "made.json"
"""Written into WORK by --make."""
SECONDS = {
    "steps": (50, 90), "shards": (45, 75), "job": (60, 100), "coco": (70, 140), "small": (60, 110), "peer": (60, 90)
}  # fmt: skip
"""No part starts with less time left than the first figure; none takes longer than the second."""
OUTSIDE_BYTES = int(0.81 * GIB)
"""What a training on an H100 takes outside torch; the plan counts 1 GiB as the card's."""


class Bench:
    """The folder of all parts, the number of GPUs, and whether models are tiny.

    Each `measure_` method adds to `figures`, so that what it has measured before an error is kept. limit: seconds.
    """

    def __init__(self, work: Path, num_gpus: int, parts: list[str], *, tiny: bool) -> None:
        self.work, self.num_gpus, self.parts, self.tiny = work, num_gpus, parts, tiny

    def choose_gpus(self, count: int) -> list[str]:
        """Words of the command line: where there is no GPU, processes on the CPU."""
        return [f"gpus={count}", *([] if HAS_GPU else ["device=cpu"])]

    def open_environment(self) -> dict[str, str]:
        """No image features are left from a training before; compiled kernels are."""
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        folders = {"XDG_CACHE_HOME": self.work / "cache", "TRITON_CACHE_DIR": self.work / "kernels"}
        return os.environ | {name: str(folder) for name, folder in folders.items()}

    @property
    def num_coco_images(self) -> int:
        return 24 if self.tiny else NUM_COCO_IMAGES

    @property
    def num_peer_samples(self) -> int:
        return 4 if self.tiny else PEER_SAMPLES

    def make_files(self) -> None:
        """Images, captions, and the models that need files."""
        job.make_images(self.work, 20 if self.tiny else 500)
        if "coco" in self.parts:
            epoch.make_data(self.work, self.num_coco_images)
        if "peer" in self.parts:
            write_resized(self.work, self.work / "resized", 280)
            keep_whole_steps(self.work / "resized" / "captions.csv", self.num_peer_samples)
        if {"steps", "shards"}.intersection(self.parts):
            for name in gpu_steps.MODELS:
                nf4.make_job(self.work, name, tiny=self.tiny)
        if {"job", "coco", "peer"}.intersection(self.parts):
            job.make_model(self.work / "model", job.BUILT_IN, JOB_MODEL, tiny=self.tiny)
        if "small" in self.parts:
            job.make_model(self.work / "large", job.BUILT_IN, SMALL_MODEL, tiny=self.tiny)
        hold_all_but(None)

    def measure_ranks(self, figures: dict[str, Any], limit: float) -> None:
        """Steps and shards by torchrun."""
        out, parts = self.work / "ranks.json", [part for part in self.parts if part in ("steps", "shards")]
        command = [
            *LAUNCHER, f"--nproc-per-node={self.num_gpus}", str(HERE / "with_own_card.py"), str(HERE / "gpu_steps.py"),
            str(self.work), f"--out={out}", f"--parts={','.join(parts)}", *(["--tiny"] if self.tiny else []),
        ]  # fmt: skip
        try:
            process.run(command, self.work / "ranks.txt", limit, environment=self.open_environment())
        finally:
            figures |= json.loads(out.read_text()) if out.exists() else {"measured": []}
            figures |= compare_steps(figures["measured"])

    def measure_job(self, figures: dict[str, Any], limit: float) -> None:
        """Seconds of the tutorial's training, on one GPU and on several in turns."""
        end, runs = time.monotonic() + limit, list[dict[str, Any]]()
        figures["runs"] = runs
        tiny = ["train.max_steps=6", "train.batch_size=2", "train.logging_steps=1", "predict.max_new_tokens=4"]
        words = tiny if self.tiny else ["train.logging_steps=5"]
        for number in range(1 if self.tiny else NUM_JOBS):
            for count in (1, self.num_gpus):
                words_of_run, environment = [*words, *self.choose_gpus(count)], self.open_environment()
                start = time.time()
                run = training_run.run(self.work, self.work / "job", words_of_run, end - time.monotonic(), environment)
                saved = (self.work / "job" / "adapter").stat().st_ctime - start  # when the folder got its name
                runs.append({"gpus": count, "number": number, "saved_s": saved, **run})
                print("job", json.dumps(runs[-1]), flush=True)
        later = [run for run in runs if run["number"] > 0] or runs
        saved_s = {
            count: statistics.median(run["saved_s"] for run in later if run["gpus"] == count)
            for count in (1, self.num_gpus)
        }
        figures |= {"saved_s": saved_s, "speedup": saved_s[1] / saved_s[self.num_gpus]}

    def measure_coco(self, figures: dict[str, Any], limit: float) -> None:
        """One GPU makes the features beside the steps, several make them before: `epoch_s` has both."""
        end, size = time.monotonic() + limit, 8 if self.tiny else CAPTIONS_PER_STEP
        num_steps = -(-5 * self.num_coco_images // size)
        words = ["data.group_by_image=true", "train.logging_steps=1", f"train.batch_size={size}"]
        figures |= {"images": self.num_coco_images, "steps": num_steps}
        for count in (1, self.num_gpus):
            os.environ |= self.open_environment()
            name = f"coco-{count}"
            words_of_run = [*words, *self.choose_gpus(count)]
            part = epoch.train(self.work, self.work / "many.csv", name, words_of_run, end - time.monotonic())
            part["epoch_s"] = part["features_s"] + num_steps * part["ms_per_step"] / 1000
            ends = {stage["name"]: stage["end_s"] for stage in part["timeline"]}
            if "steps" in ends:  # else it was cut off
                part["from_weights_s"] = ends["steps"] - ends["weights"]
            part |= describe_steps(self.work / name / "log.jsonl")
            figures[f"{count}"] = part
            print(name, json.dumps(part), flush=True)
        one, several = figures["1"], figures[f"{self.num_gpus}"]
        names = {"epoch_s", "from_weights_s", "ms_per_step", "median_ms"} & one.keys() & several.keys()
        figures["speedups"] = {name: one[name] / several[name] for name in sorted(names)}

    def measure_small(self, figures: dict[str, Any], limit: float) -> None:
        """The card has room for sharded layers, and none for the weights and the adapter of one alone.

        What one needs for these does not depend on micro-batches and recomputed layers, so no setting makes it fit.
        """
        end, words = time.monotonic() + limit, [f"{name}={value}" for name, value in SMALL.items()]
        sharded, whole, state = self.find_least_gib(self.num_gpus), self.find_least_gib(1), self.count_state_bytes()
        least_alone = state / GIB + (GIB - compute_usable_bytes(1.0)) / GIB
        gib = (sharded + least_alone) / 2
        figures |= {
            "model": SMALL_MODEL, "sharded_gib": sharded, "whole_gib": whole, "state_gib": state / GIB, "card_gib": gib,
            "has_room_for_state": state <= compute_usable_bytes(gib),
        }  # fmt: skip
        for name, count, is_small in (("whole", 1, False), ("sharded", self.num_gpus, True), ("alone", 1, True)):
            hold_all_but(compute_usable_bytes(gib) + OUTSIDE_BYTES if is_small else None)
            run = self.work / f"small-{name}"
            command = [
                sys.executable, "-m", "lorgnette", "train", f"data={self.work / 'captions.csv'}",
                f"model={self.work / 'large'}", f"run={run}", *words, *self.choose_gpus(count),
            ]  # fmt: skip
            output, part = self.work / f"small-{name}.txt", dict[str, Any](gpus=count, failed=None)
            start = time.monotonic()
            try:
                process.run(command, output, end - time.monotonic(), environment=self.open_environment())
            except process.FailedError as error:
                part["failed"] = str(error)
            log = run / "log.jsonl"
            records = list(run_log.read_log(log)) if log.exists() else []
            part["losses"] = [record["loss"] for record in records if record["kind"] == "train"]
            part["reserved_gib"] = [record["reserved_gib"] for record in records if record["kind"] == "memory"]
            part["seconds"] = time.monotonic() - start
            lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
            part["said"] = [line for line in lines if line.startswith(("memory", "engine", "layers", "lorgnette"))]
            figures[name] = part
            print(name, json.dumps(part), flush=True)
        hold_all_but(None)
        pairs = zip(figures["whole"]["losses"], figures["sharded"]["losses"], strict=False)
        figures["largest_difference"] = max((abs(a - b) for a, b in pairs), default=None)

    def count_state_bytes(self) -> int:
        """Of the decoder's weights, and of the adapter's values, gradient and two moments in fp32."""
        text = BaseCheckpoint.from_folder(self.work / "large", needs_weights=False).load_text_config()
        num_values = sum(map(math.prod, text.list_weight_shapes().values()))
        return 2 * num_values + 16 * AdapterShape.from_settings(text, LORA).num_params

    def find_least_gib(self, count: int) -> float:
        """Of a card that trains the model as it is, one of `count`: the least for which the plan names no setting.

        It counts on what `train` reduces by itself: micro-batches of one example, all layers recomputed.
        """
        settings = {"model": str(self.work / "large"), **SMALL}
        for gib in (2 + n / 2 for n in range(150)):
            [card] = lorgnette.plan(
                self.work / "captions.csv", settings=settings, memory=gib, gpus=count, console=open_silent_console()
            ).cards
            if card.fit is not None and not card.settings:
                return gib
        raise ValueError("no card holds this model")

    def measure_peer(self, figures: dict[str, Any], limit: float) -> None:
        """transformers' Trainer, which uses DistributedDataParallel under torchrun. It is ended when it has saved."""
        end, samples = time.monotonic() + limit, self.num_peer_samples
        for count in (1, self.num_gpus):
            out = self.work / f"peer-{count}"
            out.mkdir()
            command = [
                *LAUNCHER, f"--nproc-per-node={count}", str(HERE / "peers" / "by_transformers.py"),
                str(self.work / "resized"), str(out), f"--model={self.work / 'model'}", f"--started-at={time.time()}",
                f"--samples={samples}", f"--steps={6 if self.tiny else PEER_STEPS}",
            ]  # fmt: skip
            environment = self.open_environment() | {
                "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4",
            }  # fmt: skip
            if find_spec("liger_kernel") is None:
                environment["NO_LIGER"] = "1"
            file = out / "run.json"
            try:
                process.run(
                    command, out / "log.txt", end - time.monotonic(), is_done=lambda file=file: has_saved(file),
                    cwd=out, environment=environment,
                )  # fmt: skip
            except process.FailedError:
                print(*(out / "log.txt").read_text(errors="replace").splitlines()[-40:], sep="\n", flush=True)
                raise
            run = json.loads(file.read_text())
            run |= {"has_liger": "NO_LIGER" not in environment}
            run["samples_per_s"] = run["steady_steps"] * samples / run["steady_s"]
            figures[f"{count}"] = run
            print("peer", count, json.dumps({name: run[name] for name in ("samples_per_s", "peak_gib")}), flush=True)
        figures["speedup"] = figures[f"{self.num_gpus}"]["samples_per_s"] / figures["1"]["samples_per_s"]


def keep_whole_steps(table: Path, samples: int) -> None:
    """Leave out the last samples of an epoch, for which a peer would take a shorter step, or repeat others."""
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[: 1 + (len(lines) - 1) // samples * samples]), encoding="utf-8")


def has_saved(run_file: Path) -> bool:
    return run_file.exists() and "saved_s" in json.loads(run_file.read_text())


def compare_steps(measured: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How many times as fast several GPUs are as one, and by how many percent sharded layers are slower."""
    speedups, slower = dict[str, float](), dict[str, float]()
    for one in measured:
        for other in measured:
            ratio = one["ms_per_step"] / other["ms_per_step"]
            if (one["model"], one["samples"]) != (other["model"], other["samples"]) or other["is_sharded"]:
                continue
            if one["gpus"] < other["gpus"]:
                speedups[f"{one['model']}, {one['samples']} samples, {other['gpus']} GPUs"] = ratio
            if one["is_sharded"]:
                slower[f"{one['model']}, {one['tokens_per_gpu']} tokens for each GPU"] = 100 * (ratio - 1)
    return {"speedups": speedups, "sharded_slower_percent": slower}


def describe_steps(log: Path) -> dict[str, Any]:
    """The median step after those that warm up, and the steps that took half as long again: (step, ms) of each."""
    records = [r for r in run_log.read_log(log) if r["kind"] == "train" and r["step"] > epoch.NUM_WARMUP_STEPS]
    median = statistics.median(record["seconds"] for record in records)
    slow = [(r["step"], round(1000 * r["seconds"], 1)) for r in records if r["seconds"] > 1.5 * median]
    means = {name: statistics.mean(record.get(name, 0.0) for record in records) for name in ("data_wait", "imbalance")}
    return {"median_ms": 1000 * median, "slow_steps": slow, **means}


_held: list[torch.Tensor] = []


def hold_all_but(free: int | None) -> None:
    """Leave this many bytes of every GPU to others; None: all."""
    _held.clear()
    if HAS_GPU:
        torch.cuda.empty_cache()
        for number in range(torch.cuda.device_count() if free is not None else 0):
            size = torch.cuda.mem_get_info(number)[0] - (free or 0)
            _held.append(torch.empty(size, dtype=torch.uint8, device=f"cuda:{number}"))


def describe_files(bench: Bench) -> str:
    """For which parts the files of WORK are."""
    return json.dumps([sorted(bench.parts), bench.tiny])


def open_work(bench: Bench) -> None:
    """Make the files, or take those that --make has made for these parts."""
    note = bench.work / NOTE
    if note.exists() and note.read_text() == describe_files(bench):
        note.unlink()  # the parts write beside the files, so these serve once
        return
    shutil.rmtree(bench.work, ignore_errors=True)
    bench.work.mkdir(parents=True)
    bench.make_files()


def measure_all(arguments: argparse.Namespace) -> None:
    parts = arguments.parts
    bench = Bench(arguments.work.resolve(), arguments.gpus, parts, tiny=arguments.tiny)
    results = ResultsFile(arguments.out, ["bench/gpus.py", *parts], name_device(), arguments.budget)
    open_work(bench)
    if arguments.make:
        (bench.work / NOTE).write_text(describe_files(bench))
        return
    todo: dict[str, Callable[[dict[str, Any], float], None]] = {
        "job": bench.measure_job, "coco": bench.measure_coco, "small": bench.measure_small, "peer": bench.measure_peer
    }  # fmt: skip
    for part in dict.fromkeys("ranks" if part in ("steps", "shards") else part for part in parts):
        names = [name for name in parts if name in ("steps", "shards")] if part == "ranks" else [part]
        least, most = (sum(SECONDS[name][i] for name in names) for i in (0, 1))
        if not results.fits(0 if arguments.tiny else least, part):
            continue
        start, measure, figures = time.monotonic(), todo.get(part, bench.measure_ranks), dict[str, Any](failed=None)
        try:
            measure(figures, min(most, results.seconds_left))
        except process.FailedError as error:
            figures["failed"] = str(error)
        results.update(**{part: figures | {"took_s": time.monotonic() - start}})
        print(part, json.dumps(figures), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(SECONDS))
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--budget", type=float, default=600, help="seconds for everything")
    parser.add_argument("--make", action="store_true", help="only make the files")
    parser.add_argument("--tiny", action="store_true")
    measure_all(parser.parse_args())
