"""The comparison's arithmetic, its table and its chart. What a peer does is seen on a GPU only."""

import io
import json
import sys
import time
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from lorgnette import __version__

ROOT = Path(__file__).parents[1]
TWO_B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.syspath_prepend(str(ROOT / "bench" / "peers"))


@pytest.fixture
def compare(beside: None) -> ModuleType:
    return import_module("compare")


@pytest.fixture
def runs(beside: None) -> ModuleType:
    return import_module("timed")


@pytest.fixture
def process(beside: None) -> ModuleType:
    return import_module("process")


@pytest.fixture
def kept(beside: None) -> ModuleType:
    return import_module("kept")


@pytest.fixture
def epoch(beside: None) -> ModuleType:
    return import_module("epoch")


@pytest.fixture
def plot(beside: None) -> ModuleType:
    return import_module("plot")


def finished(name: str, training: float, **more: object) -> dict[str, object]:
    return {
        "name": name, "prep_s": 10.0, "training_s": training, "saved_s": 11 + training, "peak_gib": 12.0, "steps": 62,
        "took_s": 14 + training, **more,
    }  # fmt: skip


def test_flops_are_those_of_the_true_shapes(compare: ModuleType) -> None:
    """1.31 G weights in the decoder's projections and 73.9 M of LoRA at rank 64: 5.68 GFLOP a token."""
    assert compare.flop_per_token(TWO_B, 0) == 4 * 1_310_195_712
    assert compare.flop_per_token(TWO_B, 64) - compare.flop_per_token(TWO_B, 0) == 6 * 73_859_072


def test_rates_and_share(compare: ModuleType) -> None:
    job = {"samples": 496, "samples_a_step": 16, "tokens": 496 * 100, "flop_per_token": 5e9}
    run = compare.rated(finished("trl", 20.0, steady_s=9.12, steady_steps=57), job, 800.0)
    assert run["samples_per_s"] == pytest.approx(49.6)
    assert run["steady_tokens_per_s"] == pytest.approx(10_000)
    assert run["steady_share"] == pytest.approx(10_000 * 5e9 / 800e12)
    assert "share" not in compare.rated(finished("trl", 20.0, steady_s=None), job, None)
    assert compare.rated(finished("trl", 20.0, steps=61), job, None) == {"failed": "took 61 steps, not 62"}


def test_the_first_run_stands_apart_and_ratios_are_like_with_like(compare: ModuleType) -> None:
    runs = [finished("lorgnette", t) for t in (9.0, 3.0, 2.0, 4.0)] + [finished("trl", t) for t in (60.0, 21.0)]
    runs += [finished("unsloth", 45.0), {"name": "swift", "failed": "exit status 1\nno GPU"}]
    table = compare.summary(runs)
    assert (table["lorgnette"]["training_s"], table["lorgnette"]["runs"]) == (3.0, 3)
    assert (table["trl"]["training_s"], table["trl"]["first_training_s"], table["trl"]["times_ours"]) == (21, 60, 7)
    # One run is all there is, and it compiled: so did lorgnette's first.
    assert (table["unsloth"]["runs"], table["unsloth"]["times_ours"]) == (1, 5)
    assert table["swift"] == {"failed": "exit status 1\nno GPU"}


def test_a_run_that_could_not_save_keeps_its_other_figures(compare: ModuleType) -> None:
    unsaved = finished("trl", 20.0, unsaved="exit status none after 60 s")
    del unsaved["saved_s"]
    table = compare.summary([finished("lorgnette", 2.0), unsaved])
    assert (table["trl"]["times_ours"], "saved_s" in table["trl"]) == (10, False)


def test_runs_take_turns_and_nobody_runs_twice_before_all_ran_once(compare: ModuleType) -> None:
    assert compare.plan(["trl", "swift"], 1, ["lorgnette"], 2, []) == ["lorgnette", "trl", "swift", "lorgnette"]
    order = compare.plan(["trl", "unsloth"], 2, ["lorgnette"], 2, ["unsloth"])
    assert order == ["lorgnette", "trl", "unsloth", "lorgnette", "trl"]


