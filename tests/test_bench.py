"""The benchmarks run on a tiny model; the comparison's arithmetic, table and chart. Peers run on a GPU only."""

import argparse
import io
import json
import random
import shutil
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from ranks import run_ranks
from safetensors.torch import load_file

from lorgnette import __version__, recipes
from lorgnette.config import LoraSettings, ProcessorSettings
from lorgnette.distributed import World
from lorgnette.engine import peft_engine
from lorgnette.inference.sampling import SamplingParams
from lorgnette.io.parse import read_tensor_entries
from lorgnette.lora.flat_params import FlatLoraParams
from lorgnette.models.adapter_shape import AdapterShape
from lorgnette.models.base_checkpoint import BaseCheckpoint
from lorgnette.models.registry import parse_configs
from lorgnette.models.weight_loader import index_tensors
from lorgnette.processing.processor import Processor
from lorgnette.training.sampler import select_examples

ROOT = Path(__file__).parents[1]
LORA = LoraSettings(rank=64, alpha=16, dropout=0.05)
"""The job's."""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """load("compare") → a module of bench/."""
    for folder in ("bench", "bench/peers"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return import_module


@pytest.fixture
def compare(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("compare")


@pytest.fixture
def run_one(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("run_one")


@pytest.fixture
def process(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("process")


@pytest.fixture
def results_file(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("results_file")


@pytest.fixture
def epoch(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("epoch")


@pytest.fixture
def training_run(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("training_run")


@pytest.fixture
def summary(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("summary")


@pytest.fixture
def plot(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("plot")


def make_run(name: str, training: float, **more: object) -> dict[str, object]:
    return {
        "name": name, "prep_s": 10.0, "training_s": training, "saved_s": 11 + training, "peak_gib": 12.0, "steps": 62,
        "took_s": 14 + training, **more,
    }  # fmt: skip


def test_flops_of_the_true_shapes(compare: ModuleType, load: Callable[[str], ModuleType]) -> None:
    """1.31 G weights in the decoder's projections and 73.9 M of LoRA at rank 64: 5.68 GFLOP a token."""
    config = load("job").MODELS["Qwen2-VL-2B"]
    assert compare.compute_flop_per_token(config, 0) == 4 * 1_310_195_712
    assert compare.compute_flop_per_token(config, 64) - compare.compute_flop_per_token(config, 0) == 6 * 73_859_072


def test_rates_and_share(compare: ModuleType) -> None:
    job = {
        "samples": 496, "samples_a_step": 16, "tokens": 496 * 100, "flop_per_token": 5e9, "first_step_tokens": 1600,
    }  # fmt: skip
    run = compare.add_rates(make_run("trl", 20.0, steady_s=9.12, steady_steps=57), job, 800.0)
    assert run["samples_per_s"] == pytest.approx(49.6)
    assert run["steady_tokens_per_s"] == pytest.approx(10_000)
    assert run["steady_share"] == pytest.approx(10_000 * 5e9 / 800e12)
    assert "share" not in compare.add_rates(make_run("trl", 20.0, steady_s=None), job, None)
    assert compare.add_rates(make_run("trl", 20.0, steps=61), job, None) == {"failed": "took 61 steps, not 62"}
    for tokens, is_the_job in ((16, False), (1599, False), (1600, True), (1696, True), (3200, False)):
        run = compare.add_rates(make_run("trl", 20.0, steady_s=None, first_step_tokens=tokens), job, None)
        assert ("failed" not in run) == is_the_job


def test_the_first_run_stands_apart_and_ratios_are_like_with_like(summary: ModuleType) -> None:
    runs = [make_run("lorgnette", t) for t in (9.0, 3.0, 2.0, 4.0)] + [make_run("trl", t) for t in (63.0, 21.0)]
    runs += [make_run("unsloth", 45.0), {"name": "swift", "failed": "exit status 1\nno GPU"}]
    table = summary.summarize(runs)
    assert (table["lorgnette"]["later"]["training_s"], table["lorgnette"]["later_runs"]) == (3, 3)
    assert (table["trl"]["later"]["training_s"], table["trl"]["later"]["times_ours"]) == (21, 7)
    assert (table["trl"]["first"]["training_s"], table["trl"]["first"]["times_ours"]) == (63, 7)
    # The only run also compiled, as lorgnette's first one did.
    assert (table["unsloth"]["first"]["times_ours"], "later" in table["unsloth"]) == (5, False)
    assert table["swift"] == {"failed": "exit status 1\nno GPU"}


def test_a_run_that_did_not_save_keeps_its_other_figures(summary: ModuleType) -> None:
    unsaved = make_run("trl", 20.0, unsaved="exit status none after 60 s")
    del unsaved["saved_s"]
    first = summary.summarize([make_run("lorgnette", 2.0), unsaved])["trl"]["first"]
    assert (first["times_ours"], "saved_s" in first) == (10, False)


def test_versions_and_the_fastest_peer_are_compared(summary: ModuleType, plot: ModuleType) -> None:
    """First runs with first runs, later with later; a peer without dropout or with a first run only is no rival."""
    runs = [make_run("lorgnette", t, process_s=2 * t, steady_samples_per_s=500) for t in (5.0, 2.0)]
    runs += [make_run("baseline", t, process_s=2 * t, steady_samples_per_s=400) for t in (10.0, 3.0)]
    runs += [make_run("trl", t, steady_samples_per_s=40) for t in (50.0, 20.0)]
    runs += [make_run("swift", t, steady_samples_per_s=50) for t in (60.0, 30.0)]
    runs += [make_run("unsloth-dropout0", t, steady_samples_per_s=60) for t in (5.0, 2.0)]
    runs += [make_run("llamafactory", 1.0, steady_samples_per_s=99)]
    table = summary.summarize(runs)
    assert {title: row["ratio"] for title, row in summary.compare_versions(table).items()} == {
        "the whole command, first run, s": 0.5, "the whole command, later runs, s": pytest.approx(2 / 3),
        "62 steps and features, s": pytest.approx(2 / 3),
    }  # fmt: skip
    rate, saved = summary.compare_with_fastest_peer(table).values()
    assert (rate["peer"], rate["times_lorgnette"], rate["times_baseline"]) == ("swift", 10, 8)
    assert (saved["peer"], saved["times_lorgnette"]) == ("trl", pytest.approx(31 / 13))
    assert "beside TRL's 31.0 | 2.2 × | 2.4 × | |" in plot.format_versions(table)
    assert plot.format_versions(summary.summarize(runs[:2])) == ""


def test_a_peer_takes_the_examples_in_lorgnettes_order(load: Callable[[str], ModuleType]) -> None:
    """Each pass is an epoch of its own, also with a loader's workers, which start a pass before they need it."""
    order, starts = load("start").order_examples(40), load("job_start")
    assert [sorted(epoch) for epoch in order] == [list(range(40))] * 2
    assert order[0] != order[1]
    assert order[1][32:] == select_examples(5, 40, 16, 0)
    loader = torch.utils.data.DataLoader(list(range(40)), 16, sampler=starts.JobOrder(order))  # type: ignore[arg-type]
    assert [torch.cat(list(loader)).tolist() for _ in range(2)] == order


def test_a_peer_starts_from_lorgnettes_adapter(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Another layer, or a B that is not zero, is not the job's."""
    load("job").make_model(tmp_path / "model", load("job").BUILT_IN, tiny=True)
    load("start").write_start(tmp_path / "model", 40, tmp_path / "start")
    shape = AdapterShape.from_settings(BaseCheckpoint.from_folder(tmp_path / "model").load_text_config(), LORA)
    params = FlatLoraParams(shape, torch.device("cpu"))
    named = {
        name.replace(".weight", ".default.weight"): torch.nn.Parameter(p) for name, p in params.named_params.items()
    }
    model = SimpleNamespace(
        named_parameters=lambda: [*named.items(), ("lm_head.weight", torch.nn.Parameter(torch.ones(1)))]
    )
    load("job_start").load_first_adapter(model, tmp_path / "start")
    assert torch.equal(params.values.data, FlatLoraParams.init_values(shape, 0))
    some = next(name for name in named if ".lora_B." in name)
    named[some].data.fill_(1)
    with pytest.raises(RuntimeError, match="not zero before the first step"):
        load("job_start").load_first_adapter(model, tmp_path / "start")
    del named[next(iter(named))]
    with pytest.raises(RuntimeError, match="1 adapted layers are not the job's"):
        load("job_start").load_first_adapter(model, tmp_path / "start")


def test_adapters_are_compared_with_fp32s(
    load: Callable[[str], ModuleType], results_file: ModuleType, tmp_path: Path
) -> None:
    """The same training is 0 above; the first adapter, which has learned nothing, is the whole gain above. An adapter
    of another scale is refused."""
    load("job").make_model(tmp_path / "model", load("job").BUILT_IN, tiny=True)
    load("job").make_images(tmp_path, 3)
    trained, checkpoint = load("trained_loss"), BaseCheckpoint.from_folder(tmp_path / "model")
    processor = Processor.from_folder(tmp_path / "model", ProcessorSettings(image_size=(56, 56)))
    encoded = [processor.encode(example) for example in load("step").load_examples(tmp_path)]
    features = load("answers").PreparedFeatures(64)
    judge = trained.Judge(checkpoint, features, LORA, encoded)
    for name, seed in (("same", 0), ("other masks", 1), ("first", None)):
        model = peft_engine.add_adapter(
            peft_engine.load_base_model(checkpoint, torch.device("cpu"), torch.float32), checkpoint.family, LORA, 0
        )
        if seed is not None:
            trained.train(peft_engine.ReferenceEngine(model, features), encoded, seed)
        model.save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    (tmp_path / "scale").mkdir()
    (tmp_path / "scale" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 32}))
    (tmp_path / "scale" / "adapter_model.safetensors").write_bytes(
        (tmp_path / "first" / "adapter_model.safetensors").read_bytes()
    )
    folders = {name: tmp_path / name for name in ("same", "other masks", "first", "scale", "nobody")}
    results = results_file.ResultsFile(tmp_path / "out.json", [], None, 60)
    figures = trained.judge_adapters(judge, folders, LORA, encoded, results)
    above = {name: row.get("above_fp32") for name, row in figures["adapters"].items()}
    gain = figures["before"] - figures["fp32"]
    assert gain > 1e-4
    assert above["same"] == 0
    assert 0 < abs(above["other masks"]) < gain
    assert above["first"] == pytest.approx(gain)
    masks = [
        judge.compute_loss(state) - figures["fp32"] for state in trained.train_fast(checkpoint, features, LORA, encoded)
    ]
    assert len({round(loss, 9) for loss in masks}) == trained.NUM_MASKS
    assert max(map(abs, masks)) < gain / 2
    assert "alpha 32" in figures["adapters"]["scale"]["failed"]
    assert "failed" in figures["adapters"]["nobody"]


@pytest.mark.parametrize(("module", "function"), [("run_one", "run_ours"), ("timed", "ours")])
def test_an_older_version_runs_by_its_own_bench(
    run_one: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, function: str
) -> None:
    (tmp_path / "old" / "bench").mkdir(parents=True)
    assert "has no bench" in run_one.run_baseline(tmp_path / "old", tmp_path, tmp_path / "work", 60)["failed"]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))  # where those are that are not installed
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "of_packages.py").touch()
    code = (
        "import of_packages\n"
        f"def {function}(name, job, work, limit): return {{'training_s': limit, 'names': [name, str(job), str(work)]}}"
    )
    (tmp_path / "old" / "bench" / f"{module}.py").write_text(code)
    run = run_one.run_baseline(tmp_path / "old", tmp_path / "job", tmp_path / "work", 60)
    assert run == {"training_s": 60, "names": ["lorgnette", str(tmp_path / "job"), str(tmp_path / "work" / "baseline")]}


def test_everyone_runs_once_before_anyone_runs_twice(compare: ModuleType) -> None:
    assert compare.order_runs(["trl", "swift"], 1, ["lorgnette"], 2, []) == ["lorgnette", "trl", "swift", "lorgnette"]
    order = compare.order_runs(["trl", "unsloth"], 2, ["lorgnette"], 2, ["unsloth"])
    assert order == ["lorgnette", "trl", "unsloth", "lorgnette", "trl"]


def test_a_run_that_no_longer_fits_is_skipped_and_listed(
    compare: ModuleType, results_file: ModuleType, tmp_path: Path
) -> None:
    results = results_file.ResultsFile(tmp_path / "few.json", ["bench"], None, 29)
    runs = [make_run("lorgnette", 5.0), {"name": "trl", "failed": "exit status 1"}]
    assert compare.is_due("lorgnette", runs, results)  # 1.2 times 19 s
    assert not compare.is_due("trl", runs, results)  # it failed before
    assert not compare.is_due("swift", runs, results)
    content = json.loads((tmp_path / "few.json").read_text())
    assert content["left_out"] == ["swift"]
    assert "time" in content["summary"]["swift"]["failed"]
    results = results_file.ResultsFile(tmp_path / "fewer.json", ["bench"], None, 20)
    assert not compare.is_due("lorgnette", runs, results)
    assert compare.summarize(runs)["lorgnette"]["first"]["training_s"] == 5  # a skipped repeat changes nothing
    results = results_file.ResultsFile(tmp_path / "fewest.json", ["bench"], None, 40)
    assert compare.is_due("lorgnette", runs, results)
    assert not compare.is_due("lorgnette", runs, results, reserved=20)  # for the losses


def test_the_file_is_complete_after_every_measurement(results_file: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    results = results_file.ResultsFile(file, ["bench/step.py"], "a GPU", 100)
    results.update(runs=[1])
    assert json.loads(file.read_text())["runs"] == [1]
    results.update(runs=[1, 2], worst=3)
    content = json.loads(file.read_text())
    assert (content["runs"], content["worst"]) == ([1, 2], 3)
    assert content["made_with"]["machine"]["device"] == "a GPU"
    assert content["made_with"]["versions"]["lorgnette"] == __version__
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("options", ["", "start_new_session=True"])
def test_a_program_is_ended_with_its_children(process: ModuleType, tmp_path: Path, options: str) -> None:
    """Also those in sessions of their own, as torchrun starts its ranks."""
    code = f"""import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], {options})
open("pid.part", "w").write(str(child.pid))
import os; os.rename("pid.part", "pid")
time.sleep(60)"""
    pid = tmp_path / "pid"
    took = process.run([sys.executable, "-c", code], tmp_path / "output", 50, is_done=pid.exists, cwd=tmp_path)
    assert took < 40
    child = Path(f"/proc/{pid.read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child is still running"
        time.sleep(0.05)


def test_a_failed_or_slow_program_reports_its_last_lines(process: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(process.FailedError, match="exit status 3\nboom"):
        process.run([sys.executable, "-c", "print('boom'); raise SystemExit(3)"], tmp_path / "output", 60)
    slow = "import time; print('still here', flush=True); time.sleep(60)"
    with pytest.raises(process.FailedError, match="none after 2 s\nstill here"):
        process.run([sys.executable, "-c", slow], tmp_path / "output", 2)


PEER = """import argparse, json, os, sys, time
from pathlib import Path
out = Path(sys.argv[2])
def write(run):
    (out / "run.part").write_text(json.dumps(run))
    os.replace(out / "run.part", out / "run.json")
write({"training_s": 2.0, "steps": 62})
SAVING
time.sleep(60)
"""


@pytest.mark.parametrize("saves", [True, False])
def test_a_peer_is_ended_once_its_adapter_is_saved(
    run_one: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    (tmp_path / "peers").mkdir()
    saving = 'write({"training_s": 2.0, "steps": 62, "saved_s": 3.0})' if saves else ""
    (tmp_path / "peers" / "by_slow.py").write_text(PEER.replace("SAVING", saving))
    (tmp_path / "site" / "slow-1.2.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "slow-1.2.dist-info" / "METADATA").write_text("Name: slow\nVersion: 1.2\n")
    monkeypatch.setattr(run_one, "HERE", tmp_path)
    run = run_one.run_peer("slow", tmp_path, tmp_path, tmp_path / "site", 40 if saves else 3)
    assert run["training_s"] == 2
    assert run["versions"] == {"slow": "1.2"}
    assert ("saved_s" in run, "unsaved" in run) == (saves, not saves)


def test_a_failed_peer_keeps_its_last_lines(run_one: ModuleType, tmp_path: Path) -> None:
    run = run_one.run_peer("nobody", tmp_path, tmp_path, tmp_path, limit=60)
    assert "exit status 2" in run["failed"]
    assert "by_nobody.py" in run["failed"]


def test_the_log_of_an_interrupted_training_is_read(epoch: ModuleType, process: ModuleType, tmp_path: Path) -> None:
    cut_off, file = process.FailedError("exit status none after 60 s"), tmp_path / "log.jsonl"
    with pytest.raises(process.FailedError, match="after 60 s"):
        epoch.read_log(file, 60.0, cut_off)
    stages = [{"kind": "stage", "name": name, "seconds": s} for name, s in (("features", 11.4), ("decoding", 0.5))]
    steps = [{"kind": "train", "step": n, "seconds": 2.0, "tokens_per_s": 1e4, "data_wait": 0.25}
             for n in (5, 10, 15, 20)]  # fmt: skip
    file.write_text("".join(json.dumps(record) + "\n" for record in stages + steps) + '{"kind": "tr')
    read = epoch.read_log(file, 60.0, cut_off)
    assert (read["steps"], read["captions_per_s"], read["features_s"]) == (10, 10 * 256 / 4, 11.4)
    assert (read["tokens_per_s"], read["data_wait"]) == (1e4, 0.25)
    assert (read["peak_gib"], read["cut_off"]) == (None, "exit status none after 60 s")


def test_a_timeline_accounts_for_every_second(training_run: ModuleType) -> None:
    stages = [("start", 1.5, 1.5), ("data", 0.25, 2.0), ("steps", 2.0, 4.0)]
    records = [{"kind": "stage", "name": name, "seconds": seconds, "end_s": end} for name, seconds, end in stages]
    records.insert(2, {"kind": "stage", "name": "decoding", "seconds": 0.5})  # a part of a stage
    timeline = training_run.build_timeline([{"kind": "train", "step": 1}, *records], 4.5)
    assert [(stage["name"], stage["before_s"]) for stage in timeline] == [
        ("start", 0.0), ("data", 0.25), ("steps", 0.0), ("exit", 0.0),
    ]  # fmt: skip
    assert sum(stage["seconds"] + stage["before_s"] for stage in timeline) == timeline[-1]["end_s"] == 4.5
    assert training_run.format_timeline(timeline).splitlines()[-1].split() == ["in", "no", "stage", "0.25"]
    assert training_run.build_timeline([{"kind": "stage", "name": "data", "seconds": 1.0}], 4.5) == []


def result(runs: list[dict[str, object]], **versions: dict[str, str]) -> dict[str, object]:
    """The content of a results file."""
    machine = {"gpu": "NVIDIA H200", "cores": 16, "torch": "2.11.0", "matmul_tflops": 693.0, "launch_us": 9.0}
    made = {"started": "2026-11-23T01:47:57+00:00"}
    return json.loads(json.dumps({"runs": runs, "versions": versions, "machine": machine, "made_with": made}))  # type: ignore[no-any-return]


def test_tables_and_chart(plot: ModuleType) -> None:
    runs = [make_run("lorgnette", t) for t in (9.0, 3.0)] + [make_run("trl", t) for t in (63.0, 21.0)]
    runs += [make_run("unsloth", 45.0), {"name": "swift", "failed": "exit 1\nboom | bang"}]
    call = result(runs, trl={"trl": "1.16.0"})
    call["trained_loss"] = {"before": 7.0, "fp32": 5.0, "spread": 0.002, "adapters": {"trl": {"above_fp32": 0.0394}}}
    found = plot.build_rows([call], "later")
    lines = plot.format_table(found).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(plot.COLUMNS) + 2}
    assert "TRL 1.16.0 | 10.0 | 21.0 | 32.0" in lines[3]
    assert lines[3].endswith("| +0.039 | 1 | 7.0 |")
    assert "no figures: boom \\| bang" in lines[4]
    assert len(lines) == 5, "Unsloth has a first run only"
    first = plot.format_table(plot.build_rows([call], "first"), plot.FIRST_COLUMNS).splitlines()
    assert "| Unsloth | 10.0 | 45.0 | 56.0 | – | 5.0 |" in first
    assert "5.000 after the job, range of losses with other dropout masks 0.002" in plot.describe_calls([call])
    drawn = plot.draw_chart(found)
    bars = [float(e.get("width", 0)) for e in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")][:6]
    assert bars[4] == pytest.approx(7 * bars[1], rel=0.01)
    assert "prefers-color-scheme: dark" in drawn
    assert "swift" not in drawn


def test_several_files_make_one_table(plot: ModuleType) -> None:
    """lorgnette has a row per call; a peer one, of the call with most of its runs, and its ratio is to that call."""

    def twice(name: str, training: float, times: int = 2) -> list[dict[str, object]]:
        return [make_run(name, t) for t in [3 * training, *[training] * (times - 1)]]

    failed = {"name": "unsloth", "failed": "exit status none after 110 s"}
    first = result([*twice("lorgnette", 3.0), *twice("trl", 30.0), failed])
    second = result(
        [*twice("lorgnette", 4.0), *twice("trl", 20.0), *twice("unsloth", 40.0)], unsloth={"unsloth": "2026.10.9"}
    )
    table = plot.format_table(plot.build_rows([first, second], "later")).splitlines()[2:]
    assert [line.split(" | ")[0] for line in table] == [
        "| **lorgnette** ¹", "| **lorgnette** ²", "| TRL ²", "| Unsloth 2026.10.9 ²",
    ]  # fmt: skip
    assert [line.split(" | ")[-1] for line in table] == ["1.0 |", "1.0 |", "5.0 |", "10.0 |"]
    more = result([*twice("lorgnette", 3.0), *twice("trl", 30.0, times=3)])
    assert "| TRL ¹ |" in plot.format_table(plot.build_rows([more, second], "later"))
    assert (
        plot.describe_calls([first, second])
        .splitlines()[1]
        .startswith("² 2026-11-23: NVIDIA H200, 16 cores, torch 2.11.0, 693 T")
    )


def test_the_committed_results_make_the_table(plot: ModuleType) -> None:
    files = sorted((ROOT / "bench" / "results").glob("*-peers-*.json"))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len(files) > 2
    assert "LLaMA-Factory 0.9.5" in plot.format_table(plot.build_rows(results, "first"))
    assert len(plot.describe_calls(results).splitlines()) == len(files)
    ET.fromstring(plot.draw_chart(plot.build_rows(results, "later")))


def test_generated_photographs_are_distinct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    check_speed = __import__("check_speed")
    (few := tmp_path / "few").mkdir()
    for shade in ("red", "navy"):
        Image.new("RGB", (700, 500), shade).save(few / f"{shade}.jpg")
    check_speed.make_data(tmp_path / "made", few, 4)
    _, *rows = (tmp_path / "made" / "captions.csv").read_text().splitlines()
    images = [(tmp_path / "made" / row.split(",")[0]).read_bytes() for row in rows]
    assert len(set(images)) == len(set(rows)) == 4
    assert Image.open(io.BytesIO(images[0])).size in check_speed.SIZES


@pytest.mark.parametrize("name", ["Qwen2.5-VL-7B", "Qwen3-VL-8B"])
def test_a_job_has_the_models_own_files(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """In several files, every weight under the hub's name and of its shape."""
    job = load("job")
    monkeypatch.setattr(job, "MAX_FILE_BYTES", 200_000)
    job.make_model(tmp_path / "model", job.BUILT_IN, name, tiny=True)
    checkpoint = BaseCheckpoint.from_folder(tmp_path / "model")
    assert len(checkpoint.weight_files) > 1
    text, vision = parse_configs(checkpoint.load_hf_config())
    stored = {name: entry.shape for name, entry in index_tensors(checkpoint).items()}
    assert stored == text.list_weight_shapes() | vision.list_weight_shapes()
    names = {name for path in checkpoint.weight_files for name in read_tensor_entries(path)}
    assert ("visual.patch_embed.proj.weight" in names) == (name == "Qwen2.5-VL-7B")


def test_shares_of_models_are_of_one_ceiling(load: Callable[[str], ModuleType]) -> None:
    models = {
        name: {"ceiling_tflops": ceiling, "step_large": {"share_of_ceiling_by_rows": 0.5}}
        for name, ceiling in (("a", 700.0), ("b", 800.0), ("c", 750.0))
    } | {"d": {"failed": "exit status 1"}}
    compared = load("families").compare_shares(models)
    assert compared["ceiling_tflops"] == 750
    assert compared["shares"]["b"]["step_large"] == pytest.approx(0.5 * 800 / 750)
    assert load("families").compare_shares({"d": {"failed": "exit status 1"}}) == {}


def test_the_benchmarks_run_on_a_tiny_model(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """One step, one memory setting of each engine, and a few answers, without a GPU."""
    load("job").make_model(tmp_path / "model", load("job").BUILT_IN, tiny=True)
    load("job").make_images(tmp_path, 3)
    step, memory, answers = load("step"), load("memory"), load("answers")
    lora = LoraSettings(rank=4, dropout=0.1)
    processor = Processor.from_folder(tmp_path / "model", ProcessorSettings(image_size=(56, 56)))
    examples = step.load_examples(tmp_path)
    encoded = [processor.encode(example) for example in examples]
    timer = step.StepTimer(tmp_path, encoded, 2, lora)
    assert timer.run_step(0).isfinite().all()
    assert timer.time_queued_steps(1) > 0
    decoder = (nf4 := load("nf4")).make_decoder(BaseCheckpoint.from_folder(tmp_path / "model"), is_nf4=True)
    timer = step.StepTimer(tmp_path, encoded, 2, nf4.LORA, decoder=decoder, recompute_layers=1)
    assert timer.run_step(0).isfinite().all()
    losses = [memory.measure(tmp_path, encoded, engine, 60, 4, 0.1, 0)["loss"] for engine in ("fast", "reference")]
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-2)
    features = answers.PreparedFeatures(64)
    generator = answers.build_generator(tmp_path, lora, torch.float32, features)
    figures = answers.measure(generator, processor, examples, SamplingParams(max_new_tokens=3, batch_size=3), True, 1e9)
    assert figures["step_ms"] > 0
    json.dumps(figures)


def test_rows_that_share_steps_answer_as_alone(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    load("job").make_model(tmp_path / "model", load("job").BUILT_IN, tiny=True)
    load("job").make_images(tmp_path, 3)
    serve = load("serve")
    adapters = serve.write_adapters(tmp_path, 4, side=56)
    prompts = serve.Prompts(tmp_path, serve.Images(tmp_path).examples)
    equality = serve.measure_equality(tmp_path, adapters, prompts, 4)
    assert (equality["answers"], equality["equal"], equality["partings"]) == (3, 3, [])
    exact = serve.build_generator(tmp_path, adapters[0], prompts.features)
    parting = serve.compare_logits(exact, exact, prompts.encoded[0], [5, 6, 7], 1, use_adapter=True)
    assert (parting["rms_error"], parting["gap"] > 0) == (0, True)
    batch = serve.build_batch(tmp_path, adapters, prompts)
    assert serve.time_steps(batch, prompts.encoded, [None, 3], 4) > 0
    assert abs(serve.time_changes(batch, prompts.encoded[0], 2)) < 60_000


def test_a_streamed_answer_is_read(load: Callable[[str], ModuleType]) -> None:
    """Text comes with the second event; the tokens are those of the usage."""
    deltas = [{"role": "assistant", "content": ""}, {"content": "A "}, {"content": "car."}, {}]
    events = [{"choices": [{"delta": delta}], "usage": None} for delta in deltas]
    events.append({"choices": [], "usage": {"completion_tokens": 3}})
    parts = ["HTTP/1.1 200 OK\r\n\r\n", *(f"data: {json.dumps(event)}\n\n" for event in events), "data: [DONE]\n\n"]
    arrivals = [(len("".join(parts[: i + 1])), 10.0 + i) for i in range(len(parts))]
    read_answer = load("chat_clients").read_answer
    answer = read_answer("".join(parts).encode(), arrivals, asked=9.0)
    assert (answer["text"], answer["tokens"], answer["chunks"], answer["complete"]) == ("A car.", 3, 2, True)
    assert (answer["first_s"], answer["last_s"]) == (3.0, 4.0)
    assert not read_answer("".join(parts[:-1]).encode(), arrivals, asked=9.0)["complete"]
    serve = load("serve")
    figures = serve.summarize([answer | {"asked": 9.0}, answer | {"asked": 10.0}])
    assert (figures["tokens"], figures["tokens_per_s"], figures["ms_per_token"]) == (6, 6 / 5, 500)
    predict = {f"batch {n}": {"ms_per_token": 400, "whole_s": 5.0, "tokens_per_s": 2.0} for n in (1, 32)}
    targets = serve.compare_targets({"predict": predict, "served": {"1 user": figures, "32 users": figures}})
    assert (targets["one_user_times_predict"], targets["32_users_share_of_predict"]) == (1.25, 0.6)


def test_several_gpus_are_compared_with_one(load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the trainer in two ranks, whole and sharded; their ratios."""
    gpus, gpu_steps, name = load("gpus"), load("gpu_steps"), "Qwen2-VL-2B"
    monkeypatch.setattr(gpu_steps, "NUM_WARMUP_STEPS", 1)
    monkeypatch.setattr(gpu_steps, "NUM_STEPS", 2)
    load("job").make_images(tmp_path, 4)
    load("nf4").make_job(tmp_path, name, tiny=True)

    def measure(world: World) -> list[dict[str, Any]]:
        options = [{"samples": 2}, {"tokens": 140, "is_sharded": True}]
        return [gpu_steps.measure(tmp_path / name, world, **words) for words in options]

    [whole, sharded], _ = run_ranks(measure, 2)
    assert (whole["gpus"], whole["samples"], whole["steps"]) == (2, 2, 2)
    assert whole["ms_per_step"] > 0
    assert whole["all_reduce_ms"] > 0
    assert sharded["samples"] == 2
    assert sharded["loss"] == pytest.approx(whole["loss"], rel=0.1)
    made = [
        whole | {"gpus": 1, "ms_per_step": 30.0}, whole | {"ms_per_step": 20.0},
        sharded | {"ms_per_step": 21.0, "tokens_per_gpu": 140},
    ]  # fmt: skip
    assert gpus.compare_steps(made) == {
        "speedups": {"Qwen2-VL-2B, 2 samples, 2 GPUs": 1.5},
        "sharded_slower_percent": {"Qwen2-VL-2B, 140 tokens for each GPU": pytest.approx(5.0)},
    }


def test_what_a_part_has_measured_is_kept_if_it_fails(
    load, process: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus, made, limits = load("gpus"), list[Path](), list[float]()

    def fail(self: Any, figures: dict[str, Any], limit: float) -> None:
        limits.append(limit)
        figures["1"] = {"epoch_s": 3.0}
        raise process.FailedError("exit status 1")

    monkeypatch.setattr(gpus.Bench, "make_files", lambda bench: made.append(bench.work))
    monkeypatch.setattr(gpus.Bench, "measure_coco", fail)
    arguments = argparse.Namespace(
        work=tmp_path / "work", out=tmp_path / "out.json", parts=["coco"], gpus=2, budget=600, tiny=True, make=True
    )
    gpus.measure_all(arguments)
    assert not limits
    for number in (1, 2):
        gpus.measure_all(argparse.Namespace(**vars(arguments) | {"make": False}))
        assert len(made) == number, "files are made anew after they were used"
    figures = json.loads(arguments.out.read_text())["coco"]
    assert (figures["failed"], figures["1"]) == ("exit status 1", {"epoch_s": 3.0})
    assert limits == [gpus.SECONDS["coco"][1]] * 2


def test_the_state_of_a_model_does_not_fit_the_small_card(load, tmp_path: Path) -> None:
    """The small card has as much memory as weights and adapter of Qwen2-VL-7B exceed."""
    gpus, job = load("gpus"), load("job")
    bench = gpus.Bench(tmp_path, 2, [], tiny=True)
    job.make_model(tmp_path / "large", job.BUILT_IN, gpus.SMALL_MODEL, tiny=True)
    weights = load_file(tmp_path / "large" / "model.safetensors")
    num_values = sum(weight.numel() for name, weight in weights.items() if not name.startswith("visual."))
    sides = (64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)
    num_trained = 2 * 64 * sum(map(sum, sides))  # two layers, rank 64
    assert bench.count_state_bytes() == 2 * num_values + 16 * num_trained
    shutil.rmtree(tmp_path / "large")
    job.make_model(tmp_path / "large", job.BUILT_IN, gpus.SMALL_MODEL, has_weights=False)
    assert 16.5 < bench.count_state_bytes() / 2**30 < 17


def test_few_images_are_drawn_and_their_runs_counted(load, tmp_path: Path, monkeypatch, capsys) -> None:
    small_data = load("small_data")
    monkeypatch.setattr(small_data, "MAX_IMAGES", 3)
    monkeypatch.setattr(small_data, "NUM_HELD_OUT", 2)
    for free in (False, True):
        small_data.draw_data(tmp_path / f"{free}", 2, free=free)
        tables = [(tmp_path / f"{free}" / f"{name}.csv").read_text() for name in ("held_out", "seed-0", "seed-1")]
        assert [len(table.splitlines()) for table in tables] == [3, 4, 4]
        assert len(set(tables)) == 3, "other images for each seed"
    for overrides, constants in small_data.RULES.values():
        assert recipes.load_settings("demo", overrides).train.batch_size in (8, 16)
        assert constants.keys() <= small_data.CONSTANTS.keys()
    runs = [{"images": 10, "rate": 1e-3, "rule": "auto", "steps": 30 + n, "loss": 0.5, "best_loss": 0.4, "exact": n}
            for n in (40, 44)]  # fmt: skip
    small_data.print_table(runs)
    assert "| 10 | 0.001 | auto | 72 | 0.500 | 0.400 | 42 (40 to 44) |" in capsys.readouterr().out


def test_a_person_teaches_what_can_be_learned(load: Callable[[str], ModuleType]) -> None:
    """Of answers 9 to 16 five were taken, and none of a wish that the image does not show."""
    teach = load("teach")
    scene = teach.sample_scene(random.Random(1))
    wishes = {name: write(scene) for name, write in teach.WISHES.items()}
    assert wishes == {
        "caption": "A small orange tree below a big blue flower.",
        "terse": "small orange tree, below, big blue flower",
        "alphabet": "blue flower, orange tree",
    }
    figures = teach.teach("caption", 1, 16, ["train.max_steps=28"], num_held_out=2)
    assert figures["taken_from_9"] >= 3
    assert sum(figures["taken_by_eights"]) == figures["taken_1_8"] + figures["taken_from_9"]
    assert figures["taken_by_eights"][0] <= 5, "the first four are untuned"
    assert figures["unlearned_at"] is None
    assert [done["answers"] for done in figures["rounds"]][:2] in ([4, 8], [4, 16])
    assert all(done["reason"] == "low" for done in figures["rounds"])
    other = teach.teach("alphabet", 1, 13, ["train.max_steps=14"], num_held_out=0)
    assert other["taken_by_eights"] == [0, 0]
    assert other["unlearned_at"] == 12
    assert [(done["answers"], done["steps"], done["reason"]) for done in other["rounds"]] == [
        (4, 14, "limit"), (8, 14, "limit"),
    ]  # fmt: skip
    json.dumps([figures, other])


def test_rounds_of_a_job_are_timed(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    load("job").make_model(tmp_path / "model", load("job").BUILT_IN, tiny=True)
    load("job").make_images(tmp_path, 9)
    out, captions = tmp_path / "out.json", tmp_path / "lines.txt"
    captions.write_text("a cat\na dog\n")
    teach = load("teach")
    assert teach.read_job(tmp_path, captions)[1][:3] == ["a cat", "a dog", "a cat"]
    results = load("results_file").ResultsFile(out, ["bench"], None, 60)
    words = ["device=cpu", "image_size=56", "train.max_steps=3", "predict.max_new_tokens=4"]
    teach.measure_rounds(tmp_path, captions, words, results)
    content = json.loads(out.read_text())
    assert [(run["answers"], run["steps"]) for run in content["rounds"]] == [(8, 3), (8, 3)]
    assert all(run["seconds"] > 0 and run["answer_to_suggestion_s"] > run["seconds"] for run in content["rounds"])
    assert content["job"]["images"] == 9
    assert content["job"]["save_s"] > 0


def test_shapes_of_steps_are_simulated(load: Callable[[str], ModuleType]) -> None:
    """A plan of all steps leaves none without a graph; a plan of the first ones may."""
    shapes, batch_shape = load("shapes"), import_module("lorgnette.engine.batch_shapes").BatchShape
    rng = random.Random(0)
    steps = [batch_shape(rng.randrange(1000, 2000), 256, 256) for _ in range(40)] + [batch_shape(5000, 256, 256)] * 2
    figures = shapes.simulate(steps, len(steps), 2000)
    assert sum(figures["captured_ahead"].values()) == figures["micro_batches"] == 42
    assert (figures["eager_passes"], figures["captured_later"]) == (0, 0)
    assert 0 < figures["padding_percent"] < 25
    first = shapes.simulate(steps, 40, 2000)
    assert (first["eager_passes"], first["captured_later"]) == (1, 1), "the last two are larger than all before"
    assert shapes.simulate(steps, 42, 10)["padding_percent"] < figures["padding_percent"]
