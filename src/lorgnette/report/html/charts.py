"""Curves → what the page needs to draw them: paths in a 1000 × 1000 box, ticks in percent, a sentence.

The box is stretched to whatever width the reader's window has, while lines keep their width and all text stays HTML
at its own size; so nothing here knows how wide a page is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOX = 1000
MAX_POINTS = 600
MIN_SMOOTHED_POINTS = 40
NUM_COLORS = 6
"""Of lines, as page.css names them."""


@dataclass(frozen=True, slots=True)
class Curve:
    """points: (step, value), in the order of steps. "eval loss" is drawn over "loss"."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    percent: float
    text: str


@dataclass(frozen=True, slots=True)
class ChartLine:
    """path: every point; smooth: a running mean of a long loss; dots: the points themselves where they are few."""

    name: str
    color: int
    path: str
    smooth: str
    dots: str
    points: list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    name: str
    description: str
    lines: list[ChartLine]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    @property
    def script_data(self) -> dict[str, Any]:
        """What the crosshair reads."""
        return {
            "x": self.x_range,
            "y": self.y_range,
            "lines": [{"name": line.name, "colour": line.color, "points": line.points} for line in self.lines],
        }


def build_charts(curves: Sequence[Curve]) -> list[Chart]:
    """One for each curve, but a curve named "eval X" joins the one named X. Curves without a finite point are left."""
    names = {curve.name for curve in curves}
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        base = curve.name.removeprefix("eval").lstrip(" _/")
        groups.setdefault(base if base in names else curve.name, []).append(curve)
    return [
        _build_chart(name, group) for name, group in groups.items() if any(_drop_non_finite(c.points) for c in group)
    ]


def build_overlay(name: str, curves: Sequence[Curve]) -> list[Chart]:
    """Curves of one kind from several runs in one chart; none where no curve has a finite point. A curve's colour is
    its place's, also where one before it is empty."""
    return [_build_chart(name, list(curves))] if any(_drop_non_finite(curve.points) for curve in curves) else []


def format_number(value: float) -> str:
    """A value for people: three or four digits, no padding zeros in the exponent."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")
    text = f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
    mantissa, mark, exponent = text.partition("e")
    return (mantissa + (f"e{int(exponent)}" if mark else "")).replace("-", "−")


def _build_chart(name: str, curves: list[Curve]) -> Chart:
    kept = [(place, curve, _drop_non_finite(curve.points)) for place, curve in enumerate(curves)]
    kept = [(place, curve, points) for place, curve, points in kept if points]
    every = [point for _, _, points in kept for point in points]
    x_range = _compute_range([x for x, _ in every])
    y_range, y_steps = _choose_y_ticks([y for _, y in every])
    lines = [_build_line(name, curve.name, place, points, x_range, y_range) for place, curve, points in kept]
    return Chart(
        name=name,
        description="; ".join(_describe_curve(curve, points) for _, curve, points in kept),
        lines=lines,
        x_ticks=[_build_tick(x, x_range) for x in _choose_x_ticks(x_range)],
        y_ticks=[_build_tick(y, y_range) for y in y_steps],
        x_range=x_range,
        y_range=y_range,
    )


def _drop_non_finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]


def _describe_curve(curve: Curve, points: list[tuple[float, float]]) -> str:
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    lost = len(curve.points) - len(points)
    span = f"{curve.name} {format_number(first_y)} at step {format_number(first_x)}"
    if len(points) > 1:
        span += f", {format_number(last_y)} at step {format_number(last_x)}"
    return span + (f", {lost} not finite and not drawn" if lost else "")


def _build_line(
    kind: str,
    name: str,
    color_index: int,
    points: list[tuple[float, float]],
    xs: tuple[float, float],
    ys: tuple[float, float],
) -> ChartLine:
    drawn = _thin_points(points)
    # Only a loss is noise around a trend; a smoothed learning rate or gradient norm would be a curve that never was.
    smooth = _thin_points(_smooth(points)) if "loss" in kind and len(points) >= MIN_SMOOTHED_POINTS else []
    few = points if len(points) <= 30 else []
    return ChartLine(
        name=name,
        color=color_index % NUM_COLORS + 1,
        path=_build_path(drawn, xs, ys),
        smooth=_build_path(smooth, xs, ys),
        # A line of no length with round ends: the only dot that stays round in a stretched box.
        dots="".join(f"M{x} {y}h0" for x, y in (_to_box(p, xs, ys) for p in few)),
        points=drawn,
    )


def _to_box(point: tuple[float, float], xs: tuple[float, float], ys: tuple[float, float]) -> tuple[str, str]:
    x = BOX * (point[0] - xs[0]) / (xs[1] - xs[0])
    y = BOX * (1 - (point[1] - ys[0]) / (ys[1] - ys[0]))
    return f"{x:.1f}", f"{y:.1f}"


def _build_path(points: list[tuple[float, float]], xs: tuple[float, float], ys: tuple[float, float]) -> str:
    placed = [_to_box(point, xs, ys) for point in points]
    return "M" + "L".join(f"{x} {y}" for x, y in placed) if placed else ""


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred window of a twentieth of the run: it follows the curve without lagging behind it."""
    half = max(2, len(points) // 40)
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    means = []
    for place, (x, _) in enumerate(points):
        reach = min(half, place, len(points) - 1 - place)  # symmetric at the ends too
        low, high = place - reach, place + reach + 1
        means.append((x, (sums[high] - sums[low]) / (high - low)))
    return means


def _thin_points(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Lowest and highest of each bucket: a spike stays a spike."""
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / (MAX_POINTS // 2))
    kept = [points[0]]
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        ends = {bucket.index(min(bucket, key=lambda p: p[1])), bucket.index(max(bucket, key=lambda p: p[1]))}
        kept.extend(bucket[place] for place in sorted(ends))
    return [*kept, points[-1]]


def _compute_range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _choose_y_ticks(values: list[float]) -> tuple[tuple[float, float], list[float]]:
    """A range that ends on round numbers, and those numbers. From zero where zero is near."""
    low, high = min(values), max(values)
    if 0 <= low <= 0.4 * high:
        low = 0.0
    if high == low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    step = _round_up_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    steps = [count * step for count in range(first, last + 1)]
    return (steps[0], steps[-1]), steps


def _round_up_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _choose_x_ticks(x_range: tuple[float, float]) -> list[float]:
    """At most six whole steps inside the range."""
    low, high = x_range
    step = max(1.0, _round_up_step((high - low) / 5))
    if step == 2.5:
        step = 5.0
    return [count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _build_tick(value: float, span: tuple[float, float]) -> Tick:
    text = "0" if abs(value) < 1e-12 * max(map(abs, span)) else _format_tick(value)
    return Tick(round(100 * (value - span[0]) / (span[1] - span[0]), 2), text)


def _format_tick(value: float) -> str:
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:g}".replace("-", "−")
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
