"""Curves → SVG paths in a 1000 × 1000 box, ticks in percent, and a description.

The page stretches the box to the window's width. Line widths and text keep their size, so nothing here knows how wide
a page is.
"""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

BOX = 1000
MAX_POINTS = 600
MAX_DOTS = 30
MIN_SMOOTHED_POINTS = 40
NUM_COLORS = 6
"""Line colors in base.css."""
MAX_CSV_ROWS = 2000
DIGITS = 4
"""Significant digits of a value; base.js has the same form."""
Y_NAMES = {
    "loss": "nats per token, lower is better",
    "eval loss": "nats per token, lower is better",
    "learning rate": "per step",
    "gradient norm": "of the step, before clipping",
}
"""Chart → what its y axis counts."""
LINE_NAMES = {"loss": "training loss"}
"""Curve → its name beside others, where that is another."""

Range = tuple[float, float]
Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """What stands on the x axis: optimizer steps, or something else. word: for one value of it."""

    name: str = "optimizer step"
    word: str = "step"


_STEPS = Axis()


@dataclass(frozen=True, slots=True)
class Curve:
    """points: (step, value), by step. "eval loss" is drawn in the chart of "loss". band: the interval of each point;
    empty: none is drawn."""

    name: str
    points: Points
    band: Sequence[Range] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    percent: float
    text: str


