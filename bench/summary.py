"""What the runs of a comparison come to: for each trainer its first run, and the medians of its later ones.

A first run also compiles kernels, so it is never mixed with later runs, and ratios are of like with like.
"""

import statistics
from typing import Any

OURS, BASELINE = "lorgnette", "baseline"
"""BASELINE is an older version of lorgnette."""
FIGURES = ("prep_s", "training_s", "saved_s", "process_s", "samples_per_s", "steady_samples_per_s", "tokens_per_s",
           "steady_tokens_per_s", "share", "steady_share", "peak_gib", "reserved_gib", "launch_us")  # fmt: skip
CHANGES = {
    ("first", "process_s"): "the whole command, first run, s",
    ("later", "process_s"): "the whole command, later runs, s",
    ("later", "training_s"): "62 steps and features, s",
    ("later", "reserved_gib"): "reserved memory, GiB",
}
"""What lorgnette is compared with its older version in."""
Row = dict[str, Any]
Run = dict[str, Any]


def summarize(runs: list[Run]) -> dict[str, Row]:
    """By name: {"first": figures of the first run, "later": medians of the others, "later_runs": their number}, without
    "later" if there are none, or {"failed": why}. `times_ours` in both is the training time relative to lorgnette's."""
    table: dict[str, Row] = {}
    for name in dict.fromkeys(run["name"] for run in runs):
        own = [run for run in runs if run["name"] == name]
        good = [run for run in own if "failed" not in run]
        if not good:
            table[name] = {"failed": own[-1]["failed"]}
            continue
        first, *others = good
        table[name] = {"first": compute_medians([first]), "later_runs": len(others)}
        if others:
            table[name]["later"] = compute_medians(others)
    for part in ("first", "later"):
        if ours := table.get(OURS, {}).get(part):
            for row in (row[part] for row in table.values() if part in row):
                row["times_ours"] = row["training_s"] / ours["training_s"]
    return table


def compute_medians(runs: list[Run]) -> Row:
    values_by_figure = {figure: [run[figure] for run in runs if run.get(figure) is not None] for figure in FIGURES}
    return {figure: statistics.median(values) for figure, values in values_by_figure.items() if values}


def compare_versions(table: dict[str, Row]) -> dict[str, Row]:
    """lorgnette beside its older version, by figure: {"baseline": …, "lorgnette": …, "ratio": …}; empty if one of them
    has no such run."""
    compared: dict[str, Row] = {}
    for (part, figure), title in CHANGES.items():
        old, new = (table.get(name, {}).get(part, {}).get(figure) for name in (BASELINE, OURS))
        if old and new:
            compared[title] = {BASELINE: old, OURS: new, "ratio": new / old}
    return compared


def compare_with_fastest_peer(table: dict[str, Row]) -> dict[str, Row]:
    """lorgnette, and its older version, beside the fastest later runs of a peer: how many times as fast. The rate of
    steps after the first five, and from the start to the saved adapter. Both of runs with dropout."""
    compared: dict[str, Row] = {}
    peers = {name: row["later"] for name, row in table.items() if name not in (OURS, BASELINE) and "later" in row}
    peers = {name: row for name, row in peers.items() if not name.endswith("-dropout0")}
    for figure, title, sign in (
        ("steady_samples_per_s", "samples/s, steady", 1),
        ("saved_s", "start to adapter saved, s", -1),
    ):
        rates = {name: row[figure] ** sign for name, row in peers.items() if figure in row}
        if not rates:
            continue
        best = max(rates, key=rates.__getitem__)
        own = {name: table.get(name, {}).get("later", {}).get(figure) for name in (OURS, BASELINE)}
        compared[title] = {"peer": best, "fastest": peers[best][figure]} | {
            f"times_{name}": value**sign / rates[best] for name, value in own.items() if value
        }
    return compared
