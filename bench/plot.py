"""Print the README's table of a comparison and draw its chart.

    python bench/plot.py results.json [more.json …] [--svg docs/bench.svg] [--without NAME …]

Files of several calls are put side by side, marked ¹, ², …: every ratio is to lorgnette's own runs in the same call,
and lorgnette has a row for each. A peer has one: of the calls in which it gave figures, the one with most runs, the
later if they are even. What each call's machine was is printed beside, to stderr.
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


def rows(results: list[dict[str, Any]]) -> dict[str, Row]:
    """By label, lorgnette's first: the summaries of all calls."""
    of: dict[str, Row] = {}
    for mark, result in zip(MARKS if len(results) > 1 else " ", results, strict=False):
        for name, row in result["summary"].items():
            new = row | {"label": f"{label(name, result['versions'])} {mark}".strip()}
            key = f"{name} {mark}" if name.startswith("lorgnette") else name
            if key not in of or worth(new) >= worth(of[key]):
                of[key] = new
    return {
        row["label"]: of[key] for key, row in sorted(of.items(), key=lambda item: not item[0].startswith("lorgnette"))
    }


def worth(row: Row) -> int:
    """How many runs stand behind its figures; one that also compiled is worth less than one that did not."""
    return 0 if "failed" in row else 2 * int(row["runs"]) - bool(row.get("cold"))


def calls(results: list[dict[str, Any]]) -> str:
    """A line for each call: its machine, and what it measured of it and of lorgnette."""
    lines = []
    for mark, result in zip(MARKS, results, strict=False):
        machine, first = result["machine"], result["summary"].get("lorgnette", {}).get("first_training_s")
        said = [machine["gpu"] or "CPU", f"{machine['cores']} cores", f"torch {machine['torch']}"]
        said += [f"{machine['matmul_tflops']:.0f} TFLOP/s"] if machine["matmul_tflops"] else []
        said += [f"{machine['launch_us']:.1f} µs a launch"] if machine.get("launch_us") else []
        said += [f"lorgnette's first run {first:.1f} s"] if first else []
        lines.append(f"{mark} {result['made_with']['started'][:10]}: " + ", ".join(said))
    return "\n".join(lines)


def label(name: str, versions: dict[str, dict[str, str]]) -> str:
    kind, _, variant = name.partition("-")
    having = {package.lower().replace("-", "_"): version for package, version in versions.get(kind, {}).items()}
    version = having.get(PACKAGES.get(kind, ""))
    return NAMES[kind] + (f" {version}" if version else "") + (", no dropout" if variant else "")


def table(found: dict[str, Row]) -> str:
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * len(COLUMNS) + "|"]
    for row in found.values():
        said = [cell(show, row) for show in COLUMNS.values()] if "failed" not in row else [reason(row)]
        lines.append(f"| {row['label']} | " + " | ".join(said + [""] * (len(COLUMNS) - len(said))) + " |")
    return "\n".join(lines)


def cell(show: Any, row: Row) -> str:
    """A figure that could not be measured (no GPU, too few steps) is a dash."""
    try:
        return str(show(row))
    except KeyError:
        return "–"


def reason(row: Row) -> str:
    first, *_, last = [*row["failed"].splitlines()[:1], *row["failed"].splitlines()]
    return "no figures: " + (first if "none after" in first else last).replace("|", "\\|")


def chart(found: dict[str, Row]) -> str:
    """Seconds from the process's start to the adapter on disk: one bar each, in three parts."""
    bars = {row["label"].replace("*", ""): row for row in found.values() if "saved_s" in row}
    scale = (WIDTH - LABEL - 60) / max(row["saved_s"] for row in bars.values())
    body = []
    for place, (name, row) in enumerate(bars.items()):
        top = 34 + place * (BAR + GAP)
        body.append(f'<text x="{LABEL - 10}" y="{top + 16}" text-anchor="end">{escape(name)}</text>')
        left = float(LABEL)
        for part, seconds in parts(row).items():
            width = seconds * scale
            body.append(f'<rect class="{part}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BAR}"/>')
            left += width
        body.append(f'<text x="{left + 6:.1f}" y="{top + 16}">{row["saved_s"]:.1f} s</text>')
    legend = {"prep": "before the first step", "training": "training", "save": "evaluating, saving"}
    for place, (part, text) in enumerate(legend.items()):
        left = LABEL + place * 170
        body.append(f'<rect class="{part}" x="{left}" y="8" width="12" height="12"/>')
        body.append(f'<text x="{left + 18}" y="19">{text}</text>')
    height = 34 + len(bars) * (BAR + GAP)
    title = "Seconds from start to adapter saved: " + "; ".join(f"{n} {r['saved_s']:.1f}" for n, r in bars.items())
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *body, "</svg>", ""])


def parts(row: Row) -> dict[str, float]:
    save = max(0.0, row["saved_s"] - row["prep_s"] - row["training_s"])
    return {"prep": row["prep_s"], "training": row["training_s"], "save": save}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--svg", type=Path, default=Path("docs/bench.svg"))
    parser.add_argument("--without", nargs="*", default=[], help="names to leave out")
    given = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in given.results]
    for result in results:
        result["summary"] = {name: row for name, row in result["summary"].items() if name not in given.without}
    found = rows(results)
    print(table(found))
    print(calls(results), file=sys.stderr)
    given.svg.write_text(chart(found), encoding="utf-8")