@dataclass(frozen=True, slots=True)
class ChartLine:
    """path: all points; smooth: running mean of a long loss; dots: each point, if there are few; area: around the
    intervals of all points, if they have some."""

    name: str
    color: int
    path: str
    smooth: str
    dots: str
    points: Points
    area: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """y_name: what the y axis counts. mark: a step to point out, such as the best one."""

    name: str
    description: str
    lines: list[ChartLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_range: Range
    y_range: Range
    y_name: str = ""
    mark: Tick | None = None
    axis: Axis = _STEPS

    @property
    def script_data(self) -> dict[str, Any]:
        """For the crosshair."""
        lines = [{"name": line.name, "color": line.color, "points": line.points} for line in self.lines]
        return {"x": self.x_range, "y": self.y_range, "lines": lines, "word": self.axis.word}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text that a page shows and gives away as CSV."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def csv(self) -> str:
        """The table as a CSV file."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.header, *self.rows])
        return buffer.getvalue()


def build_charts(curves: Sequence[Curve], best: tuple[str, float] | None = None) -> list[Chart]:
    """One chart per curve; a curve "eval X" joins the chart of X. Curves without a finite point are left out.

    best: the name of the curve that selects the best step, and that step; its chart marks it.
    """
    names = {curve.name for curve in curves}
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        base = curve.name.removeprefix("eval").lstrip(" _/")
        groups.setdefault(base if base in names else curve.name, []).append(curve)
    return [
        chart
        for name, group in groups.items()
        for chart in build_overlay(name, group, best[1] if best and best[0] in {c.name for c in group} else None)
    ]


def build_overlay(
    name: str,
    curves: Sequence[Curve],
    best_step: float | None = None,
    *,
    axis: Axis = _STEPS,
    y_limits: Range | None = None,
) -> list[Chart]:
    """One chart of all curves, or none if no curve has a finite point. Empty curves keep their color unused.

    best_step: the step to mark. y_limits: values that the y axis has in any case.
    """
    points_by_curve = [[point for point in curve.points if all(map(math.isfinite, point))] for curve in curves]
    finite = [(i, curves[i], points) for i, points in enumerate(points_by_curve) if points]
    if not finite:
        return []
    xs, ys = zip(*(point for _, _, points in finite for point in points), strict=True)
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 1, max(xs) + 1)
    y_range, y_values = _choose_y_ticks(min(*ys, *(y_limits or ys)), max(*ys, *(y_limits or ys)))
    description = "; ".join(_describe_curve(curve, points, axis.word) for _, curve, points in finite)
    lines = [_build_line(name, curve, i, points, x_range, y_range) for i, curve, points in finite]
    x_ticks, y_ticks = _build_ticks(_choose_x_ticks(*x_range), x_range), _build_ticks(y_values, y_range)
    mark = None
    if best_step is not None and x_range[0] <= best_step <= x_range[1]:
        mark = Tick(_compute_percent(best_step, x_range), f"best: step {format_number(best_step)}")
        description += f"; {mark.text}"
    return [Chart(name, description, lines, x_ticks, y_ticks, x_range, y_range, Y_NAMES.get(name, ""), mark, axis)]


def tabulate_charts(charts: Sequence[Chart]) -> Table:
    """The points of all charts as numbers that other programs read: a row for each step, a column for each line, ""
    where a line has no point. A very long run is thinned, as in the charts."""
    columns = [(chart, line) for chart in charts for line in chart.lines]
    names = [line.name for _, line in columns]
    header = [
        line.name if names.count(line.name) == 1 and chart.name in line.name else f"{chart.name}: {line.name}"
        for chart, line in columns
    ]
    values = [dict(line.points) for _, line in columns]
    steps = sorted({step for points in values for step in points})
    steps = steps[:: math.ceil(len(steps) / MAX_CSV_ROWS) or 1]
    rows = [[f"{step:g}", *(f"{points[step]:.6g}" if step in points else "" for points in values)] for step in steps]
    return Table([charts[0].axis.word if charts else _STEPS.word, *header], rows)


def format_number(value: float) -> str:
    """A value with four significant digits; very small and very large ones with an exponent, as `2.5e−7`."""
    if not math.isfinite(value):
        return str(value)
    if value != int(value) or abs(value) >= 1e6:
        value = float(f"{value:.{DIGITS}g}")
    if value and not 1e-3 <= abs(value) < 1e6:
        return _format_with_exponent(value)
    text = f"{int(value):,}" if value == int(value) else f"{value:.12f}".rstrip("0")
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")


def _format_with_exponent(value: float) -> str:
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")


def _describe_curve(curve: Curve, points: Points, word: str) -> str:
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    num_dropped = len(curve.points) - len(points)
    name = LINE_NAMES.get(curve.name, curve.name)
    text = f"{name} {format_number(first_y)} at {word} {format_number(first_x)}"
    if len(points) > 1:
        text += f", {format_number(last_y)} at {word} {format_number(last_x)}"
    return text + (f", {num_dropped} not finite and not drawn" if num_dropped else "")


def _build_line(chart_name: str, curve: Curve, index: int, points: Points, xs: Range, ys: Range) -> ChartLine:
    thinned = _thin_points(points)
    # Only a loss is noise around a trend. A smoothed learning rate or gradient norm would show values that never were.
    is_smoothed = "loss" in chart_name and len(points) >= MIN_SMOOTHED_POINTS
    smooth = _build_path(_thin_points(_smooth(points)), xs, ys) if is_smoothed else ""
    # Lines of length 0 with round caps: dots that stay round in a stretched box.
    few = points if len(points) <= MAX_DOTS else []
    dots = "".join("M{} {}h0".format(*_to_box(point, xs, ys)) for point in few)
    name, color = LINE_NAMES.get(curve.name, curve.name), index % NUM_COLORS + 1
    return ChartLine(name, color, _build_path(thinned, xs, ys), smooth, dots, thinned, _build_area(curve, xs, ys))


def _build_area(curve: Curve, xs: Range, ys: Range) -> str:
    """Along the upper bounds and back along the lower ones."""
    if not curve.band:
        return ""
    bounds = [(x, low, high) for (x, _), (low, high) in zip(curve.points, curve.band, strict=True)]
    bounds = bounds[:: math.ceil(len(bounds) / MAX_POINTS)]
    return _build_path([(x, high) for x, _, high in bounds] + [(x, low) for x, low, _ in reversed(bounds)], xs, ys)


def _to_box(point: tuple[float, float], xs: Range, ys: Range) -> tuple[str, str]:
    x = BOX * (point[0] - xs[0]) / (xs[1] - xs[0])
    y = BOX * (1 - (point[1] - ys[0]) / (ys[1] - ys[0]))
    return f"{x:.1f}", f"{y:.1f}"


def _build_path(points: Points, xs: Range, ys: Range) -> str:
    return "M" + "L".join(" ".join(_to_box(point, xs, ys)) for point in points)


def _smooth(points: Points) -> Points:
    """Running mean over a centered window of a twentieth of the run, so that it does not lag behind."""
    max_half = max(2, len(points) // 40)
    sums = list(accumulate((y for _, y in points), initial=0.0))
    means = []
    for i, (x, _) in enumerate(points):
        half = min(max_half, i, len(points) - 1 - i)  # symmetric at both ends too
        low, high = i - half, i + half + 1
        means.append((x, (sums[high] - sums[low]) / (high - low)))
    return means


def _thin_points(points: Points) -> Points:
    """Lowest and highest point of each bucket, so that a spike stays visible."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    thinned = [points[0]]
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        extremes = {bucket.index(min(bucket, key=lambda p: p[1])), bucket.index(max(bucket, key=lambda p: p[1]))}
        thinned.extend(bucket[i] for i in sorted(extremes))
    return [*thinned, points[-1]]


def _choose_y_ticks(low: float, high: float) -> tuple[Range, list[float]]:
    """A range that ends on round numbers, and round numbers in it. It starts at 0 if 0 is near."""
    if 0 <= low <= 0.4 * high:
        low = 0.0
    if high == low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = _round_up_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return (ticks[0], ticks[-1]), ticks


def _round_up_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _choose_x_ticks(low: float, high: float) -> list[float]:
    """At most six integers in the range."""
    step = max(1.0, _round_up_step((high - low) / 5))
    if step == 2.5:
        step = 5.0
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _build_ticks(values: Sequence[float], span: Range) -> list[Tick]:
    """The ticks of an axis, all in one form: with the decimals that their distance needs, or with an exponent."""
    largest = max(map(abs, span))
    step = min((abs(b - a) for a, b in pairwise(values)), default=largest)
    has_exponent = not 1e-3 <= largest < 1e6 and step >= largest / 100
    decimals = 0 if has_exponent else max(map(_count_decimals, values), default=0)
    ticks = []
    for value in values:
        is_zero = abs(value) < 1e-12 * largest
        text = "0" if is_zero else _format_with_exponent(value) if has_exponent else f"{value:,.{decimals}f}"
        text = text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")
        ticks.append(Tick(_compute_percent(value, span), text))
    return ticks


def _count_decimals(value: float) -> int:
    """Decimals that the value needs, at most 9."""
    return len(f"{value:.9f}".rstrip("0").partition(".")[2])


def _compute_percent(value: float, span: Range) -> float:
    return round(100 * (value - span[0]) / (span[1] - span[0]), 2)
