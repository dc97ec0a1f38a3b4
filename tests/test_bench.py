"""The comparison's arithmetic, its table and its chart. What a peer does is seen on a GPU only."""

import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TWO_B = {
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return __import__("compare")


@pytest.fixture
def plot(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return __import__("plot")


def finished(name: str, training: float, **more: object) -> dict[str, object]:
    return {"name": name, "prep_s": 10.0, "training_s": training, "saved_s": 11 + training, "peak_gib": 12.0, **more}


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


def test_the_first_run_stands_apart_and_ratios_are_to_lorgnette(compare: ModuleType) -> None:
    runs = [finished("lorgnette", t) for t in (9.0, 3.0, 2.0, 4.0)] + [finished("trl", t) for t in (60.0, 21.0)]
    runs += [finished("unsloth", 50.0), {"name": "swift", "failed": "exit status 1\nno GPU"}]
    table = compare.summary(runs)
    assert (table["lorgnette"]["training_s"], table["lorgnette"]["runs"]) == (3.0, 3)
    assert (table["trl"]["training_s"], table["trl"]["first_training_s"], table["trl"]["times_ours"]) == (21, 60, 7)
    assert table["unsloth"]["runs"] == 1  # one run is all there is
    assert table["swift"] == {"failed": "exit status 1\nno GPU"}


def test_runs_take_turns(compare: ModuleType) -> None:
    assert compare.plan(["trl", "swift"], 1, ["lorgnette"], 2) == ["lorgnette", "trl", "swift", "lorgnette"]


def test_a_peer_that_cannot_run_is_kept_with_its_last_lines(compare: ModuleType, tmp_path: Path) -> None:
    run = compare.peer("nobody", tmp_path, tmp_path, tmp_path, limit=60)
    assert "exit status 2" in run["failed"]
    assert "by_nobody.py" in run["failed"]


def test_table_and_chart(compare: ModuleType, plot: ModuleType, tmp_path: Path) -> None:
    runs = [finished("lorgnette", 3.0), finished("trl", 21.0), {"name": "swift", "failed": "exit 1\nboom | bang"}]
    result = {"summary": compare.summary(runs), "versions": {"trl": {"trl": "1.16.0"}}}
    found = plot.rows([json.loads(json.dumps(result))])
    lines = plot.table(found).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {len(plot.COLUMNS) + 2}
    assert "TRL 1.16.0 | 10.0 | 21.0 | 32.0" in lines[3]
    assert lines[3].endswith("| 7.0 |")
    assert "no figures: boom \\| bang" in lines[4]
    drawn = plot.chart(found)
    bars = [float(e.get("width", 0)) for e in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")][:6]
    assert bars[4] == pytest.approx(7 * bars[1], rel=0.01)
    assert "prefers-color-scheme: dark" in drawn
    assert "swift" not in drawn


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