def test_what_no_longer_fits_is_not_begun_and_is_named(compare: ModuleType, kept: ModuleType, tmp_path: Path) -> None:
    left = kept.Kept(tmp_path / "few.json", ["bench"], None, 29)
    runs = [finished("lorgnette", 5.0), {"name": "trl", "failed": "exit status 1"}]
    assert compare.due("lorgnette", runs, left)  # 1.2 times 19 s
    assert not compare.due("trl", runs, left)  # it would fail again
    assert not compare.due("swift", runs, left)
    said = json.loads((tmp_path / "few.json").read_text())
    assert said["left_out"] == ["swift"]
    assert "time" in said["summary"]["swift"]["failed"]
    left = kept.Kept(tmp_path / "fewer.json", ["bench"], None, 20)
    assert not compare.due("lorgnette", runs, left)
    assert compare.summary(runs)["lorgnette"]["training_s"] == 5  # a repeat that is left out takes nothing away


def test_results_are_whole_after_every_measurement(kept: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.json"
    results = kept.Kept(file, ["bench/step.py"], "a GPU", 100)
    results.keep(runs=[1])
    assert json.loads(file.read_text())["runs"] == [1]
    results.keep(runs=[1, 2], worst=3)
    said = json.loads(file.read_text())
    assert (said["runs"], said["worst"]) == ([1, 2], 3)
    assert said["made_with"]["machine"]["device"] == "a GPU"
    assert said["made_with"]["versions"]["lorgnette"] == __version__
    assert [path.name for path in file.parent.iterdir()] == ["file.json"]


def test_a_program_is_ended_with_its_children_when_it_is_done(process: ModuleType, tmp_path: Path) -> None:
    code = """import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("pid.part", "w").write(str(child.pid))
import os; os.rename("pid.part", "pid")
time.sleep(60)"""
    pid = tmp_path / "pid"
    took = process.run([sys.executable, "-c", code], tmp_path / "said", 50, done=pid.exists, cwd=tmp_path)
    assert took < 40
    child = Path(f"/proc/{pid.read_text()}/stat")
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split(")")[1].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.05)


