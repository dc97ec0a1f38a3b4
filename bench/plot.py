"""Print a comparison's tables and draw its chart.

    python bench/plot.py results.json [more.json …] [--svg docs/bench.svg] [--without NAME …]

The first table, the README's, has the runs after a first one, and the second the first runs; the chart shows the first
table, or the second if no run is in the first. Files of several calls are marked ¹, ², …: every ratio is to lorgnette's
own runs in the same call, and lorgnette has a row for each call. A peer has one row, of the call with most of its runs,
the later one in a tie. Then follows, for each call that ran them, lorgnette beside its older version and beside the
fastest peer. The machine of each call is printed to stderr.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from summary import BASELINE, OURS, Row, compare_versions, compare_with_fastest_peer, summarize

NAMES = {
    OURS: "**lorgnette**",
    BASELINE: "lorgnette, older",
    "transformers": "PEFT + transformers",
    "trl": "TRL",
    "swift": "ms-swift",
    "llamafactory": "LLaMA-Factory",
    "unsloth": "Unsloth",
    "nemo": "NeMo AutoModel",
}
PACKAGES = {"transformers": "transformers", "trl": "trl", "swift": "ms_swift", "llamafactory": "llamafactory",
            "unsloth": "unsloth", "nemo": "nemo_automodel"}  # fmt: skip
COLUMNS = {
    "before the first step, s": lambda row: f"{row['prep_s']:.1f}",
    "62 steps, s": lambda row: f"{row['training_s']:.1f}",
    "start to adapter saved, s": lambda row: f"{row['saved_s']:.1f}",
    "samples/s, steady": lambda row: f"{row['steady_samples_per_s']:.0f}",
    "tokens/s, steady": lambda row: f"{row['steady_tokens_per_s']:,.0f}",
    "of the matmul ceiling": lambda row: f"{row['steady_share']:.1%}",
    "peak GiB, allocated": lambda row: f"{row['peak_gib']:.1f}",
    "… reserved": lambda row: f"{row['reserved_gib']:.1f}",
    "loss afterwards, above fp32's": lambda row: f"{row['above_fp32']:+.3f}",
    "runs": lambda row: f"{row['runs']}",
    "× lorgnette's training": lambda row: f"{row['times_ours']:.1f}",
}
FIRST_COLUMNS = (
    "before the first step, s", "62 steps, s", "start to adapter saved, s", "samples/s, steady",
    "× lorgnette's training",
)  # fmt: skip
MARKS = "¹²³⁴⁵⁶⁷⁸⁹"
WIDTH, LABEL, BAR, GAP = 760, 240, 22, 12
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.prep { fill: #9aa4b2 } .training { fill: #2f7d6d } .save { fill: #c9a227 } .axis { stroke: #8b949e }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .prep { fill: #6b7685 } .training { fill: #4fb39c } }"""


def build_rows(results: list[dict[str, Any]], part: str) -> dict[str, Row]:
    """The first or the later runs of all calls by label, lorgnette's first. part: first, later."""
    by_key: dict[str, Row] = {}
    for mark, result in zip(MARKS if len(results) > 1 else " ", results, strict=False):
        judged = result.get("trained_loss", {}).get("adapters", {})
        for name, row in summarize(result["runs"]).items():
            if part not in row and "failed" not in row:
                continue
            runs = 1 if part == "first" else row.get("later_runs", 0)
            new = row.get(part, row) | {
                "runs": runs,
                "label": f"{format_label(name, result['versions'])} {mark}".strip(),
            }
            if "above_fp32" in (loss := judged.get(name, {})):
                new["above_fp32"] = loss["above_fp32"]
            key = f"{name} {mark}" if name.startswith((OURS, BASELINE)) else name
            if key not in by_key or count_worth(new) >= count_worth(by_key[key]):
                by_key[key] = new
    return {
        row["label"]: by_key[key]
        for key, row in sorted(by_key.items(), key=lambda item: not item[0].startswith((OURS, BASELINE)))
    }


def count_worth(row: Row) -> int:
    """Rank a row by its number of runs."""
    return 0 if "failed" in row else int(row["runs"])


def describe_calls(results: list[dict[str, Any]]) -> str:
    """One line per call: its machine, with the measured rates, and what the losses are compared with."""
    lines = []
    for mark, result in zip(MARKS, results, strict=False):
        machine, losses = result["machine"], result.get("trained_loss", {})
        facts = [machine["gpu"] or "CPU", f"{machine['cores']} cores", f"torch {machine['torch']}"]
        facts += [f"{machine['matmul_tflops']:.0f} TFLOP/s"] if machine["matmul_tflops"] else []
        facts += [f"{machine['launch_us']:.1f} µs per launch"] if machine.get("launch_us") else []
        if "fp32" in losses:
            facts.append(f"fp32's loss {losses['before']:.3f} before and {losses['fp32']:.3f} after the job")
        facts += [f"range of losses with other dropout masks {losses['spread']:.3f}"] if "spread" in losses else []
        lines.append(f"{mark} {result['made_with']['started'][:10]}: " + ", ".join(facts))
    return "\n".join(lines)


