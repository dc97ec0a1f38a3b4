"""Print the README's table of a comparison and draw its chart.

    python bench/plot.py results.json [more.json …] [--svg docs/bench.svg] [--without NAME …]

Files of several calls are marked ¹, ², …: every ratio is to lorgnette's own runs in the same call, and lorgnette has a
row for each call. A peer has one row, of the call with most of its runs, the later one in a tie. The machine of each
call is printed to stderr.
"""

import argparse
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

NAMES = {
    "lorgnette": "**lorgnette**",
    "transformers": "PEFT + transformers",
    "trl": "TRL",
    "swift": "ms-swift",
    "llamafactory": "LLaMA-Factory",
    "unsloth": "Unsloth",
}
PACKAGES = {"transformers": "transformers", "trl": "trl", "swift": "ms_swift", "llamafactory": "llamafactory",
            "unsloth": "unsloth"}  # fmt: skip
COLUMNS = {
    "before the first step, s": lambda row: f"{row['prep_s']:.1f}",
    "62 steps, s": lambda row: f"{row['training_s']:.1f}",
    "start to adapter saved, s": lambda row: f"{row['saved_s']:.1f}",
    "samples/s, steady": lambda row: f"{row['steady_samples_per_s']:.0f}",
    "tokens/s, steady": lambda row: f"{row['steady_tokens_per_s']:,.0f}",
    "of the matmul ceiling": lambda row: f"{row['steady_share']:.1%}",
    "peak GiB, allocated": lambda row: f"{row['peak_gib']:.1f}",
    "… reserved": lambda row: f"{row['reserved_gib']:.1f}",
    "runs": lambda row: "1, the first" if row["cold"] else f"{row['runs']} after a first",
    "× lorgnette's training": lambda row: f"{row['times_ours']:.1f}",
}
MARKS = "¹²³⁴⁵⁶⁷⁸⁹"
WIDTH, LABEL, BAR, GAP = 760, 240, 22, 12
STYLE = """text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.prep { fill: #9aa4b2 } .training { fill: #2f7d6d } .save { fill: #c9a227 } .axis { stroke: #8b949e }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .prep { fill: #6b7685 } .training { fill: #4fb39c } }"""
Row = dict[str, Any]


def build_rows(results: list[dict[str, Any]]) -> dict[str, Row]:
    """The summaries of all calls by label, lorgnette's first."""
    by_key: dict[str, Row] = {}
    for mark, result in zip(MARKS if len(results) > 1 else " ", results, strict=False):
        for name, row in result["summary"].items():
            new = row | {"label": f"{format_label(name, result['versions'])} {mark}".strip()}
            key = f"{name} {mark}" if name.startswith("lorgnette") else name
            if key not in by_key or count_worth(new) >= count_worth(by_key[key]):
                by_key[key] = new
    return {
        row["label"]: by_key[key]
        for key, row in sorted(by_key.items(), key=lambda item: not item[0].startswith("lorgnette"))
    }


def count_worth(row: Row) -> int:
    """Rank a row by its number of runs; a run that also compiled counts less."""
    return 0 if "failed" in row else 2 * int(row["runs"]) - bool(row.get("cold"))


def describe_calls(results: list[dict[str, Any]]) -> str:
    """One line per call: its machine, with the measured rates, and lorgnette's first run."""
    lines = []
    for mark, result in zip(MARKS, results, strict=False):
        machine, first = result["machine"], result["summary"].get("lorgnette", {}).get("first_training_s")
        facts = [machine["gpu"] or "CPU", f"{machine['cores']} cores", f"torch {machine['torch']}"]
        facts += [f"{machine['matmul_tflops']:.0f} TFLOP/s"] if machine["matmul_tflops"] else []
        facts += [f"{machine['launch_us']:.1f} µs per launch"] if machine.get("launch_us") else []
        facts += [f"lorgnette's first run {first:.1f} s"] if first else []
        lines.append(f"{mark} {result['made_with']['started'][:10]}: " + ", ".join(facts))
    return "\n".join(lines)


def format_label(name: str, versions: dict[str, dict[str, str]]) -> str:
    kind, _, variant = name.partition("-")
    packages = {package.lower().replace("-", "_"): version for package, version in versions.get(kind, {}).items()}
    version = packages.get(PACKAGES.get(kind, ""))
    return NAMES[kind] + (f" {version}" if version else "") + (", no dropout" if variant else "")


def format_table(rows: dict[str, Row]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for row in rows.values():
        cells = [format_cell(show, row) for show in COLUMNS.values()] if "failed" not in row else [format_failure(row)]
        lines.append(f"| {row['label']} | " + " | ".join(cells + [""] * (len(COLUMNS) - len(cells))) + " |")
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
        result["summary"] = {name: row for name, row in result["summary"].items() if name not in arguments.without}
    rows = build_rows(results)
    print(format_table(rows))
    print(describe_calls(results), file=sys.stderr)
    arguments.svg.write_text(draw_chart(rows), encoding="utf-8")