def test_a_program_that_fails_or_takes_too_long_says_its_last_lines(process: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(process.FailedError, match="exit status 3\nboom"):
        process.run([sys.executable, "-c", "print('boom'); raise SystemExit(3)"], tmp_path / "said", 60)
    slow = "import time; print('still here', flush=True); time.sleep(60)"
    with pytest.raises(process.FailedError, match="none after 2 s\nstill here"):
        process.run([sys.executable, "-c", slow], tmp_path / "said", 2)


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
def test_a_peer_is_ended_once_its_adapter_is_saved_and_cut_off_it_keeps_what_it_measured(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: bool
) -> None:
    (tmp_path / "peers").mkdir()
    saving = 'write({"training_s": 2.0, "steps": 62, "saved_s": 3.0})' if saves else ""
    (tmp_path / "peers" / "by_slow.py").write_text(PEER.replace("SAVING", saving))
    (tmp_path / "site" / "slow-1.2.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "slow-1.2.dist-info" / "METADATA").write_text("Name: slow\nVersion: 1.2\n")
    monkeypatch.setattr(runs, "HERE", tmp_path)
    run = runs.peer("slow", tmp_path, tmp_path, tmp_path / "site", 40 if saves else 5)
    assert run["training_s"] == 2
    assert run["versions"] == {"slow": "1.2"}
    assert ("saved_s" in run, "unsaved" in run) == (saves, not saves)


def test_a_peer_that_cannot_run_is_kept_with_its_last_lines(runs: ModuleType, tmp_path: Path) -> None:
    run = runs.peer("nobody", tmp_path, tmp_path, tmp_path, limit=60)
    assert "exit status 2" in run["failed"]
    assert "by_nobody.py" in run["failed"]


def test_a_training_that_was_cut_off_is_read_as_far_as_it_went(
    epoch: ModuleType, process: ModuleType, tmp_path: Path
) -> None:
    cut_off, file = process.FailedError("exit status none after 60 s"), tmp_path / "log.jsonl"
    with pytest.raises(process.FailedError, match="after 60 s"):
        epoch.read(file, cut_off)
    stages = [{"kind": "stage", "name": name, "seconds": s} for name, s in (("features", 11.4), ("decoding", 0.5))]
    steps = [{"kind": "train", "step": n, "seconds": 2.0, "tokens_per_s": 1e4} for n in (5, 10, 15, 20)]
    file.write_text("".join(json.dumps(record) + "\n" for record in stages + steps) + '{"kind": "tr')
    read = epoch.read(file, cut_off)
    assert (read["steps"], read["captions_per_s"], read["features_s"]) == (10, 10 * 256 / 4, 11.4)
    assert (read["peak_gib"], read["cut_off"]) == (None, "exit status none after 60 s")


def result(summary: dict[str, object], **versions: dict[str, str]) -> dict[str, object]:
    """As it is read from a file."""
    machine = {"gpu": "NVIDIA H200", "cores": 16, "torch": "2.11.0", "matmul_tflops": 693.0, "launch_us": 9.0}
    made = {"started": "2026-11-23T01:47:57+00:00"}
    return json.loads(json.dumps({"summary": summary, "versions": versions, "machine": machine, "made_with": made}))  # type: ignore[no-any-return]


def test_table_and_chart(compare: ModuleType, plot: ModuleType) -> None:
    runs = [finished("lorgnette", 3.0), finished("trl", 21.0), {"name": "swift", "failed": "exit 1\nboom | bang"}]
    found = plot.rows([result(compare.summary(runs), trl={"trl": "1.16.0"})])
    lines = plot.table(found).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(plot.COLUMNS) + 2}
    assert "TRL 1.16.0 | 10.0 | 21.0 | 32.0" in lines[3]
    assert lines[3].endswith("| 1, the first | 7.0 |")
    assert "no figures: boom \\| bang" in lines[4]
    drawn = plot.chart(found)
    bars = [float(e.get("width", 0)) for e in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")][:6]
    assert bars[4] == pytest.approx(7 * bars[1], rel=0.01)
    assert "prefers-color-scheme: dark" in drawn
    assert "swift" not in drawn


def test_files_of_several_calls_are_one_table(compare: ModuleType, plot: ModuleType) -> None:
    """lorgnette once a call; a peer from where it has figures, from most runs; its ratio from its own call."""
    failed = {"name": "unsloth", "failed": "exit status none after 110 s"}
    first = compare.summary([finished("lorgnette", 3.0), finished("trl", 30.0), failed])
    second = compare.summary([finished("lorgnette", 4.0), finished("trl", 20.0), finished("unsloth", 40.0)])
    calls = [result(first), result(second, unsloth={"unsloth": "2026.10.9"})]
    table = plot.table(plot.rows(calls)).splitlines()[2:]
    assert [line.split(" | ")[0] for line in table] == [
        "| **lorgnette** ¹", "| **lorgnette** ²", "| TRL ²", "| Unsloth 2026.10.9 ²",
    ]  # fmt: skip
    assert [line.split(" | ")[-1] for line in table] == ["1.0 |", "1.0 |", "5.0 |", "10.0 |"]
    twice = compare.summary([finished("lorgnette", 3.0)] + [finished("trl", t) for t in (30.0, 24.0)])  # one warm run
    assert "| TRL ¹ |" in plot.table(plot.rows([result(twice), result(second)]))
    assert plot.calls(calls).splitlines()[1].startswith("² 2026-11-23: NVIDIA H200, 16 cores, torch 2.11.0, 693 T")


def test_the_results_that_are_kept_here_still_make_the_table(plot: ModuleType) -> None:
    files = sorted((ROOT / "bench" / "results").glob("*-peers-*.json"))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    assert len(files) > 2
    assert "LLaMA-Factory 0.9.5" in plot.table(plot.rows(results))
    assert len(plot.calls(results).splitlines()) == len(files)
    ET.fromstring(plot.chart(plot.rows(results)))


def test_photographs_made_from_a_few_are_distinct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    preflight = __import__("preflight")
    (few := tmp_path / "few").mkdir()
    for shade in ("red", "navy"):
        Image.new("RGB", (700, 500), shade).save(few / f"{shade}.jpg")
    preflight.make(tmp_path / "made", few, 4)
    _, *rows = (tmp_path / "made" / "captions.csv").read_text().splitlines()
    pictures = [(tmp_path / "made" / row.split(",")[0]).read_bytes() for row in rows]
    assert len(set(pictures)) == len(set(rows)) == 4
    assert Image.open(io.BytesIO(pictures[0])).size in preflight.SIZES