def format_label(name: str, versions: dict[str, dict[str, str]]) -> str:
    kind, _, variant = name.partition("-")
    packages = {package.lower().replace("-", "_"): version for package, version in versions.get(kind, {}).items()}
    version = packages.get(PACKAGES.get(kind, ""))
    return NAMES[kind] + (f" {version}" if version else "") + (", no dropout" if variant else "")


def format_table(rows: dict[str, Row], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    lines = ["| | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for row in rows.values():
        cells = [format_cell(COLUMNS[name], row) for name in columns] if "failed" not in row else [format_failure(row)]
        lines.append(f"| {row['label']} | " + " | ".join(cells + [""] * (len(columns) - len(cells))) + " |")
    return "\n".join(lines)


def format_versions(table: dict[str, Row]) -> str:
    """lorgnette beside its older version and beside the fastest peer; empty without an older version."""
    versions = compare_versions(table)
    if not versions:
        return ""
    lines = ["| | older | now | ratio |", "|---|---:|---:|---:|"]
    for title, row in versions.items():
        lines.append(f"| {title} | {row[BASELINE]:.2f} | {row[OURS]:.2f} | {row['ratio']:.2f} |")
    for title, row in compare_with_fastest_peer(table).items():
        old, new = (f"{row[f'times_{name}']:.1f} ×" if f"times_{name}" in row else "–" for name in (BASELINE, OURS))
        lines.append(f"| {title}, beside {NAMES[row['peer']]}'s {row['fastest']:.1f} | {old} | {new} | |")
    return "\n".join(lines)


def format_cell(show: Any, row: Row) -> str:
    """A dash for a figure that was not measured (no GPU, too few steps)."""
    try:
        return str(show(row))
    except KeyError:
        return "–"


def format_failure(row: Row) -> str:
    first, *_, last = [*row["failed"].splitlines()[:1], *row["failed"].splitlines()]
    return "no figures: " + (first if "none after" in first else last).replace("|", "\\|")


def draw_chart(rows: dict[str, Row]) -> str:
    """Seconds from the start of the process to the adapter on disk: one bar per row, in three parts."""
    bars = {row["label"].replace("*", ""): row for row in rows.values() if "saved_s" in row}
    scale = (WIDTH - LABEL - 60) / max(row["saved_s"] for row in bars.values())
    body = []
    for i, (name, row) in enumerate(bars.items()):
        top = 34 + i * (BAR + GAP)
        body.append(f'<text x="{LABEL - 10}" y="{top + 16}" text-anchor="end">{escape(name)}</text>')
        left = float(LABEL)
        for part, seconds in split_seconds(row).items():
            width = seconds * scale
            body.append(f'<rect class="{part}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}"/>')
            left += width
        body.append(f'<text x="{left + 6:.1f}" y="{top + 16}">{row["saved_s"]:.1f} s</text>')
    legend = {"prep": "before the first step", "training": "training", "save": "evaluating, saving"}
    for i, (part, text) in enumerate(legend.items()):
        left = LABEL + i * 170
        body.append(f'<rect class="{part}" x="{left}" y="8" width="12" height="12"/>')
        body.append(f'<text x="{left + 18}" y="19">{text}</text>')
    height = 34 + len(bars) * (BAR + GAP)
    title = "Seconds from start to adapter saved: " + "; ".join(f"{n} {r['saved_s']:.1f}" for n, r in bars.items())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *body, "</svg>", ""])


def split_seconds(row: Row) -> dict[str, float]:
    save = max(0.0, row["saved_s"] - row["prep_s"] - row["training_s"])
    return {"prep": row["prep_s"], "training": row["training_s"], "save": save}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--svg", type=Path, default=Path("docs/bench.svg"))
    parser.add_argument("--without", nargs="*", default=[], help="names to leave out")
    arguments = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    for result in results:
        result["runs"] = [run for run in result["runs"] if run["name"] not in arguments.without]
    rows, first_rows = build_rows(results, "later"), build_rows(results, "first")
    tables = [format_table(rows), format_table(first_rows, FIRST_COLUMNS)]
    tables += [format_versions(summarize(result["runs"])) for result in results]
    print("\n\n".join(table for table in tables if table))
    print(describe_calls(results), file=sys.stderr)
    has_later = any("saved_s" in row for row in rows.values())
    arguments.svg.write_text(draw_chart(rows if has_later else first_rows), encoding="utf-8")
